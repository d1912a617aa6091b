"""Sessions: start_agents, AgentSession and pipelines end when all that came of a spore is done."""

from __future__ import annotations

import asyncio
import threading

import pytest

from praval import (
    AgentSession,
    Outcome,
    Reason,
    Reef,
    Spore,
    agent,
    agent_pipeline,
    astart_agents,
    broadcast,
    get_agent_info,
    get_reef,
    get_registry,
    register_agent,
    start_agents,
)
from praval.core.session import run_tree
from praval.errors import (
    ConfigurationError,
    DuplicateAgentError,
    HandlerSignatureError,
    KnowledgeError,
    NoReefError,
    ReefError,
    RequestFailedError,
    RequestTimeoutError,
    UnknownAgentError,
)
from praval.testing import TestReef


def fan_out(width: int):
    """A root agent that emits ``width`` spores, and a leaf that returns each number."""

    @agent("root", responds_to=["go"])
    async def root(spore: Spore) -> dict[str, int]:
        for number in range(width):
            broadcast({"type": "leaf", "number": number})
        return {"emitted": width}

    @agent("leaf", responds_to=["leaf"])
    async def leaf(spore: Spore) -> dict[str, int]:
        await asyncio.sleep(1)
        return {"number": spore.knowledge["number"]}

    return root, leaf


async def test_a_session_ends_when_its_causal_tree_is_finished() -> None:
    """Every descendant is settled before the result is returned, sleeping handlers included."""
    root, leaf = fan_out(5)
    async with TestReef(root, leaf) as reef:
        result = await run_tree(reef, {"type": "go"})
        assert reef.pending == 0
    assert result["number"] == 4
    assert result.by_agent == {
        "root": [{"emitted": 5}],
        "leaf": [{"number": number} for number in range(5)],
    }
    assert [spore.type for spore in result.spores] == ["go", *["leaf"] * 5]
    assert (result.ledger.handled, result.ledger.balanced) == (6, True)
    assert not result.errors
    assert not result.timed_out


async def test_a_session_does_not_wait_for_other_trees() -> None:
    """A spore that somebody else published keeps nobody's session open."""

    @agent("slow", responds_to=["slow"])
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(1000)

    @agent("quick", responds_to=["quick"])
    async def quick(spore: Spore) -> dict[str, bool]:
        return {"done": True}

    async with TestReef(slow, quick) as reef:
        await reef.broadcast({"type": "slow"})
        result = await run_tree(reef, {"type": "quick"})
        assert result["done"]
        assert reef.elapsed < 1


async def test_a_time_out_gives_the_partial_result_and_cancels_the_rest() -> None:
    """What was done in time is in the result; what was not is counted cancelled."""
    root, leaf = fan_out(5)
    async with TestReef(root, leaf) as reef:
        result = await run_tree(reef, {"type": "go"}, timeout=2.5)
        assert result.timed_out
        assert result.by_agent["leaf"] == [{"number": 0}, {"number": 1}]
        assert result.ledger.cancelled == 3
        assert {failure.reason for failure in result.errors} == {Reason.STOPPED}
        await reef.settle()
        assert reef.ledger().balanced


@pytest.mark.parametrize("concurrent", [False, True])
async def test_max_iterations_bounds_the_handled_spores_exactly(concurrent: bool) -> None:
    """The tree stops without raising; what was running is finished, the rest is cancelled."""

    @agent("echo", concurrent=concurrent)
    async def echo(spore: Spore, reef: Reef) -> dict[str, int]:
        await reef.send("echo", {"type": "again"})
        await reef.send("echo", {"type": "again"})
        await asyncio.sleep(1)
        return {"n": 1}

    async with TestReef(echo) as reef:
        result = await run_tree(reef, {"type": "again"}, max_iterations=10)
        assert result.ledger.handled == 10
        assert len(result.by_agent["echo"]) == 10
        assert result.ledger.balanced
        assert result.ledger.pending == 0


