"""Guide, "Robust Error Handling" and "Monitoring": the user's own wrappers around handlers."""
# prints: retried 2 times, attempts: 3
# prints: error from broken: always

import logging
import time
from functools import wraps

from praval import agent, broadcast, start_agents

logging.disable()  # the failure below is logged, as it should be
calls = []


def resilient(max_retries):
    def decorator(agent_func):
        @wraps(agent_func)
        def wrapper(spore):
            for attempt in range(max_retries):
                try:
                    return agent_func(spore)
                except ValueError as error:
                    time.sleep(0.01)
                    if attempt == max_retries - 1:
                        broadcast(
                            {"type": "agent_error", "agent_name": "broken", "error": str(error)}
                        )
                        raise

        return wrapper

    return decorator


@agent("risky_processor", responds_to=["risky_operation"])
@resilient(max_retries=3)
def risky_processor(spore):
    calls.append(1)
    if len(calls) < 3:
        raise ValueError("simulated")
    return {"status": "success"}


@agent("broken", responds_to=["hopeless"])
@resilient(max_retries=1)
def broken(spore):
    raise ValueError("always")


@agent("error_handler", responds_to=["agent_error"])
def handle_agent_errors(spore):
    handled.append(f"error from {spore.knowledge['agent_name']}: {spore.knowledge['error']}")


handled = []
start_agents(risky_processor, initial_data={"type": "risky_operation"})
print(f"retried {len(calls) - 1} times, attempts: {len(calls)}")
start_agents(broken, handle_agent_errors, initial_data={"type": "hopeless"})
print(handled[0])
