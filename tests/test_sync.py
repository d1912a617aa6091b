"""The bridge between blocking code and event loops, seen from scripts, handlers and threads."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import praval
from praval import Agent, AgentSession, Pipeline, Reef, Spore, agent, agent_pipeline, broadcast
from praval.errors import BlockingCallError, NoReefError, ReefClosedError, RequestTimeoutError
from praval.sync import background_loop, blocking, has_background_loop, hop, in_thread, run_on

ROOT = Path(__file__).resolve().parent.parent


def script(code: str, **options: Any) -> subprocess.Popen[str]:
    """Start a plain script, in which warnings are errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def output(code: str) -> str:
    """Run a plain script to its end and return what it printed."""
    with script(code) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert not err
    return out


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., Any]]:
    """Return ``elsewhere(work)``: a future of running ``work()`` in another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda work: asyncio.wrap_future(pool.submit(work))


@agent("echo")
async def echo(spore: Spore) -> dict[str, Any]:
    return {"echo": spore.knowledge.get("n")}


# -- blocking calls on a loop ----------------------------------------------------------------


def started_session() -> AgentSession:
    session = AgentSession()
    session.add_agent(echo)
    return session


BLOCKING: dict[str, tuple[str, Callable[[], Any]]] = {
    "praval.chat": ("achat", lambda: praval.chat("hello")),
    "praval.start_agents": ("astart_agents", lambda: praval.start_agents(echo)),
    "praval.broadcast": ("abroadcast", lambda: broadcast({"n": 1})),
    "Agent.chat": ("achat", lambda: Agent("x").chat("hello")),
    "AgentDefinition.chat": ("achat", lambda: echo.chat("hello")),
    "AgentSession.start": ("astart", lambda: started_session().start({"n": 1})),
    "AgentSession.wait_for_completion": (
        "await_for_completion",
        lambda: started_session().wait_for_completion(),
    ),
    "Pipeline.run": ("arun", lambda: agent_pipeline(echo).run({"n": 1})),
    "Reef.broadcast_to_channel": (
        "abroadcast_to_channel",
        lambda: Reef(echo).broadcast_to_channel("main", {}),
    ),
    "Reef.wait_for_completion": ("await_for_completion", lambda: Reef(echo).wait_for_completion(1)),
    "Reef.shutdown": ("ashutdown", lambda: Reef(echo).shutdown()),
}
"""Every blocking function of the public API: its async twin, and a call of it."""


def twins() -> dict[str, str]:
    """Find the pairs ``x``/``ax`` of the public API: functions of the module and methods."""
    found = {}
    places: list[tuple[str, Any]] = [("praval", praval)]
    places += [(each.__name__, each) for each in vars(praval).values() if inspect.isclass(each)]
    for label, place in places:
        names = praval.__all__ if place is praval else dir(place)
        for name in names:
            twin = getattr(place, f"a{name}", None)
            if not name.startswith("_") and inspect.iscoroutinefunction(twin):
                found[f"{label}.{name}"] = f"a{name}"
    return found


def test_the_list_of_blocking_functions_is_complete() -> None:
    """Whoever adds a blocking function to the public API adds it to these tests."""
    assert {name: twin for name, (twin, _) in BLOCKING.items()} == twins()


@pytest.mark.parametrize("name", BLOCKING)
async def test_a_blocking_call_on_a_loop_names_its_twin(name: str) -> None:
    """It never blocks the loop and never returns a surprise coroutine."""
    twin, call = BLOCKING[name]
    short = name.partition(".")[2]
    with pytest.raises(BlockingCallError, match=rf"^{short}\(\) blocks.*`await {twin}\(\.\.\.\)`"):
        call()


@pytest.mark.parametrize("name", [name for name in BLOCKING if name != "praval.broadcast"])
async def test_a_blocking_call_in_a_coroutine_handler_names_its_twin(name: str) -> None:
    """The same inside a handler; only ``broadcast`` works there, because it does not block."""
    caught: list[BlockingCallError] = []

    @agent("careless")
    async def careless(spore: Spore) -> None:
        try:
            BLOCKING[name][1]()
        except BlockingCallError as error:
            caught.append(error)
            raise

    async with Reef(careless) as reef:
        await reef.broadcast({})
        await reef.wait_idle(5)
        assert reef.ledger().failed == 1
    assert f"await {BLOCKING[name][0]}(" in str(caught[0])


@pytest.mark.parametrize("name", BLOCKING)
def test_a_blocking_function_is_documented_and_is_no_coroutine_function(name: str) -> None:
    """It has its own name and says whose blocking form it is; tools do not take it for async."""
    owner, _, short = name.partition(".")
    place = praval if owner == "praval" else getattr(praval, owner)
    function = getattr(place, short)
    assert function.__name__ == short
    assert not inspect.iscoroutinefunction(function)
    assert function.__doc__
    assert "Blocking form of" in function.__doc__ or name == "praval.broadcast"


# -- run_on ----------------------------------------------------------------------------------


def test_run_on_returns_what_the_work_returns() -> None:
    """Results and exceptions come through as the same objects; context variables are visible."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")
    name.set("caller")
    thing, problem = object(), ValueError("no")

    async def work(fail: bool) -> tuple[object, str, int]:
        if fail:
            raise problem
        return thing, name.get(), threading.get_ident()

    result, seen, thread = run_on(background_loop(), work(False))
    assert result is thing
    assert seen == "caller"
    assert thread != threading.get_ident()
    with pytest.raises(ValueError, match="no") as caught:
        run_on(background_loop(), work(True))
    assert caught.value is problem