async def test_an_agent_that_raises_ends_the_session_with_its_exception() -> None:
    """``on_error="raise"`` hands the handler's own exception to the caller."""

    @agent("strict", on_error="raise")
    async def strict(spore: Spore) -> None:
        raise ZeroDivisionError("told so")

    async with TestReef(strict) as reef:
        with pytest.raises(ZeroDivisionError, match="told so"):
            await run_tree(reef, {"type": "x"})
        assert reef.ledger().failed == 1


async def test_a_failure_is_in_the_errors_of_the_result() -> None:
    """By default a failed handler does not raise: it is listed with agent, spore and exception."""

    @agent("broken")
    async def broken(spore: Spore) -> None:
        raise ValueError("no")

    async with TestReef(broken) as reef:
        result = await run_tree(reef, {"type": "x"})
    (failure,) = result.errors
    assert (failure.agent, failure.outcome) == ("broken", Outcome.FAILED)
    assert isinstance(failure.error, ValueError)
    assert len(result) == 0


async def test_a_cancelled_session_cancels_its_tree() -> None:
    """Whoever waited is gone: the handlers of the tree are cancelled too."""
    ended = asyncio.Event()

    @agent("sleeper")
    async def sleeper(spore: Spore) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.set()

    async with TestReef(sleeper) as reef:
        session = asyncio.create_task(run_tree(reef, {"type": "x"}))
        await reef.timeline.rest()
        session.cancel()
        with pytest.raises(asyncio.CancelledError):
            await session
        await reef.settle()
        assert ended.is_set()
        assert reef.elapsed < 1
        assert reef.ledger().cancelled == 1


async def test_nobody_hears_the_initial_data() -> None:
    """A root spore without recipient finishes at once, counted undeliverable."""

    @agent("picky", responds_to=["other"])
    async def picky(spore: Spore) -> None:
        return None

    async with TestReef(picky) as reef:
        result = await run_tree(reef, {"type": "x"})
    assert not result
    assert result.ledger.undeliverable == 1


async def test_agents_stay_and_hear_later_broadcasts() -> None:
    """The default Reef of a loop outlives the session that started its agents."""
    heard: list[str] = []

    @agent("listener")
    async def listener(spore: Spore) -> None:
        heard.append(spore.knowledge["word"])

    await astart_agents(listener, initial_data={"word": "first"})
    reef = get_reef()
    await reef.broadcast({"word": "second"})
    await reef.wait_idle(5)
    assert heard == ["first", "second"]


async def test_a_channel_replaces_main_for_the_session() -> None:
    """Initial data, listening, and what handlers broadcast all go to the session's channel."""

    @agent("first", responds_to=["start"])
    async def first(spore: Spore) -> None:
        broadcast({"type": "next"})

    @agent("second", responds_to=["next"])
    async def second(spore: Spore) -> dict[str, str]:
        return {"channel": spore.channel}

    result = await astart_agents(first, second, initial_data={"type": "start"}, channel="lab")
    assert result["channel"] == "lab"


def test_sessions_of_several_threads_share_the_script_s_reef() -> None:
    """start_agents may be called from a pool of threads, each gets its own tree's result."""

    @agent("square", concurrent=True)
    def square(spore: Spore) -> dict[str, int]:
        return {"square": spore.knowledge["n"] ** 2}

    results: dict[int, int] = {}

    def work(n: int) -> None:
        results[n] = start_agents(square, initial_data={"n": n})["square"]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": True}, "max_iterations"),
        ({"max_iterations": 1.5}, "max_iterations"),
    ],
)
async def test_limits_must_be_above_zero(limits: dict[str, object], message: str) -> None:
    """A wrong limit is refused before anything is started or published."""
    root, _ = fan_out(1)
    with pytest.raises(ConfigurationError, match=message):
        await astart_agents(root, initial_data={"type": "go"}, **limits)  # type: ignore[arg-type]
    with pytest.raises(NoReefError):
        get_reef()


