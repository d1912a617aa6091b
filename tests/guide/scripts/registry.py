"""Guide, "Registry Functions" and "Registry-Based Orchestration"."""
# prints: <Find concepts>
# prints: 3 agents: custom_name, domain_expert, worker
# prints: worker active, domain_expert registered
# prints: 1 cleared, 2 handled

import _models  # noqa: F401

from praval import (
    Agent,
    agent,
    get_agent_info,
    get_reef,
    get_registry,
    register_agent,
    start_agents,
)

domain_expert = Agent("domain_expert", system_message="You understand concepts deeply")
register_agent(domain_expert)


def plain(spore):
    return {"ok": True}


register_agent(plain, name="custom_name")


@agent("worker")
def worker(spore):
    return {"ok": True}


registry = get_registry()
print(registry.get_agent("domain_expert").chat("Find concepts"))
names = sorted(info["name"] for info in registry.list_agents())
print(f"{len(names)} agents: {', '.join(names)}")
start_agents(worker, initial_data={"n": 1})
states = [get_agent_info(name)["status"] for name in ("worker", "domain_expert")]
print(f"worker {states[0]}, domain_expert {states[1]}")
assert registry.get_status()["total_agents"] == 3
registry.unregister_agent("custom_name")
reef = get_reef()
reef.broadcast_to_channel("main", {"message": "data"})
reef.wait_for_completion(timeout=10)
assert reef.clear_channel("main") == 0
assert reef.health_check()["status"] == "healthy"
print(f"1 cleared, {reef.get_statistics()['handled']} handled")
