"""The team: five agents that speak only through spores.

::

    librarian --catalogue--> everybody
    librarian --file--> reader x4 --facts--> linker --proposals--> skeptic --verdicts--> editor
                        reader x4 --summary------------------------------------------> editor

Each agent owns what it remembers; nothing is shared. The catalogue is the first spore that any
of them hears, so each knows the names of all files before it hears about one.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from praval import AgentDefinition, Spore, achat, agent, broadcast
from praval.demo.editor import HTML_NAME, MARKDOWN_NAME, Circumstances, Editor, write_report
from praval.demo.evidence import Skeptic
from praval.demo.links import Linker, Proposal
from praval.demo.reading import Facts, Vocabulary, observe
from praval.demo.report import Finding
from praval.demo.sources import Catalogue, Source, decode, find_sources, read_source
from praval.demo.summaries import ANSWER_TOKENS, Digest, digest
from praval.demo.voice import Ask, Voice
from praval.errors import ConfigurationError

READERS = 4
"""Files read at once. A model on two cores gains little from more."""
NOTHING = Catalogue("nothing", "", [], [], [])
IDENTITY = "You describe files in one short, plain sentence."


def make_team(
    out: Path, *, use_model: bool = True, provider: str | None = None, model: str | None = None
) -> list[AgentDefinition]:
    """Return the agents for one job; they may run in one Reef, once.

    Args:
        out: the folder that the editor writes into.
        use_model: ask a model for summaries.
        provider, model: which one; None: the configured default.
    """
    return [
        _librarian(out),
        _reader(use_model, provider, model),
        _linker(),
        _skeptic(),
        _editor(out),
    ]


def _librarian(out: Path) -> AgentDefinition:
    @agent("librarian", responds_to=["job"])
    def librarian(spore: Spore) -> dict[str, Any]:
        """List the files, tell everybody, and hand them out one by one."""
        ours = [out.resolve() / name for name in (MARKDOWN_NAME, HTML_NAME)]
        try:
            catalogue = find_sources(Path(spore.knowledge["path"]), leave_out=ours)
        except ConfigurationError as error:
            return {"problem": str(error)}
        broadcast({"type": "catalogue", "catalogue": _plain(catalogue)}, priority=10)
        for source in catalogue.sources:
            broadcast({"type": "file", "root": catalogue.root, "source": _plain(source)})
        return {"files": len(catalogue.sources), "title": catalogue.title}

    return librarian


def _reader(use_model: bool, provider: str | None, model: str | None) -> AgentDefinition:
    ask: Ask = partial(achat, max_tokens=ANSWER_TOKENS, temperature=0.0)
    voice = Voice(
        ask if use_model else None,
        given_up=lambda why: broadcast({"type": "no_model", "why": why}),
    )
    known = Vocabulary([])

    @agent(
        "reader",
        responds_to=["catalogue", "file"],
        concurrent=READERS,
        system_message=IDENTITY,
        provider=provider,
        model=model,
    )
    async def reader(spore: Spore) -> dict[str, Any] | None:
        """Report what a file mentions, then what it is for."""
        nonlocal known
        if spore.type == "catalogue":
            catalogue = _catalogue(spore)
            known = Vocabulary((s.name for s in catalogue.sources), catalogue.package)
            return None
        source = msgspec.convert(spore.knowledge["source"], Source)
        try:
            about, facts = await anyio.to_thread.run_sync(
                _study, Path(spore.knowledge["root"]), source, known
            )
        except OSError as error:
            return {"type": "unreadable", "name": source.name, "why": error.strerror or str(error)}
        broadcast({"type": "facts", "facts": _plain(facts)})
        summary = await voice.summarise(source, about)
        return {"type": "summary", "name": source.name, "summary": _plain(summary)}

    return reader


def _linker() -> AgentDefinition:
    known = Linker([])

    @agent("linker", responds_to=["catalogue", "facts"])
    async def linker(spore: Spore) -> dict[str, Any] | None:
        """Propose every dependency that the reported facts allow."""
        nonlocal known
        if spore.type == "catalogue":
            catalogue = _catalogue(spore)
            known = Linker((s.name for s in catalogue.sources), catalogue.package)
            return None
        facts = msgspec.convert(spore.knowledge["facts"], Facts)
        proposals = known.propose(facts)
        return {
            "type": "proposals",
            "source": facts.name,
            "proposals": _plain(proposals),
        }

    return linker


def _skeptic() -> AgentDefinition:
    known = Skeptic(NOTHING)

    @agent("skeptic", responds_to=["catalogue", "proposals"])
    def skeptic(spore: Spore) -> dict[str, Any] | None:
        """Look into the source itself for each proposed dependency."""
        nonlocal known
        if spore.type == "catalogue":
            known = Skeptic(_catalogue(spore))
            return None
        name: str = spore.knowledge["source"]
        proposals = msgspec.convert(spore.knowledge["proposals"], list[Proposal])
        verdicts = known.check(name, [proposal.target for proposal in proposals])
        findings = [
            Finding(name, verdict.target, proposal.why, verdict.line, verdict.reason)
            for proposal, verdict in zip(proposals, verdicts, strict=True)
        ]
        return {
            "type": "verdicts",
            "source": name,
            "verified": _plain([f for f, v in zip(findings, verdicts, strict=True) if v.verified]),
            "refuted": _plain(
                [f for f, v in zip(findings, verdicts, strict=True) if not v.verified]
            ),
        }

    return skeptic


def _editor(out: Path) -> AgentDefinition:
    notes = Editor()

    @agent(
        "editor",
        responds_to=[
            "catalogue", "facts", "summary", "verdicts", "unreadable", "no_model", "hand_in"
        ],
    )  # fmt: skip
    async def editor(spore: Spore) -> dict[str, Any] | None:
        """Collect what the others found; write the report when asked to hand it in."""
        if spore.type != "hand_in":
            notes.take(spore.type, spore.knowledge)
            return None
        report = notes.report(msgspec.convert(spore.knowledge["circumstances"], Circumstances))
        return await anyio.to_thread.run_sync(write_report, report, out)

    return editor


def _study(root: Path, source: Source, known: Vocabulary) -> tuple[Digest, Facts]:
    text, note = decode(read_source(root / source.name), source.kind)
    return digest(source.kind, text), observe(source, text, note, known)


def _catalogue(spore: Spore) -> Catalogue:
    return msgspec.convert(spore.knowledge["catalogue"], Catalogue)


def _plain(value: object) -> Any:
    """Return ``value`` as the dictionaries and lists that knowledge is made of."""
    return msgspec.to_builtins(value)