def closed_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop


def test_run_on_a_closed_loop_says_so() -> None:
    """The work is not left behind un-awaited, which would be a warning."""
    with pytest.raises(NoReefError, match="closed: start a new Reef"):
        run_on(closed_loop(), asyncio.sleep(0))


async def test_hop_to_a_closed_loop_says_so() -> None:
    """The same from async code."""
    with pytest.raises(NoReefError, match="closed: start a new Reef"):
        await hop(closed_loop(), asyncio.sleep(0))


def test_a_reef_whose_loop_is_gone_says_so() -> None:
    """After ``asyncio.run`` is over, its Reef is closed for every kind of caller."""

    async def main() -> Reef:
        async with Reef(echo) as reef:
            return reef

    reef = asyncio.run(main())
    with pytest.raises(NoReefError):
        reef.wait_for_completion(1)
    with pytest.raises(ReefClosedError):
        asyncio.run(reef.broadcast({}))
    with ThreadPoolExecutor(1) as pool, pytest.raises(ReefClosedError):
        pool.submit(asyncio.run, reef.broadcast({})).result(10)


def test_blocking_makes_a_function_of_its_twin() -> None:
    """Name, parameters and result are those of the twin."""

    async def aadd(first: int, second: int = 1) -> int:
        """Add two numbers."""
        await asyncio.sleep(0)
        return first + second

    add = blocking(aadd)
    assert add(2) == 3
    assert add(2, second=5) == 7
    assert add.__name__ == "add"
    assert "aadd" in (add.__doc__ or "")
    assert "Add two numbers." in (add.__doc__ or "")


# -- hop -------------------------------------------------------------------------------------


async def test_a_reef_may_be_used_from_another_loop(elsewhere: Callable[..., Any]) -> None:
    """Each async method travels to the Reef's loop and back with its result or its error."""
    async with Reef(echo) as reef:

        async def visit() -> list[Any]:
            receipt = await reef.broadcast({"n": 1})
            await reef.wait_idle(5)
            reply = await reef.request("echo", {"n": 2}, timeout=5)
            with pytest.raises(LookupError):
                await reef.send("nobody", {})
            return [receipt.recipients, reply.knowledge]

        assert await elsewhere(lambda: asyncio.run(visit())) == [1, {"echo": 2}]


