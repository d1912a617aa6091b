"""One sentence about a file: the question for a model, and the answer without one.

Both start from the same few lines (:func:`digest`), because a small model on a laptop reads a
few hundred tokens a second: the opening of the file and the names it defines say more, per
token, than the code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Literal

import msgspec
from markdown_it import MarkdownIt

from praval.demo.sources import Kind

Origin = Literal["model", "extracted"]

PROSE_CHARACTERS = 8_000
"""How far into a text its opening is looked for; keeps hostile input from costing seconds."""
OPENING_CHARACTERS = 400
NAMES = 8
SENTENCE_CHARACTERS = 240
ANSWER_TOKENS = 40
FEWEST_WORDS = 3
"""A shorter answer of a model says nothing about a file."""

_LITERAL = re.compile(
    r"""[rRuU]?(?:\"""(.*?)\"""|'''(.*?)'''|"([^"\n]+)"|'([^'\n]+)')""", re.DOTALL
)
_BEFORE_DOCSTRING = re.compile(r"(?:[ \t\f]*(?:#[^\n]*)?\n)*[ \t\f]*")
_DEFINITION = re.compile(r"^(?:class|(?:async[ \t]+)?def)[ \t]+(\w+)", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_INTERPRETER = re.compile(r"\A#![^\n]*")
_COMMENT = re.compile(r"^(?:#+|//+|;+|\*+|/\*+)\s+", re.MULTILINE)
_UNDERLINE = re.compile(r"[=\-~^*+#]{3,}")
_INLINE = {"softbreak": " ", "hardbreak": " ", "html_inline": ""}
_SENTENCE_END = re.compile(r"""[.!?][)"'\]]*(?=\s|$)""")
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "cf.", "vs.", "approx.", "resp.", "Mr.", "Dr.", "No.")
_INITIAL = re.compile(r"\b[A-Z]\.$")
_LEAD_IN = re.compile(
    r"(?:sure|certainly|of course|here is[^:]*|summary|answer)\s*[:!,.]\s*", re.IGNORECASE
)


class Digest(msgspec.Struct, frozen=True):
    """What a summary is made of: the heading and opening prose of a file, what it defines."""

    heading: str = ""
    opening: str = ""
    defines: list[str] = []
    empty: bool = False


class Summary(msgspec.Struct, frozen=True):
    """One sentence and who wrote it; ``note`` says why it was not the model, if it was asked."""

    sentence: str
    origin: Origin
    note: str = ""


def digest(kind: Kind, text: str) -> Digest:
    """Pick out of ``text`` what a summary can be made of."""
    if not text.strip():
        return Digest(empty=True)
    if kind == "python":
        start = _BEFORE_DOCSTRING.match(text)
        literal = _LITERAL.match(text, start.end() if start else 0)
        opening = next(filter(None, literal.groups()), "") if literal else ""
        return Digest("", _flat(opening)[:OPENING_CHARACTERS], _DEFINITION.findall(text))
    text = text[:PROSE_CHARACTERS]
    heading, opening = _markdown(text) if kind == "markdown" else _text(text)
    return Digest(heading[:OPENING_CHARACTERS], opening[:OPENING_CHARACTERS])


def question(name: str, kind: Kind, about: Digest) -> str:
    """Ask a model for one sentence about the file, in some 100 tokens."""
    what = {"python": "Python module", "markdown": "Markdown document", "text": "text"}[kind]
    lines = [f"File: {PurePosixPath(name).name} ({what})"]
    if about.heading:
        lines.append(f"Title: {about.heading}")
    if about.opening:
        lines.append(f"It begins: {about.opening}")
    if about.defines:
        lines.append(f"It defines: {_listed(about.defines)}")
    lines.append("Say in one short sentence what this file is for.")
    return "\n".join(lines)


def from_answer(answer: str) -> str:
    """Return the first sentence of a model's answer, or "" when there is none to speak of."""
    text = _markdown(answer[:PROSE_CHARACTERS])[1].strip("\"' ")
    lead_in = _LEAD_IN.match(text)
    sentence = first_sentence(text[lead_in.end() :] if lead_in else text)
    return sentence if len(sentence.split()) >= FEWEST_WORDS else ""


def extract(name: str, about: Digest) -> str:
    """Return one sentence about the file without a model: its own first, or what it defines."""
    if about.empty:
        return "An empty file."
    if about.opening or about.heading:
        return first_sentence(about.opening or about.heading)
    if about.defines:
        return f"Defines {_listed(about.defines)}."
    return f"{PurePosixPath(name).name} has no sentence of its own to quote."


def first_sentence(text: str) -> str:
    """Cut ``text`` after its first sentence, or at a word when that is very long."""
    text = _flat(text)
    for match in _SENTENCE_END.finditer(text):
        sentence = text[: match.end()]
        if not sentence.endswith(_ABBREVIATIONS) and not _INITIAL.search(sentence):
            text = sentence
            break
    if len(text) > SENTENCE_CHARACTERS:
        text = text[:SENTENCE_CHARACTERS].rsplit(" ", 1)[0].rstrip(",;:-") + " …"
    elif text and not _SENTENCE_END.search(text[-3:]):
        text = text.rstrip(",;:- ") + "."
    return text


def _markdown(text: str) -> tuple[str, str]:
    """Find the first heading and the first paragraph with a word in it, without markup."""
    found = {"heading_open": "", "paragraph_open": ""}
    tokens = MarkdownIt("commonmark").enable("table").parse(_FRONT_MATTER.sub("", text))
    for opener, inline in pairwise(tokens):
        if not found.get(opener.type, "done") and inline.children:
            words = (_INLINE.get(token.type, token.content) for token in inline.children)
            plain = _flat("".join(words))
            found[opener.type] = plain if re.search(r"\w", plain) else ""
    return found["heading_open"], found["paragraph_open"]


def _text(text: str) -> tuple[str, str]:
    """Find the first underlined heading and the first paragraph with a word in it."""
    heading = ""
    for paragraph in re.split(r"\n\s*\n", _INTERPRETER.sub("", text)):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1]):
            heading = heading or lines[0]
            lines = lines[2:]
        opening = _flat(_COMMENT.sub("", "\n".join(lines)))
        if re.search(r"\w", opening):
            return heading, opening
    return heading, ""


def _listed(names: Sequence[str]) -> str:
    public = [name for name in names if not name.startswith("_")] or names
    unique = list(dict.fromkeys(public))
    shown = unique[:NAMES]
    if len(unique) > NAMES:
        return f"{', '.join(shown)} and {len(unique) - NAMES} more"
    return ", ".join(shown[:-1]) + " and " + shown[-1] if len(shown) > 1 else shown[0]


def _flat(text: str) -> str:
    return " ".join(text.split())
