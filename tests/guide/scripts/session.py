"""Guide, "Advanced Orchestration" and "Orchestration Functions": a managed session."""
# prints: {'report': '2 files'}

from praval import AgentSession, agent, broadcast


@agent("data_processor", responds_to=["batch_process"])
def data_processor(spore):
    broadcast({"type": "processed", "count": len(spore.knowledge["files"])})


@agent("data_analyzer", responds_to=["processed"])
async def data_analyzer(spore):
    return {"type": "analyzed", "count": spore.knowledge["count"]}


@agent("report_generator", responds_to=["analyzed"])
def report_generator(spore):
    return {"report": f"{spore.knowledge['count']} files"}


session = AgentSession(session_id="unique_session_id", timeout=300, max_agents=10)
session.add_agent(data_processor)
session.add_agent(data_analyzer)
session.add_agent(report_generator)
session.start(
    initial_data={"type": "batch_process", "files": ["a", "b"]}, timeout=300, max_iterations=100
)
results = session.wait_for_completion()
print(dict(results))
