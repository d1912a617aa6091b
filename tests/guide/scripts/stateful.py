"""Guide, "Agent States and Context": state shared by the invocations of one agent."""
# prints: Processed 1 items so far
# prints: Processed 2 items so far
# prints: {'result': 'B', 'total_processed': 2}

from praval import agent, start_agents

context = {"processed_count": 0, "results": []}


@agent("stateful_processor", responds_to=["process_item"])
def stateful_agent(spore):
    result = spore.knowledge.get("item").upper()
    context["processed_count"] += 1
    context["results"].append(result)
    print(f"Processed {context['processed_count']} items so far")
    return {"result": result, "total_processed": context["processed_count"]}


for item in "ab":
    last = start_agents(stateful_agent, initial_data={"type": "process_item", "item": item})
print(dict(last))