async def test_asyncio_run_inside_a_plain_handler_works() -> None:
    """What the guide prints: a plain handler that runs async calls on a loop of its own."""

    @agent("plain")
    def plain(spore: Spore, reef: Reef) -> dict[str, Any]:
        async def ask() -> list[Any]:
            replies = await asyncio.gather(*(reef.request("echo", {"n": n}) for n in range(3)))
            await praval.abroadcast({"type": "note", "from": "inside"})
            return [reply.knowledge["echo"] for reply in replies]

        return {"replies": asyncio.run(ask()), "loop": reef.loop is not None}

    notes: list[Spore] = []

    @agent("noter", responds_to=["note"])
    async def noter(spore: Spore) -> None:
        notes.append(spore)

    async with Reef(plain, echo, noter) as reef:
        reply = await reef.request("plain", {}, timeout=5)
        assert reply.knowledge == {"replies": [0, 1, 2], "loop": True}
        await reef.wait_idle(5)
    assert notes[0].from_agent == "plain"


async def test_cancellation_travels_along(elsewhere: Callable[..., Any]) -> None:
    """Cancelling a call from another loop cancels it where it runs."""
    began, asked = asyncio.Event(), threading.Event()

    @agent("slow")
    async def slow(spore: Spore) -> None:
        began.set()
        asked.set()
        await asyncio.sleep(3600)

    async with Reef(slow) as reef:

        async def visit() -> bool:
            task = asyncio.create_task(reef.request("slow", {}, timeout=3600))
            await asyncio.to_thread(asked.wait, 10)
            assert len(reef.requests) == 1
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

        assert await elsewhere(lambda: asyncio.run(visit())) is True
        await asyncio.sleep(0)
        assert len(reef.requests) == 0
        reef.stop_tree(next(iter(reef.runners["slow"].workers)).posted.header.id)  # type: ignore[union-attr]
        with pytest.raises(RequestTimeoutError):
            await reef.request("slow", {}, timeout=0.001)
        await reef.aclose(drain=False)


async def test_in_thread_uses_the_reefs_threads_inside_a_handler() -> None:
    """A coroutine handler's blocking helper takes one of the Reef's slots."""
    names: list[str] = []

    @agent("reader")
    async def reader(spore: Spore) -> None:
        names.append(await in_thread(lambda: threading.current_thread().name))

    async with Reef(reader) as reef:
        await reef.broadcast({})
        await reef.wait_idle(5)
    assert names == ["praval-worker"]
    assert await in_thread(lambda: threading.current_thread().name) != "praval-worker"


async def test_start_agents_inside_a_plain_handler_runs_on_its_reef() -> None:
    """A blocking session inside a handler joins the handler's Reef, and finishes."""

    @agent("outer", responds_to=["outer"])
    def outer(spore: Spore) -> dict[str, Any]:
        result = praval.start_agents(echo, initial_data={"n": 7}, timeout=5)
        return dict(result)

    async with Reef(outer) as reef:
        assert (await reef.request("outer", {"type": "outer"}, timeout=5)).knowledge == {"echo": 7}
        assert set(reef.runners) == {"outer", "echo"}


# -- scripts ---------------------------------------------------------------------------------


def test_a_plain_script_uses_one_background_loop() -> None:
    """Blocking functions of a script share a loop, which is started on first use."""
    loops = []

    @agent("where")
    async def where(spore: Spore) -> dict[str, Any]:
        loops.append(asyncio.get_running_loop())
        return {"n": 1}

    assert praval.start_agents(where, initial_data={}, timeout=5) == {"n": 1}
    assert has_background_loop()
    assert agent_pipeline(where).run({}) == {"n": 1}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(praval.start_agents, where, initial_data={}, timeout=5).result(10)
    assert loops == [background_loop()] * 3


