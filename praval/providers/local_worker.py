"""The program of a local model's own process: loads a GGUF file and serves it on loopback.

It is run as a file by :mod:`praval.providers.local_server`, imports nothing of Praval, and speaks
two lines of JSON: it reads what to load from standard input and writes the address, or what went
wrong, to standard output. It ends when its standard input ends: with its parent, however that ends.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def main() -> None:
    """Serve one model until standard input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever an imported library prints is no answer
    config = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = config["path"]
    try:
        server = serve(config)
        answer = {"url": server.listening_address}
    except Exception as error:  # noqa: BLE001 - the parent raises it, whatever it is
        answer = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(answers, "wb") as stream:
        stream.write(json.dumps(answer).encode() + b"\n")
    # the log of single requests is of no use to anybody, and would fill the parent's file
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.stdin.buffer.read()
    # the orderly way out waits for generations that nobody will read
    os._exit(0)


def serve(config: dict[str, Any]) -> Any:
    """Start the HTTP server; it runs in native threads."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.port = 0
    params.api_keys = [config["key"]]
    params.n_parallel = config["slots"]
    params.n_ctx = config["slots"] * config["context"]
    params.verbosity = 1  # errors, while loading; they go into the message of the parent's error
    if config["threads"]:
        params.cpuparams.n_threads = config["threads"]
        params.cpuparams_batch.n_threads = config["threads"]
    # names that came and went between versions: no web page, no cache of gigabytes in memory
    for name, value in {"ui": False, "endpoint_slots": False, "cache_ram_mib": 0}.items():
        if hasattr(params, name):
            setattr(params, name, value)
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
