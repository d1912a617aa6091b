"""Guide, "Asynchronous Processing": model calls gathered inside an async handler."""
# prints: {'processed': 3, 'results': ['<Process a>', '<Process b>', '<Process c>']}

import asyncio

import _models  # noqa: F401

from praval import achat, agent, broadcast, start_agents


@agent("async_processor", responds_to=["async_task"])
async def async_processor(spore):
    results = await asyncio.gather(
        *[achat(f"Process {task}") for task in spore.knowledge.get("tasks", [])]
    )
    broadcast({"type": "async_processing_complete", "results": results})
    return {"processed": len(results), "results": results}


data = {"type": "async_task", "tasks": list("abc")}
print(dict(start_agents(async_processor, initial_data=data)))
