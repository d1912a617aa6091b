"""One sentence per file: cut out of the file itself, or out of a model's answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from praval.demo.sources import Kind, Source
from praval.demo.summaries import (
    OPENING_CHARACTERS,
    SENTENCE_CHARACTERS,
    digest,
    extract,
    first_sentence,
    from_answer,
    question,
)
from praval.demo.voice import GIVE_UP_AFTER, Voice
from praval.errors import NoModelError, ProviderError


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ("Uses e.g. sockets. Two.", "Uses e.g. sockets."),
        ("Version 3.11 of asyncio.run is new! Yes.", "Version 3.11 of asyncio.run is new!"),
        ("By J. R. Writer, for all. Two.", "By J. R. Writer, for all."),
        ("(See it.) Two.", "(See it.)"),
        ("no end", "no end."),
        ("a list:", "a list."),
        ("  spread\n over   lines. x", "spread over lines."),
        ("", ""),
    ],
)
def test_the_first_sentence(text: str, sentence: str) -> None:
    """Abbreviations, initials and numbers do not end it; a missing full stop is added."""
    assert first_sentence(text) == sentence


@given(st.text())
def test_a_sentence_is_one_short_line(text: str) -> None:
    """Whatever comes in, what goes out is one line of bounded length."""
    sentence = first_sentence(text)
    assert len(sentence) <= SENTENCE_CHARACTERS + 2
    assert sentence == " ".join(sentence.split())


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        ("python", '#!/usr/bin/python\n# note\n\n"""Doc string. More."""\n', "Doc string."),
        ("python", "r'''Raw\ndoc'''\nx = 1", "Raw doc."),
        ("python", '"Short doc"', "Short doc."),
        ("python", "import os\n\nclass A: pass\nasync def b(): pass\ndef _c(): pass\n",
         "Defines A and b."),
        ("python", "def only(): pass", "Defines only."),
        ("python", "x = 1\n'''not a docstring'''", "f.py has no sentence of its own to quote."),
        ("python", '"""unclosed', "f.py has no sentence of its own to quote."),
        ("python", "def broken(:\n", "Defines broken."),
        ("python", " \n\n", "An empty file."),
        ("markdown", "---\nt: x\n---\n# Title\n\nSome **bold** [link](x.md) `code`. More.",
         "Some bold link code."),
        ("markdown", "# Only a *title*\n", "Only a title."),
        ("markdown", "<!-- note -->\n| a |\n|---|\n| b |\n\n- first item\n- second", "first item."),
        ("markdown", "```\ncode\n```\n\nProse <b>here</b>.", "Prose here."),
        ("text", "Title\n=====\n\nThe prose. More.", "The prose."),
        ("text", "#!/bin/sh\n# Makes things.\n# More of it.\necho", "Makes things."),
        ("text", "***\n\n!!!\n", "f.py has no sentence of its own to quote."),
    ],
)  # fmt: skip
def test_extraction(kind: Kind, text: str, sentence: str) -> None:
    """Without a model, a file's own first sentence speaks for it, or what it defines."""
    assert extract("f.py", digest(kind, text)) == sentence


@given(st.sampled_from(["python", "markdown", "text"]), st.text())
def test_any_text_has_a_digest_and_a_summary(kind: Kind, text: str) -> None:
    """Nothing that a file may hold upsets the summary; prompts stay short."""
    about = digest(kind, text)
    assert extract("f", about)
    assert len(question("f", kind, about)) < 2 * OPENING_CHARACTERS + 1000


