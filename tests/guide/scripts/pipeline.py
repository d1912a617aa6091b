"""Guide, "Agent Pipelines"."""
# prints: {'type': 'report_ready', 'report': 'CLEAN!'}

from praval import agent, agent_pipeline


@agent("input_processor", responds_to=["raw_input"])
def process_input(spore):
    return {"type": "cleaned_data", "data": spore.knowledge["data"].strip()}


@agent("data_analyzer", responds_to=["cleaned_data"])
def analyze_data(spore):
    return {"type": "analysis_complete", "results": spore.knowledge["data"].upper()}


@agent("report_generator", responds_to=["analysis_complete"])
def generate_report(spore):
    return {"type": "report_ready", "report": f"{spore.knowledge['results']}!"}


pipeline = agent_pipeline(
    process_input, analyze_data, generate_report, pipeline_id="process_pipeline"
)
results = pipeline.run({"type": "raw_input", "data": " clean "})
print(dict(results))