async def test_what_cannot_be_started_changes_nothing() -> None:
    """Data that cannot be sent, or a bad agent among good ones, leaves no agent behind."""
    root, _ = fan_out(1)

    @agent("root")
    async def impostor(spore: Spore) -> None:
        return None

    @agent("wants")
    async def wants(spore: Spore, magic: object) -> None:
        return None

    with pytest.raises(KnowledgeError, match="object"):
        await astart_agents(root, initial_data={"type": "go", "thing": object()})
    with pytest.raises(DuplicateAgentError, match="root"):
        await astart_agents(root, impostor)
    with pytest.raises(HandlerSignatureError, match="magic"):
        await astart_agents(root, wants)
    assert not get_reef().runners


async def test_a_session_inside_a_handler_does_not_wait_for_its_own_agent() -> None:
    """A handler may start agents; its own agent does not hear what it starts them with."""

    @agent("inner", responds_to=["question"])
    async def inner(spore: Spore) -> dict[str, int]:
        return {"answer": 42}

    @agent("outer")
    async def outer(spore: Spore) -> dict[str, int]:
        result = await astart_agents(inner, initial_data={"type": "question"}, timeout=5)
        assert not result.timed_out
        return {"answer": result["answer"] + 1}

    async with TestReef(outer) as reef:
        result = await run_tree(reef, {"type": "go"})
    assert result["answer"] == 43


# -- AgentSession ------------------------------------------------------------------------


def test_a_session_runs_from_a_plain_script() -> None:
    """add_agent, start, wait_for_completion: the guide's order."""
    root, leaf = quick_pair()
    session = AgentSession(session_id="desk", timeout=30)
    session.add_agent(root)
    session.add_agent(leaf)
    session.start(initial_data={"type": "go"})
    result = session.wait_for_completion()
    assert result["answer"] == 42
    assert not session.reef.running


def quick_pair():
    """Two agents of which the second answers."""

    @agent("asker", responds_to=["go"])
    def asker(spore: Spore) -> None:
        broadcast({"type": "leaf"})

    @agent("answerer", responds_to=["leaf"])
    async def answerer(spore: Spore) -> dict[str, int]:
        return {"answer": 42}

    return asker, answerer


async def test_a_session_is_an_async_context_manager() -> None:
    """Leaving the block closes what is left."""
    root, leaf = quick_pair()
    async with AgentSession() as session:
        session.add_agent(root)
        session.add_agent(leaf)
        await session.astart({"type": "go"})
        assert (await session.await_for_completion())["answer"] == 42
    async with AgentSession() as session:
        session.add_agent(root)
        await session.astart()
        assert session.reef.running
    assert not session.reef.running


async def test_a_session_refuses_misuse_in_words() -> None:
    """Each wrong order of calls is a ReefError that says what to do."""
    root, leaf = quick_pair()
    session = AgentSession(max_agents=1)
    with pytest.raises(ReefError, match="no agents"):
        await session.astart()
    with pytest.raises(ReefError, match="start"):
        await session.await_for_completion()
    session.add_agent(root)
    session.add_agent(root)  # the same one again takes no place
    with pytest.raises(ConfigurationError, match="max_agents=1"):
        session.add_agent(leaf)
    await session.astart()
    with pytest.raises(ReefError, match="before"):
        session.add_agent(leaf)
    with pytest.raises(ReefError, match="before"):
        await session.astart()
    await session.aclose()
    await session.aclose()


@pytest.mark.parametrize("limits", [{"timeout": 0}, {"max_agents": 0}, {"max_agents": "many"}])
def test_a_session_s_limits_must_be_above_zero(limits: dict[str, object]) -> None:
    """Checked when the session is made."""
    with pytest.raises(ConfigurationError, match=next(iter(limits))):
        AgentSession(**limits)  # type: ignore[arg-type]


# -- pipelines ---------------------------------------------------------------------------


