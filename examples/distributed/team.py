"""A team that knows nothing of hosts and brokers: it only speaks by spores.

::

    somebody --job--> reader --page--> summariser --summary--> editor --report--> whoever listens
                      reader --catalogue---------------------> editor

Each agent may run on a host of its own, and on several: hosts with an agent of one name share its
work. The functions are the same on every transport, and without one.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from praval import Spore, agent, broadcast
from praval.demo.sources import decode, find_sources, read_source
from praval.demo.summaries import digest, extract

OPENING = 8_000
"""Characters of a file that travel: its summary is made of its beginning."""


def host() -> str:
    """Say where this process runs."""
    return f"{socket.gethostname()}:{os.getpid()}"


@agent("reader", responds_to=["job"])
def reader(spore: Spore) -> dict[str, Any]:
    """Find the files of a folder and hand them out, one by one."""
    job = spore.knowledge
    found = find_sources(Path(job["folder"]))
    for source in found.sources:
        text, _ = decode(read_source(Path(found.root) / source.name), source.kind)
        page = {"name": source.name, "kind": source.kind, "text": text[:OPENING]}
        broadcast({"type": "page", "job": job["id"], "pace": job["pace"], **page}, "pages")
    files = [source.name for source in found.sources]
    return {"type": "catalogue", "job": job["id"], "files": files, "by": host()}


@agent("summariser", channel="pages", responds_to=["page"])
async def summariser(spore: Spore) -> dict[str, Any]:
    """Say in a sentence what a file is for: by rules, but as slowly as a model would."""
    page = spore.knowledge
    sentence = extract(page["name"], digest(page["kind"], page["text"]))
    await asyncio.sleep(page["pace"])
    summary = {"name": page["name"], "sentence": sentence}
    return {"type": "summary", "job": page["job"], "by": host(), **summary}


_files: dict[str, list[str]] = {}
_sentences: dict[str, dict[str, str]] = {}


@agent("editor", responds_to=["catalogue", "summary"])
async def editor(spore: Spore) -> dict[str, Any] | None:
    """Collect the summaries of a job, in whatever order they come; report when none is missing."""
    said = spore.knowledge
    job = said["job"]
    sentences = _sentences.setdefault(job, {})
    if said["type"] == "catalogue":
        _files[job] = said["files"]
    else:
        sentences[said["name"]] = said["sentence"]
    if job not in _files or len(sentences) < len(_files[job]):
        return None
    report = [f"{name}: {sentences[name]}" for name in _files.pop(job)]
    del _sentences[job]
    return {"type": "report", "job": job, "lines": report, "by": host()}