def test_the_question_is_short_and_says_what_is_known() -> None:
    """A small model gets the name, the opening and a few names; not the code."""
    names = "\n".join(f"def function_{n}(): pass" for n in range(50))
    about = digest("python", f'"""Does one thing. {"x" * 5000}"""\n{names}')
    prompt = question("deep/in/m.py", "python", about)
    assert "m.py (Python module)" in prompt
    assert "deep" not in prompt
    assert "Does one thing." in prompt
    assert "function_7 and 42 more" in prompt
    assert len(prompt) < 900


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("It runs tasks. It also waits.", "It runs tasks."),
        ("Sure! It runs the tasks", "It runs the tasks."),
        ('"It runs the tasks."', "It runs the tasks."),
        ("**This file** runs `tasks`.\n\nMore.", "This file runs tasks."),
        ("Here is the sentence: It runs the tasks.", "It runs the tasks."),
        ("# Heading\n\nIt runs the tasks.", "It runs the tasks."),
        ("", ""),
        ("Yes.", ""),
        ("```\ncode\n```", ""),
        ("\n\n \n", ""),
    ],
)
def test_the_first_sentence_of_an_answer(answer: str, sentence: str) -> None:
    """Markup, quotes and politeness go; an answer that says nothing counts as none."""
    assert from_answer(answer) == sentence


SOURCE = Source("m.py", "python", 10)
ABOUT = digest("python", '"""Quoted from the file."""')


async def test_the_model_has_the_word() -> None:
    """A usable answer becomes the summary and is marked as the model's."""

    async def ask(prompt: str) -> str:
        assert "m.py" in prompt
        return "It does one thing. And another."

    summary = await Voice(ask, given_up=list).summarise(SOURCE, ABOUT)
    assert (summary.sentence, summary.origin, summary.note) == ("It does one thing.", "model", "")


async def test_without_a_model_nothing_is_asked() -> None:
    """In extractive mode the summary is quoted, without a note."""
    summary = await Voice(None, given_up=list).summarise(SOURCE, ABOUT)
    assert (summary.sentence, summary.origin, summary.note) == (
        "Quoted from the file.", "extracted", "",
    )  # fmt: skip


async def test_an_empty_file_is_not_put_to_the_model() -> None:
    """There is nothing to ask about."""

    async def ask(prompt: str) -> str:
        raise AssertionError(prompt)

    summary = await Voice(ask, given_up=list).summarise(SOURCE, digest("text", "\n"))
    assert summary.sentence == "An empty file."


async def test_no_model_is_said_once() -> None:
    """The first question tells; the others are not asked."""
    asked, given_up = [], []

    async def ask(prompt: str) -> str:
        asked.append(prompt)
        raise NoModelError("There is none: install one.")

    voice = Voice(ask, given_up=given_up.append)
    summaries = [await voice.summarise(SOURCE, ABOUT) for _ in range(3)]
    assert given_up == ["There is none: install one."]
    assert len(asked) == 1
    assert {(s.sentence, s.note) for s in summaries} == {("Quoted from the file.", "")}


async def test_failures_are_marked_and_enough_of_them_end_the_asking() -> None:
    """One failure marks one file; several in a row, with no success between, give up."""
    answers = iter(["bad", "good", *["bad"] * 10])
    given_up: list[str] = []

    async def ask(prompt: str) -> str:
        if next(answers) == "bad":
            raise ProviderError("the line is\ndead")
        return "It does one thing."

    voice = Voice(ask, given_up=given_up.append)
    summaries = [await voice.summarise(SOURCE, ABOUT) for _ in range(GIVE_UP_AFTER + 4)]
    notes = [summary.note for summary in summaries]
    failed = "the model failed: the line is dead"
    assert notes == [failed, "", *[failed] * GIVE_UP_AFTER, "", ""]
    assert len(given_up) == 1
    assert "failed 3 times in a row" in given_up[0]


async def test_an_answer_that_says_nothing_is_marked() -> None:
    """An empty answer is no summary, and no reason to stop asking."""

    async def ask(prompt: str) -> str:
        return "..."

    voice = Voice(ask, given_up=pytest.fail)
    for _ in range(GIVE_UP_AFTER + 1):
        summary = await voice.summarise(SOURCE, ABOUT)
        assert summary.note == "the model gave no sentence"
