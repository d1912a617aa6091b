"""Guide, "Agent-to-Agent Communication": a target in the data."""
# prints: Received: Hello specific agent

from praval import agent, broadcast, start_agents


@agent("sender", responds_to=["start"])
def send_message(spore):
    broadcast(
        {"type": "direct_message", "content": "Hello specific agent", "target_agent": "receiver"}
    )


@agent("receiver", responds_to=["direct_message"])
def receive_message(spore):
    if spore.knowledge.get("target_agent") == "receiver":
        print(f"Received: {spore.knowledge.get('content')}")


@agent("bystander")
def bystander(spore):
    assert spore.type != "direct_message"


result = start_agents(send_message, receive_message, bystander, initial_data={"type": "start"})
assert not result.errors
