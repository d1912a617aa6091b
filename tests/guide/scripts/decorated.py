"""Guide, "Monitoring", "Caching Strategies", "Robust Error Handling", "Debug Mode": the decorators
that the guide defines are there to be imported."""
# prints: expensive: 1 call
# prints: risky: success after 2 attempts
# prints: metrics: monitored_agent success

import _models  # noqa: F401

from praval import (
    agent,
    cached_agent,
    chat,
    debug_agent,
    monitor_agent_performance,
    resilient_agent,
    start_agents,
)

calls = []


@agent("expensive_analyzer", responds_to=["complex_analysis"])
@cached_agent(cache_duration=1800)  # 30 minute cache
def expensive_analyzer(spore):
    """Agent with expensive operations that benefits from caching."""
    data = spore.knowledge.get("data")
    calls.append(1)
    analysis = chat(f"Perform complex analysis on: {data}")
    return {"analysis": analysis}


for _ in range(2):
    start_agents(expensive_analyzer, initial_data={"type": "complex_analysis", "data": "reefs"})
print(f"expensive: {len(calls)} call")

attempts = []


@agent("resilient_processor", responds_to=["risky_operation"])
@resilient_agent(max_retries=3, backoff_delay=0)
def risky_processor(spore):
    """Agent that might fail but is resilient."""
    data = spore.knowledge.get("data")
    attempts.append(1)
    if len(attempts) < 2:
        raise ValueError("Simulated processing error")
    result = chat(f"Process this carefully: {data}")
    return {"result": result, "status": "success"}


@agent("monitored_agent", responds_to=["monitored_task"])
@monitor_agent_performance
def monitored_agent(spore):
    """Agent with performance monitoring."""
    return {"result": "completed"}


@agent("debug_example", responds_to=["debug_test"])
@debug_agent
def debug_example(spore):
    """Example agent with debug information."""
    return {"result": chat(f"Process: {spore.knowledge.get('data')}")}


metrics = []


@agent("metrics_collector", responds_to=["agent_metrics"])
def collect_metrics(spore):
    """Collects and analyzes agent performance metrics."""
    metrics.append(spore.knowledge)


import logging

logging.disable()  # the failure is logged, as it should be
result = start_agents(risky_processor, initial_data={"type": "risky_operation"})
print(f"risky: {result['status']} after {len(attempts)} attempts")
start_agents(monitored_agent, collect_metrics, initial_data={"type": "monitored_task"})
print(f"metrics: {metrics[0]['agent_name']} {metrics[0]['status']}")
start_agents(debug_example, initial_data={"type": "debug_test", "data": "x"})
