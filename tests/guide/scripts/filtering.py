"""Guide, "Message Filtering": a specialist hears its type, a generalist hears all."""
# prints: ['generalist', 'specialist']
# prints: ['generalist']

from praval import agent, start_agents


@agent("specialist", responds_to=["analyze_data"])
def data_specialist(spore):
    if spore.knowledge.get("type") == "analyze_data":
        return {"by": "specialist"}


@agent("generalist")
def general_agent(spore):
    return {"by": "generalist"}


for kind in ("analyze_data", "other"):
    result = start_agents(data_specialist, general_agent, initial_data={"type": kind})
    print(sorted(result.by_agent))
