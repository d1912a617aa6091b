"""Guide, "Simple Chat Agent": an interactive loop that starts the agent for each input."""
# prints: Assistant: <User says one>
# prints: Assistant: <User says two>

import _models  # noqa: F401

from praval import agent, chat, start_agents


@agent("assistant")
def chat_agent(spore):
    user_message = spore.knowledge.get("message", "")
    if not user_message:
        return {"response": "Please provide a message."}
    return {"response": chat(f"User says {user_message}")}


for user_input in ("one", "two"):
    result = start_agents(chat_agent, initial_data={"message": user_input})
    if result and result.get("response"):
        print(f"Assistant: {result['response']}")
