"""Guide, "Scaling and Load Balancing": sessions started from a pool of threads."""
# prints: 5 batches, 50 items

from concurrent.futures import ThreadPoolExecutor

from praval import agent, broadcast, start_agents


@agent("scalable_processor", responds_to=["process_batch"])
def scalable_processor(spore):
    batch = spore.knowledge.get("batch", [])
    broadcast({"type": "batch_processed", "processed_count": len(batch)})
    return {"batch_id": spore.knowledge.get("batch_id"), "processed": len(batch)}


def process_batch(batch, batch_id):
    return start_agents(
        scalable_processor,
        initial_data={"type": "process_batch", "batch": batch, "batch_id": batch_id},
    )


with ThreadPoolExecutor(max_workers=5) as executor:
    futures = [executor.submit(process_batch, list(range(10)), f"batch_{i}") for i in range(5)]
    results = [future.result() for future in futures]
items = sum(result["processed"] for result in results)
print(f"{len({result['batch_id'] for result in results})} batches, {items} items")