SLOW = """
import asyncio, sys
from praval import agent, start_agents

@agent("slow", responds_to=["go"])
async def slow(spore):
    print("began", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)
        print("cleaned up", flush=True)

@agent("quick", responds_to=["quick"])
async def quick(spore):
    return {"n": 1}

try:
    start_agents(slow, initial_data={"type": "go"})
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(dict(start_agents(quick, initial_data={"type": "quick"}, timeout=5)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_cancels_the_waiting_session_and_nothing_else() -> None:
    """The handler cleans up, KeyboardInterrupt is raised, and the script can go on."""
    with script(SLOW) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    lines = out.splitlines()
    assert sorted(lines) == ["cleaned up", "interrupted", "{'n': 1}"]
    assert lines.index("interrupted") < lines.index("{'n': 1}")
    assert process.returncode == 0, err


def test_a_script_that_ends_lets_accepted_work_finish() -> None:
    """What was broadcast before the last line is still handled; agents stop, nothing is printed."""
    out = output(
        """
import asyncio
from praval import agent, broadcast, start_agents

@agent("a", responds_to=["late"])
async def a(spore):
    await asyncio.sleep(0.05)
    print("handled", spore.knowledge["n"], flush=True)

@a.on_stop
async def stopped():
    print("stopped", flush=True)

start_agents(a)
for n in range(3):
    broadcast({"type": "late", "n": n})
print("end of script", flush=True)
"""
    )
    assert out.splitlines() == ["end of script", "handled 0", "handled 1", "handled 2", "stopped"]


def test_a_thread_of_a_script_without_a_reef_is_told_so() -> None:
    """In a thread that belongs to nobody, ``broadcast`` and ``get_reef`` say why they fail."""
    out = output(
        """
import threading
import praval

def work():
    for call in (praval.get_reef, lambda: praval.broadcast({"n": 1})):
        try:
            call()
        except praval.errors.NoReefError as error:
            print("start_agents" in str(error))

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(threading.active_count())
"""
    )
    assert out.split() == ["True", "True", "1"]


async def test_a_loop_without_a_reef_is_told_so() -> None:
    """On a loop of one's own, ``get_reef`` says how to get a Reef."""
    with pytest.raises(NoReefError, match="async with Reef"):
        praval.get_reef()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_afresh() -> None:
    """Neither loop, thread, Reef nor handler context of the parent is used in the child."""
    out = output(
        """
import os, sys
from praval import agent, get_reef, start_agents
from praval.sync import has_background_loop, owner_loop, thread_slot, worker_threads

@agent("a", responds_to=["go"])
async def a(spore):
    return {"pid": os.getpid()}

@agent("forker", responds_to=["fork"])
def forker(spore):
    return {"child": child()}

def child():
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            fresh = not has_background_loop()
            none = [each.get() for each in (owner_loop, thread_slot, worker_threads)]
            result = start_agents(a, initial_data={"type": "go"}, timeout=10)
            good = fresh and none == [None] * 3 and result["pid"] == os.getpid()
            os.write(writing, b"good" if good else repr((fresh, none, result)).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text

assert start_agents(a, initial_data={"type": "go"})["pid"] == os.getpid()
print(child())
print(start_agents(forker, initial_data={"type": "fork"}, timeout=20)["child"])
assert start_agents(a, initial_data={"type": "go"})["pid"] == os.getpid()
"""
    )
    assert out.split() == ["good", "good"]


def test_importing_any_module_starts_nothing() -> None:
    """No module of the package makes a thread, a loop, a socket or a process when imported."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "praval").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )
    assert len(modules) > 40
    assert importlib.util.find_spec(modules[0]) is not None
    out = output(
        f"""
import importlib, sys, threading
seen = []
sys.addaudithook(lambda event, args: seen.append(event))
for name in {modules!r}:
    importlib.import_module(name)
watched = ("_thread.start", "socket.", "sqlite3.connect", "subprocess.", "os.fork")
print(sorted({{event for event in seen if event.startswith(watched)}}), threading.active_count())
"""
    )
    assert out.strip() == "[] 1"


def test_pipeline_has_no_loop_of_its_own() -> None:
    """A pipeline made in a script runs wherever it is called."""
    pipeline = agent_pipeline(echo)
    assert isinstance(pipeline, Pipeline)
    assert pipeline.run({"n": 1}) == {"echo": 1}
    assert asyncio.run(pipeline.arun({"n": 2})) == {"echo": 2}
