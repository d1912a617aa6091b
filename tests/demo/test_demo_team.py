"""The team at work in a real Reef: what the report says, and that no spore goes missing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from demo_library import import_oracle, write_files

from praval import Reef, Spore, agent
from praval.demo.progress import Screen, Tidings
from praval.demo.run import Job, run
from praval.demo.sources import asyncio_folder
from praval.demo.team import READERS, make_team
from praval.errors import ConfigurationError, NoModelError, ProviderError
from praval.providers.base import Messages
from praval.testing import FunctionModel, ScriptedModel, use_model

ASYNCIO = asyncio_folder()
FILES = {
    "lib/__init__.py": '"""A small library."""\nfrom . import one\n',
    "lib/one.py": '"""The first module."""\nfrom .two import b\n',
    "lib/two.py": "def b(): ...\n",
    "lib/empty.py": "",
    "README.md": "# Library\n\nSee [one](lib/one.py), not two.py.\n",
    "notes.txt": "Remember README.md.\n",
}
EDGES = [
    ("README.md", "lib/one.py"),
    ("lib/__init__.py", "lib/one.py"),
    ("lib/one.py", "lib/two.py"),
    ("notes.txt", "README.md"),
]


class Notes(Screen):
    """A screen that keeps what it was shown."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.last = Tidings()

    def show(self, tidings: Tidings, line: tuple[str, str] | None) -> None:
        self.last = tidings
        if line:
            self.lines.append(line)

    def of(self, agent: str) -> list[str]:
        """What was said of one agent."""
        return [text for name, text in self.lines if name == agent]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with Python, Markdown, text and an empty file."""
    return write_files(tmp_path / "src", FILES)


async def work(folder: Path, tmp_path: Path, **options: Any) -> tuple[Any, Notes, str]:
    """Do a whole job; return the outcome, what was shown, and the report."""
    out = tmp_path / "out"
    out.mkdir()
    notes = Notes()
    outcome = await run(Job(path=folder, out=out, **options), notes)
    return outcome, notes, (out / "report.md").read_text()


async def test_the_report_of_a_mixed_folder(folder: Path, tmp_path: Path) -> None:
    """All files are summarised, all true dependencies verified, all spores handled."""
    outcome, notes, report = await work(folder, tmp_path, use_model=False)
    assert outcome.written["files"] == len(FILES)
    assert outcome.written["verified"] == len(EDGES)
    assert outcome.written["partial"] is False
    assert "- `lib/two.py` (1 line): Defines b. *[extracted]*" in report
    assert "`README.md` → `lib/two.py`" in report
    assert notes.last.total == notes.last.done == len(FILES)
    assert notes.last.verified == len(EDGES)
    assert outcome.ledger.balanced
    assert outcome.ledger.handled == outcome.ledger.deliveries
    assert (tmp_path / "out" / "report.html").exists()


async def test_asyncio_through_the_team_equals_its_syntax_trees(tmp_path: Path) -> None:
    """The acceptance of the whole: the edges that the agents verified are what ``ast`` finds."""
    heard: set[tuple[str, str]] = set()

    @agent("listener", responds_to=["verdicts"])
    async def listener(spore: Spore) -> None:
        heard.update((edge["source"], edge["target"]) for edge in spore.knowledge["verified"])

    async with Reef(*make_team(tmp_path, use_model=False), listener) as reef:
        await reef.request("librarian", {"type": "job", "path": str(ASYNCIO)}, timeout=60)
        await reef.wait_idle(timeout=60)
    assert heard == import_oracle(ASYNCIO)


async def test_the_models_words_are_marked(folder: Path, tmp_path: Path) -> None:
    """Every file but the empty one is put to the model, once, with a short prompt."""
    model = FunctionModel(lambda messages: "It does its part. Really.")
    with use_model(model):
        outcome, _, report = await work(folder, tmp_path, speaker="the test's")
    assert outcome.written["by_model"] == len(FILES) - 1
    assert len(model.calls) == len(FILES) - 1
    assert all(len(call.prompt) < 1000 for call in model.calls)
    assert all(call.options["max_tokens"] <= 40 for call in model.calls)
    assert report.count("It does its part. *[model]*") == len(FILES) - 1
    assert "5 of 6 summaries are the words of the model (the test's)" in report


async def test_files_are_read_concurrently(folder: Path, tmp_path: Path) -> None:
    """The model is asked about several files at once: none answers before all have asked."""
    all_asked = asyncio.Event()
    model: FunctionModel

    async def answer(messages: Messages) -> str:
        if len(model.calls) == READERS:
            all_asked.set()
        await all_asked.wait()
        return "It was asked about together with others."

    with use_model(model := FunctionModel(answer)):
        outcome, _, _ = await work(folder, tmp_path)
    assert outcome.written["by_model"] == len(FILES) - 1


async def test_without_a_model_it_is_said_once_and_files_are_quoted(
    folder: Path, tmp_path: Path
) -> None:
    """NoModelError is not a failure of the job."""
    model = ScriptedModel([NoModelError("There is none: install one.")], repeat_last=True)
    with use_model(model):
        outcome, notes, report = await work(folder, tmp_path)
    said = [line for line in notes.of("reader") if "NO MODEL" in line]
    assert len(said) == 1
    assert "There is none: install one." in said[0]
    assert outcome.written["by_model"] == 0
    assert not outcome.failures
    assert "No model was available" in report
    assert "The first module. *[extracted]*" in report


async def test_a_file_whose_model_call_fails_is_marked(folder: Path, tmp_path: Path) -> None:
    """The others keep the model's words; errors of a user's own provider count too."""

    def answer(messages: Messages) -> str:
        prompt = messages[-1]["content"]
        if "one.py" in prompt:
            raise ProviderError("the line is dead")
        if "notes.txt" in prompt:
            raise RuntimeError("an error of the provider's own")
        return "It does its part."

    with use_model(FunctionModel(answer)):
        outcome, _, report = await work(folder, tmp_path)
    assert outcome.written["by_model"] == len(FILES) - 3
    assert "The first module. *[extracted: the model failed: the line is dead]*" in report
    assert "the model failed: an error of the provider's own" in report
    assert not outcome.failures


async def test_a_file_that_vanishes_is_listed_as_skipped(folder: Path, tmp_path: Path) -> None:
    """Between the walk and the reading a file may go; the job goes on and says so."""
    write_files(folder, {f"a{n}.txt": "x" for n in range(READERS)})

    async def answer(messages: Messages) -> str:
        await asyncio.to_thread((folder / "notes.txt").unlink, missing_ok=True)
        return "It was read before the notes were gone."

    with use_model(FunctionModel(answer)):
        outcome, notes, report = await work(folder, tmp_path)
    assert "- `notes.txt`: cannot be read: No such file or directory" in report
    assert outcome.written["files"] == len(FILES) + READERS - 1
    assert outcome.written["partial"] is False
    assert notes.last.done == notes.last.total


async def test_nothing_to_read_is_told_to_the_caller(tmp_path: Path) -> None:
    """The librarian's finding comes back as the error it is, and no report is written."""
    with pytest.raises(ConfigurationError, match="no such file"):
        await work(tmp_path / "missing", tmp_path, use_model=False)
    assert not list((tmp_path / "out").iterdir())


async def test_two_jobs_side_by_side_do_not_mix(tmp_path: Path) -> None:
    """What an agent remembers belongs to its own team."""
    replies = await asyncio.gather(*(_side_by_side(tmp_path, name) for name in ("left", "right")))
    assert [reply["verified"] for reply in replies] == [8, 8]
    assert "right" not in (tmp_path / "left-out" / "report.md").read_text()


async def _side_by_side(tmp_path: Path, name: str) -> dict[str, Any]:
    root, out = tmp_path / name, tmp_path / f"{name}-out"
    write_files(root, {f"{name}{n}.txt": f"see {name}{n + 1}.txt" for n in range(9)})
    out.mkdir()
    circumstances = {"stopped": False, "seconds": 1.0, "model": "", "ledger": {}}
    async with Reef(*make_team(out, use_model=False)) as reef:
        await reef.request("librarian", {"type": "job", "path": str(root)}, timeout=30)
        await reef.wait_idle(timeout=30)
        hand_in = {"type": "hand_in", "circumstances": circumstances}
        return (await reef.request("editor", hand_in, timeout=30)).knowledge
