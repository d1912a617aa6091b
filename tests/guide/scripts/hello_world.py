"""Guide, "Hello World Agent"."""
# prints: {'greeting': '<Create a greeting for Alice>'}

import _models  # noqa: F401

from praval import agent, chat, start_agents


@agent("greeter", responds_to=["greeting"])
def hello_agent(spore):
    name = spore.knowledge.get("name", "friend")
    response = chat(f"Create a greeting for {name}")
    return {"greeting": response}


print(dict(start_agents(hello_agent, initial_data={"type": "greeting", "name": "Alice"})))
