"""Guide, "Custom Provider Integration": a sync ``chat``, no ``super().__init__()``."""
# prints: custom-model-1: Hello

from praval import chat
from praval.providers import BaseProvider, register_provider


class CustomProvider(BaseProvider):
    def __init__(self, api_key, base_url):
        self.api_key = api_key
        self.base_url = base_url

    def chat(self, messages, model=None, **kwargs):
        response = self._make_request(messages, model, **kwargs)
        return response.get("content", "")

    def _make_request(self, messages, model, **kwargs):
        return {"content": f"{model or 'default-model'}: {messages[-1]['content']}"}

    def get_available_models(self):
        return ["custom-model-1", "custom-model-2"]


custom_provider = CustomProvider(api_key="k", base_url="https://models.example")
register_provider("custom", custom_provider)
print(chat("Hello", provider="custom", model="custom-model-1"))
