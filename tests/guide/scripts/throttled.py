"""Guide, "Throttled agents": delayed, none dropped (600 a minute: each may begin at once here)."""
# prints: handled 25 of 25

from praval import agent, broadcast, start_agents, throttled_agent

handled = []


@throttled_agent("throttled_processor", max_calls_per_minute=600, responds_to=["call"])
def rate_limited_processor(spore):
    handled.append(spore.knowledge["n"])


@agent("caller", responds_to=["start"])
def caller(spore):
    for n in range(25):
        broadcast({"type": "call", "n": n})


start_agents(caller, rate_limited_processor, initial_data={"type": "start"})
print(f"handled {len(handled)} of 25")
