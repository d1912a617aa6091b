"""Guide, "Verify Installation"."""
# prints: Agent says: <Hello!>
# prints: Hello friend! Welcome.

import _models  # noqa: F401

from praval import Agent, chat
from praval import agent as agent_decorator

helper = Agent("test_agent", system_message="You are helpful.")
print(f"Agent says: {helper.chat('Hello!')}")
assert chat("x") == "<x>"


@agent_decorator("greeter")
def greet(spore):
    name = spore.knowledge.get("name", "friend")
    return f"Hello {name}! Welcome."


from praval import Spore

print(greet(Spore.create({})))
