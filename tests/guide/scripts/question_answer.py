"""Guide, "Question-Answer System": two agents, no sleeps."""
# prints: Questioner: <Ask about machine learning>
# prints: Answerer: <You are an expert on machine learning.>

import _models  # noqa: F401

from praval import agent, broadcast, chat, start_agents


@agent("questioner", responds_to=["start_conversation"])
def ask_questions(spore):
    topic = spore.knowledge.get("topic", "artificial intelligence")
    question = chat(f"Ask about {topic}")
    print(f"Questioner: {question}")
    broadcast({"type": "question_asked", "question": question, "topic": topic})
    return {"question": question}


@agent("answerer", responds_to=["question_asked"])
def provide_answers(spore):
    question = spore.knowledge.get("question", "")
    topic = spore.knowledge.get("topic", "")
    if not question:
        return
    answer = chat(f"""
    You are an expert on {topic}.
    Question: {question}
    """)
    print(f"Answerer: {answer}")
    broadcast({"type": "answer_provided", "question": question, "answer": answer})
    return {"answer": answer}


start_agents(
    ask_questions,
    provide_answers,
    initial_data={"type": "start_conversation", "topic": "machine learning"},
)
