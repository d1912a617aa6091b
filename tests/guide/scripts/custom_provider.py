"""Guide, "Custom Provider Integration": a sync ``chat``, no ``super().__init__()``."""
# prints: custom-model-1: Hello
# prints: ['custom-model-1', 'custom-model-2']

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

from praval import chat
from praval.providers import BaseProvider, get_provider, register_provider


class CustomProvider(BaseProvider):
    """Custom LLM provider implementation."""

    def __init__(self, api_key, base_url):
        self.api_key = api_key
        self.base_url = base_url

    def chat(self, messages, model=None, **kwargs):
        """Implement chat completion."""
        # Custom provider API call
        response = self._make_request(messages, model, **kwargs)
        return response.get("content", "")

    def _make_request(self, messages, model, **kwargs):
        """Make API request to custom provider."""
        import requests

        payload = {"messages": messages, "model": model or "default-model", **kwargs}

        response = requests.post(
            f"{self.base_url}/chat/completions",
            headers={"Authorization": f"Bearer {self.api_key}"},
            json=payload,
            timeout=60,
        )

        return response.json()

    def get_available_models(self):
        """Return list of available models."""
        return ["custom-model-1", "custom-model-2"]


class Handler(BaseHTTPRequestHandler):
    """The custom provider's server."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/chat/completions"
        assert self.headers["Authorization"] == "Bearer your_custom_key"
        said = {"content": f"{asked['model']}: {asked['messages'][-1]['content']}"}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


with HTTPServer(("127.0.0.1", 0), Handler) as server:
    Thread(target=server.serve_forever, daemon=True).start()

    # Register custom provider
    custom_provider = CustomProvider(
        api_key="your_custom_key", base_url=f"http://127.0.0.1:{server.server_port}"
    )

    register_provider("custom", custom_provider)

    # Use custom provider
    response = chat("Hello", provider="custom", model="custom-model-1")
    print(response)
    server.shutdown()
print(get_provider("custom").get_available_models())
