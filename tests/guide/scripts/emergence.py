"""Guide, Part IV: three simple agents in a chain, one of them hearing everything."""
# prints: <What insights emerge from: <What follows from: <What is seen in: sky>>>

import _models  # noqa: F401

from praval import agent, broadcast, chat, start_agents


@agent("observer")
def observe_environment(spore):
    if spore.type is not None:
        return None
    observations = chat(f"What is seen in: {spore.knowledge.get('input')}")
    broadcast({"type": "observations", "data": observations})
    return {"observations": observations}


@agent("reasoner", responds_to=["observations"])
def apply_reasoning(spore):
    reasoning = chat(f"What follows from: {spore.knowledge.get('data')}")
    broadcast({"type": "reasoning", "conclusions": reasoning})
    return {"reasoning": reasoning}


@agent("synthesizer", responds_to=["reasoning"])
def synthesize_understanding(spore):
    return {"insights": chat(f"What insights emerge from: {spore.knowledge.get('conclusions')}")}


result = start_agents(
    observe_environment, apply_reasoning, synthesize_understanding, initial_data={"input": "sky"}
)
print(result.by_agent["synthesizer"][0]["insights"])
