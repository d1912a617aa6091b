"""Guide, "Conditional Agents": each runs only for the spores its condition admits."""
# prints: error_handled
# prints: success_logged

from datetime import datetime

from praval import conditional_agent, start_agents


@conditional_agent(
    "error_handler", condition=lambda spore: spore.knowledge.get("error") is not None
)
def handle_errors(spore):
    return {"type": "error_handled", "resolution": f"fixed {spore.knowledge['error']}"}


@conditional_agent(
    "success_handler", condition=lambda spore: spore.knowledge.get("status") == "success"
)
def handle_success(spore):
    return {"type": "success_logged", "timestamp": datetime.now()}


for data in ({"error": "disk"}, {"status": "success"}):
    result = start_agents(handle_errors, handle_success, initial_data=data)
    assert not result.errors
    print(result["type"])