def test_a_pipeline_is_positional() -> None:
    """Each stage gets what the one before returned, whatever types it responds to."""

    @agent("double", responds_to=["never sent"])
    def double(spore: Spore) -> dict[str, int]:
        return {"n": spore.knowledge["n"] * 2}

    @agent("report", responds_to=["other"])
    async def report(spore: Spore) -> str:
        return f"n is {spore.knowledge['n']}"

    result = agent_pipeline(double, report, pipeline_id="p").run({"n": 4})
    assert dict(result) == {"result": "n is 8"}
    assert result.by_agent == {"double": [{"n": 8}], "report": [{"result": "n is 8"}]}
    assert result.ledger.balanced


async def test_a_failing_stage_fails_the_pipeline_with_its_cause() -> None:
    """The stages after it do not run."""
    ran: list[str] = []

    @agent("breaks")
    async def breaks(spore: Spore) -> None:
        raise LookupError("gone")

    @agent("after")
    async def after(spore: Spore) -> None:
        ran.append("after")

    with pytest.raises(RequestFailedError, match="breaks") as caught:
        await agent_pipeline(breaks, after).arun({})
    assert isinstance(caught.value.__cause__, LookupError)
    assert not ran


async def test_a_pipeline_s_time_out_is_for_the_whole_run() -> None:
    """The time that one stage took is not given to the next."""

    @agent("hangs")
    async def hangs(spore: Spore) -> None:
        await asyncio.Event().wait()

    with pytest.raises(RequestTimeoutError):
        await agent_pipeline(hangs).arun({}, timeout=0.05)


def test_a_pipeline_needs_stages_with_names_of_their_own() -> None:
    """No stage, or two different ones of one name, is refused when it is made."""

    @agent("same")
    def one(spore: Spore) -> None:
        return None

    @agent("same")
    def two(spore: Spore) -> None:
        return None

    with pytest.raises(ConfigurationError, match="at least one"):
        agent_pipeline()
    with pytest.raises(DuplicateAgentError, match="same"):
        agent_pipeline(one, two)


# -- registry ----------------------------------------------------------------------------


async def test_the_registry_knows_agents_and_what_they_do() -> None:
    """Registered when decorated, active while a Reef runs them, seen when they handle."""

    @agent("known", responds_to=["x"])
    async def known(spore: Spore) -> None:
        return None

    assert get_agent_info("known")["status"] == "registered"
    async with Reef(known) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
        await asyncio.sleep(0)
        info = get_agent_info("known")
        assert (info["name"], info["status"]) == ("known", "active")
        assert info["last_seen"] is not None
        status = get_registry().get_status()
        assert status["active_agents"] == 1
        assert "main" in status["channels"]
    assert get_agent_info("known")["status"] == "registered"
    assert [entry["name"] for entry in get_registry().list_agents()] == ["known"]
    get_registry().unregister_agent("known")
    with pytest.raises(UnknownAgentError, match="known"):
        get_agent_info("known")


def test_a_function_can_be_registered_under_another_name() -> None:
    """register_agent makes an agent of it; the last one of a name wins."""

    def handler(spore: Spore) -> int:
        return 1

    register_agent(handler, name="custom")
    registered = get_registry().get_agent("custom")
    assert registered.name == "custom"
    with pytest.raises(UnknownAgentError, match='Did you mean "custom"'):
        get_registry().get_agent("custon")


async def test_a_session_that_ends_before_a_retry_still_tells_why_it_was_due() -> None:
    """The failure behind a retry that never came is in the errors of the result."""

    @agent("flaky", retries=5, backoff=100)
    async def flaky(spore: Spore) -> None:
        raise ValueError("the real reason")

    async with TestReef(flaky) as reef:
        result = await run_tree(reef, {"type": "x"}, timeout=1)
    (failure,) = result.errors
    assert failure.reason is Reason.STOPPED
    assert "the real reason" in str(failure)
