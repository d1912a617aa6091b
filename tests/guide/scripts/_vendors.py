"""Strict servers of the three vendors on this machine; their addresses and keys are set.

Each answers with its name and the model that it was asked for.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "providers"))

from dialects import Anthropic, Cohere, OpenAIChat

from praval.testing import Dialect, ModelServer, Reply, Request

logging.getLogger("asyncio").setLevel(logging.ERROR)  # a busy machine is slow, in debug mode too


def served(name: str, dialect: Dialect) -> ModelServer:
    class Named(ModelServer):
        def _refused(self, request: Request) -> Reply | None:
            refusal = super()._refused(request)
            said = f"{name}: {request.json.get('model')}" if refusal is None else ""
            return refusal or Reply([self.dialect.text(said)])

    server = Named(dialect, f"{name}-key").__enter__()
    atexit.register(server.stop)
    os.environ[f"{name.upper()}_BASE_URL"] = server.url
    os.environ[f"{name.upper()}_API_KEY"] = f"{name}-key"
    return server


openai = served("openai", OpenAIChat())
anthropic = served("anthropic", Anthropic())
cohere = served("cohere", Cohere())
