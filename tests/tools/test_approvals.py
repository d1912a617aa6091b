"""Guarded tools: a call waits for a human, over restarts, and is made at most once per consent."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from praval import Reef, Spore, achat, agent, tool
from praval.cli.app import app
from praval.errors import ApprovalError
from praval.tools import Approval, Approvals, approvals

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "POLL", 0.01)


async def question() -> Approval:
    """Wait for the one question that is asked."""
    (found,) = await questions(1)
    return found


async def questions(number: int, file: Approvals | None = None) -> list[Approval]:
    """Wait for so many questions."""
    async with asyncio.timeout(PATIENCE):
        while len(pending := await (file or Approvals()).pending()) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return pending


@pytest.fixture
def paid() -> list[int]:
    """What the guarded tool ``pay`` was called with."""
    calls: list[int] = []

    @tool(requires_approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        calls.append(amount)
        if amount > 100:
            raise ValueError("too much")
        return f"{amount} paid"

    return calls


async def test_a_call_waits_until_a_human_agrees(caller: Any, paid: list[int]) -> None:
    """Nothing is called before; the question says who wants what."""
    model = caller([("pay", '{"amount": 5}')], "Done.")
    asking = asyncio.create_task(achat("Go.", provider="caller", tools=["pay"]))
    asked = await question()
    assert (asked.tool, asked.arguments, asked.state) == ("pay", '{"amount": 5}', "pending")
    assert not paid
    await Approvals().approve(asked.id, by="Ada", note="fine")
    assert await asking == "Done."
    assert (paid, model.results) == ([5], [("5 paid", False)])
    kept = await Approvals().get(asked.id)
    assert (kept.state, kept.result, kept.decided_by, kept.note) == (
        "done",
        "5 paid",
        "Ada",
        "fine",
    )


async def test_a_denial_is_told_to_the_model_with_its_reason(caller: Any, paid: list[int]) -> None:
    """The tool is not called; the model may go on otherwise."""
    model = caller([("pay", '{"amount": 5}')], "A pity.")
    asking = asyncio.create_task(achat("Go.", provider="caller", tools=["pay"]))
    await Approvals().deny((await question()).id, note="Not today.")
    assert await asking == "A pity."
    assert not paid
    assert model.results == [("A human refused this call. Not today.", True)]


async def test_a_failure_of_an_approved_call_is_told_and_kept(caller: Any, paid: list[int]) -> None:
    """It was made: consent is used up."""
    model = caller([("pay", '{"amount": 500}')], "A pity.")
    asking = asyncio.create_task(achat("Go.", provider="caller", tools=["pay"]))
    asked = await question()
    await Approvals().approve(asked.id)
    await asking
    assert model.results == [("ValueError: too much", True)]
    assert (await Approvals().get(asked.id)).state == "failed"


async def test_other_calls_of_the_round_do_not_wait(caller: Any, paid: list[int]) -> None:
    """Only what is guarded is asked for."""
    caller([("pay", '{"amount": 5}'), ("look", "{}")], "Done.")
    looked = asyncio.Event()

    async def look() -> None:
        looked.set()

    asking = asyncio.create_task(achat("Go.", provider="caller", tools=["pay", look]))
    asked = await question()
    await asyncio.wait_for(looked.wait(), PATIENCE)
    await Approvals().approve(asked.id)
    assert await asking == "Done."


async def test_consent_is_for_one_call_only(caller: Any, paid: list[int]) -> None:
    """The same question later, in the same conversation of the same name, is a new one."""
    for number in (1, 2):
        caller([("pay", '{"amount": 5}')], "Done.")
        asking = asyncio.create_task(
            achat("Go.", provider="caller", tools=["pay"], history="with Ada")
        )
        await Approvals().approve((await question()).id)
        await asking
        assert len(paid) == number


async def test_a_retry_of_a_handler_uses_the_answer_that_was_given(
    caller: Any, paid: list[int]
) -> None:
    """The handler failed after the call: it is not asked for, nor made, again."""
    model = caller([("pay", '{"amount": 5}')], "Done.", [("pay", '{"amount": 5}')], "Done again.")
    said: list[str] = []

    @agent("clerk", provider="caller", tools=["pay"], retries=1, backoff=0)
    async def clerk(spore: Spore) -> None:
        said.append(await achat("Go."))
        if spore.attempt == 1:
            raise OSError("afterwards")

    async with Reef(clerk) as reef:
        await reef.broadcast({"type": "x"})
        await Approvals().approve((await question()).id)
        await reef.wait_idle(PATIENCE)
    assert (paid, said) == ([5], ["Done.", "Done again."])
    assert model.results == [("5 paid", False)]


async def test_a_cancelled_wait_leaves_the_question_and_the_next_run_goes_on(
    caller: Any, paid: list[int]
) -> None:
    """As a restart does: the model is not asked again, nor the human."""
    model = caller([("pay", '{"amount": 5}')], "Done.")

    def ask() -> asyncio.Task[Any]:
        call = achat("Go.", provider="caller", tools=["pay"], history="bill 7")
        return asyncio.create_task(call)

    asking = ask()
    asked = await question()
    asking.cancel()
    await asyncio.wait([asking])
    await Approvals().approve(asked.id)
    assert await ask() == "Done."
    assert (paid, len(model.requests)) == ([5], 2)


async def test_a_question_is_withdrawn_when_nobody_can_come_back_for_its_answer(
    caller: Any, paid: list[int]
) -> None:
    """A call outside of handlers and conversations has no name under which it could go on."""
    caller([("pay", '{"amount": 5}')], "Done.")
    asking = asyncio.create_task(achat("Go.", provider="caller", tools=["pay"]))
    asked = await question()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert await Approvals().pending() == []
    with pytest.raises(ApprovalError, match="Nobody waits"):
        await Approvals().approve(asked.id)


async def test_a_call_that_was_made_before_the_process_died_is_not_made_again(
    caller: Any, paid: list[int]
) -> None:
    """Its result was written: the model gets that."""
    model = caller([("pay", '{"amount": 5}')], "Done.")
    asking = asyncio.create_task(achat("Go.", provider="caller", tools=["pay"], history="bill 7"))
    asked = await question()
    asking.cancel()
    await asyncio.wait([asking])
    await Approvals().approve(asked.id)
    await Approvals().record(asked.id, "5 paid yesterday", failed=False)
    await achat("Go.", provider="caller", tools=["pay"], history="bill 7")
    assert (paid, model.results) == ([], [("5 paid yesterday", False)])


async def test_a_call_that_was_cut_off_while_it_ran_is_asked_for_again(caller: Any) -> None:
    """It may have been made: only a human can know, and is told so."""
    model = caller([("wire", '{"amount": 5}')], "Done.")
    begun, wired = asyncio.Event(), []

    @tool(requires_approval=True)
    async def wire(amount: int) -> str:
        """Pay slowly."""
        wired.append(amount)
        begun.set()
        if len(wired) == 1:
            await asyncio.Event().wait()
        return "wired"

    def ask() -> asyncio.Task[Any]:
        call = achat("Go.", provider="caller", tools=[wire], history="bill 7")
        return asyncio.create_task(call)

    asking = ask()
    asked = await question()
    await Approvals().approve(asked.id)
    await asyncio.wait_for(begun.wait(), PATIENCE)
    asking.cancel()
    await asyncio.wait([asking])
    assert (await Approvals().get(asked.id)).state == "begun"

    again = ask()
    doubtful = await question()
    assert doubtful.id == asked.id
    assert "may have been made" in (doubtful.note or "")
    assert len(wired) == 1
    await Approvals().approve(asked.id)
    assert await again == "Done."
    assert (wired, model.results) == ([5, 5], [("wired", False)])


# -- answering -------------------------------------------------------------------------------


async def test_a_question_is_answered_once(caller: Any, paid: list[int]) -> None:
    """The second answer is refused, and so is one to no question."""
    caller([("pay", '{"amount": 5}')], "Done.")
    asking = asyncio.create_task(achat("Go.", provider="caller", tools=["pay"]))
    asked = await question()
    await Approvals().approve(asked.id, by="Ada")
    with pytest.raises(ApprovalError, match="answered already by Ada"):
        await Approvals().deny(asked.id)
    with pytest.raises(ApprovalError, match="No question"):
        await Approvals().approve("nothing")
    await asking


def test_the_command_line_lists_approves_and_denies(caller: Any, paid: list[int]) -> None:
    """Everything a human needs; errors end with code 2."""
    caller([("pay", '{"amount": 5}'), ("pay", '{"amount": 6}')], "Done.")
    run = CliRunner()
    assert "Nothing waits" in run.invoke(app, ["approvals", "list"]).output

    async def ask() -> Any:
        return await achat("Go.", provider="caller", tools=["pay"])

    async def main() -> None:
        asking = asyncio.create_task(ask())
        pending = await questions(2)
        first, second = sorted(pending, key=lambda each: each.arguments)

        def answer() -> list[Any]:
            return [
                run.invoke(app, ["approvals", "list"]),
                run.invoke(app, ["approvals", "approve", first.id]),
                run.invoke(app, ["approvals", "deny", second.id, "--note", "no"]),
                run.invoke(app, ["approvals", "approve", second.id]),
            ]

        listed, approved, denied, again = await asyncio.to_thread(answer)
        assert first.id in listed.output
        assert "pay" in listed.output
        assert 'approved: pay {"amount": 5}' in approved.output
        assert 'denied: pay {"amount": 6}' in denied.output
        assert again.exit_code == 2
        assert await asking == "Done."

    asyncio.run(main())
    assert paid == [5]


async def test_a_question_cannot_make_itself_look_like_another(tmp_path: Path) -> None:
    """What a model wrote cannot move the cursor, nor turn the direction of writing."""
    file = tmp_path / "approvals.sqlite"
    arguments = '{"amount": 5000}\x1b[2K\r{"amount": 5}\u202e'
    (asked,) = await Approvals(file).pause("x", b"", [("1", "clerk", "pay", arguments)])

    def outputs() -> list[str]:
        commands = (["list"], ["approve", asked.id])
        return [
            CliRunner().invoke(app, ["approvals", *each, "--file", str(file)]).output
            for each in commands
        ]

    for output in await asyncio.to_thread(outputs):
        assert "pay" in output
        assert not {"\x1b", "\r", "\u202e"} & set(output)


async def test_many_questions_at_once_in_a_new_file_wait_for_one_another(tmp_path: Path) -> None:
    """Whoever comes first makes the file; none is told that it is locked."""
    file = Approvals(tmp_path / "new" / "approvals.sqlite")
    asked = await asyncio.gather(
        *(file.pause(f"s{n}", b"[]", [("1.0", None, "pay", "{}")]) for n in range(20))
    )
    assert len({each.id for (each,) in asked}) == 20
    assert len(await file.pending()) == 20


def test_only_the_user_can_read_the_file(tmp_path: Path) -> None:
    """Arguments may be confidential."""
    path = tmp_path / "a" / "approvals.sqlite"
    asyncio.run(Approvals(path).pending())
    assert path.stat().st_mode & 0o077 == 0


# -- restarts --------------------------------------------------------------------------------


def start(folder: Path, run: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("guarded_team.py"), folder / "journal", run],
        env={**os.environ, "PRAVAL_DATA_DIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for_question(folder: Path) -> Approval:
    (asked,) = asyncio.run(questions(1, Approvals(folder / "approvals.sqlite")))
    return asked


def test_a_killed_process_goes_on_where_it_waited(tmp_path: Path) -> None:
    """With a journal: the answer given meanwhile counts, and the model is not asked again."""
    first = start(tmp_path, "first")
    asked = wait_for_question(tmp_path)
    first.kill()
    assert first.communicate()[0].splitlines() == ["model []"]
    asyncio.run(Approvals(tmp_path / "approvals.sqlite").approve(asked.id))
    second = start(tmp_path, "second")
    said, _ = second.communicate(timeout=60)
    assert said.splitlines() == [
        "paid 5",
        "model ['5 paid']",
        "answer The clerk said: 5 paid",
    ]
    assert second.returncode == 0
