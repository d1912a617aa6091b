"""Worker threads: how many plain handlers run at once, and who holds a slot when."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from praval import Reef, Spore, agent
from praval.core.threads import WorkerThreads
from praval.settings import Settings
from praval.sync import waiting
from praval.testing import TestReef


@pytest.fixture
async def one() -> AsyncIterator[WorkerThreads]:
    """A pool with one slot."""
    threads = WorkerThreads(1, asyncio.get_running_loop())
    yield threads
    threads.close()


class Gauge:
    """Counts who is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1


# -- slots -----------------------------------------------------------------------------------


async def test_plain_handlers_use_every_slot_and_no_more() -> None:
    """Three slots and twelve spores for a concurrent agent: three at a time, not more or less."""
    gauge, together = Gauge(), threading.Barrier(3)

    @agent("plain", concurrent=True)
    def plain(spore: Spore) -> None:
        with gauge:
            together.wait(10)  # needs three of them inside
            together.wait(10)

    async with Reef(plain, settings=Settings(max_threads=3)) as reef:
        for _ in range(12):
            await reef.broadcast({})
        await reef.wait_idle(30)
        assert reef.ledger().handled == 12
        assert reef.threads.busy == 0
    assert gauge.most == 3


async def test_agents_of_one_reef_share_its_slots() -> None:
    """The limit is the Reef's, not each agent's."""
    gauge = Gauge()

    def handler(spore: Spore) -> None:
        with gauge:
            threading.Event().wait(0.001)  # gives the others the chance to come in

    agents = [agent(f"a{n}", concurrent=True)(handler) for n in range(5)]
    async with Reef(*agents, settings=Settings(max_threads=2)) as reef:
        for _ in range(20):
            await reef.broadcast({})
        await reef.wait_idle(30)
    assert 1 <= gauge.most <= 2


@pytest.mark.parametrize("depth", [1, 30])
async def test_a_handler_that_waits_for_another_gives_its_slot_back(depth: int) -> None:
    """With a single thread slot, plain handlers that ask one another in a chain all answer."""

    @agent("chain", concurrent=True)
    def chain(spore: Spore, reef: Reef) -> dict[str, Any]:
        left = spore.knowledge["left"]
        if not left:
            return {"sum": 0}
        reply = asyncio.run(reef.request("chain", {"left": left - 1}))
        return {"sum": reply.knowledge["sum"] + left}

    async with Reef(chain, settings=Settings(max_threads=1)) as reef:
        reply = await reef.request("chain", {"left": depth}, timeout=60)
        assert reply.knowledge == {"sum": depth * (depth + 1) // 2}
        assert reef.threads.busy == 0


async def test_a_thread_that_waits_for_several_things_gives_back_one_slot(
    one: WorkerThreads,
) -> None:
    """Waits that overlap, as in ``asyncio.gather``, do not make slots out of nothing."""
    seen: list[tuple[int, int]] = []
    loop = asyncio.get_running_loop()

    async def state() -> tuple[int, int]:
        return one.busy, one.going_on

    def look() -> None:
        seen.append(asyncio.run_coroutine_threadsafe(state(), loop).result(10))

    over = threading.Event()

    def work() -> None:
        look()
        with waiting(lambda: False):
            look()
            with waiting(over.is_set):
                look()
                over.set()
                look()
            look()
        look()

    await one.run(work)
    assert seen == [(1, 1), (0, 0), (0, 0), (0, 1), (0, 0), (1, 1)]


async def test_gathered_requests_of_one_handler_keep_the_limit() -> None:
    """A plain handler that gathers ten requests lets one other run meanwhile, not ten."""
    gauge = Gauge()

    @agent("asker")
    def asker(spore: Spore, reef: Reef) -> dict[str, Any]:
        async def ask() -> int:
            replies = await asyncio.gather(*(reef.request("one", {"n": n}) for n in range(10)))
            return sum(reply.knowledge["n"] for reply in replies)

        return {"sum": asyncio.run(ask())}

    @agent("one", concurrent=True)
    def answer(spore: Spore) -> dict[str, Any]:
        with gauge:
            threading.Event().wait(0.001)  # gives the others the chance to come in
        return {"n": spore.knowledge["n"]}

    async with Reef(asker, answer, settings=Settings(max_threads=1)) as reef:
        assert (await reef.request("asker", {}, timeout=30)).knowledge == {"sum": 45}
    assert gauge.most == 1


async def test_a_handler_over_its_timeout_keeps_its_slot() -> None:
    """A thread cannot be killed: the delivery fails in time, the slot is busy until it returns."""
    gate = threading.Event()

    @agent("stuck", timeout=1)
    def stuck(spore: Spore) -> None:
        gate.wait(10)

    async with TestReef(stuck, settings=Settings(max_threads=1)) as reef:
        await reef.broadcast({})
        await reef.advance(2, hold=False)
        assert reef.ledger().failed == 1
        assert reef.threads.busy == 1
        await reef.broadcast({"second": True})
        await reef.advance(2, hold=False)
        assert reef.ledger().failed == 2, "it waited for the slot longer than its timeout"
        gate.set()
        with reef.timeline.held():
            await reef.threads.run(int)  # its turn comes when the stuck one has returned
        await reef.timeline.rest()
        await reef.broadcast({"third": True})
        await reef.settle()
        assert reef.ledger().handled == 1
        assert reef.threads.busy == 0


# -- running ---------------------------------------------------------------------------------


async def test_context_variables_of_the_caller_are_visible(one: WorkerThreads) -> None:
    """What a handler's surroundings set is seen in its thread; what it sets stays there."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")
    name.set("caller")

    def work() -> str:
        seen = name.get()
        name.set("thread")
        return seen

    assert await one.run(work) == "caller"
    assert name.get() == "caller"


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
async def test_whatever_is_raised_reaches_the_caller(
    one: WorkerThreads, error: BaseException
) -> None:
    """The very object that the function raised, exits included; the thread lives on."""

    def work() -> None:
        raise error

    try:
        await asyncio.shield(_outcome(one.run(work)))
    except BaseException as got:  # noqa: BLE001 - the test is about all of them
        pytest.fail(f"it escaped through the loop: {got!r}")
    assert await _outcome(one.run(work)) is error
    assert await one.run(lambda: "alive") == "alive"
    assert one.busy == 0


async def _outcome(work: Any) -> Any:
    try:
        return await work
    except BaseException as error:  # noqa: BLE001 - handed back to be looked at
        return error


async def test_a_stop_iteration_does_not_hang_the_caller(one: WorkerThreads) -> None:
    """No future can carry one, so it arrives as a RuntimeError, as from a generator."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        await one.run(lambda: next(iter(())))


async def test_a_cancelled_caller_leaves_at_once_and_its_thread_keeps_the_slot(
    one: WorkerThreads,
) -> None:
    """The next one waits until the thread has really returned."""
    inside, gate = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        gate.wait(10)

    first = asyncio.create_task(one.run(work))
    await asyncio.to_thread(inside.wait, 10)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    second = asyncio.create_task(one.run(lambda: "second"))
    await asyncio.sleep(0)
    assert one.busy == 1
    assert not second.done()
    gate.set()
    assert await second == "second"


async def test_a_caller_cancelled_in_the_queue_takes_nobodys_turn(one: WorkerThreads) -> None:
    """Cancelled while it waits, or in the very moment of its turn, it passes the slot on."""
    inside, gate = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        gate.wait(10)

    first = asyncio.create_task(one.run(work))
    await asyncio.to_thread(inside.wait, 10)
    queue = [asyncio.create_task(one.run(lambda n=n: n)) for n in range(4)]
    await asyncio.sleep(0)
    queue[0].cancel()
    first.add_done_callback(lambda _: queue[1].cancel())
    gate.set()
    await first
    assert await asyncio.gather(*queue[2:]) == [2, 3]
    await asyncio.wait(queue)
    assert queue[0].cancelled()
    assert one.busy == 0


async def test_turns_are_taken_in_order(one: WorkerThreads) -> None:
    """Who waits for a slot gets it in order of asking."""
    order: list[int] = []
    await asyncio.gather(*(one.run(order.append, n) for n in range(50)))
    assert order == list(range(50))


# -- threads ---------------------------------------------------------------------------------


async def test_threads_are_used_again(one: WorkerThreads) -> None:
    """A hundred calls one after the other need one thread, which does not keep the process."""
    used = {await one.run(threading.current_thread) for _ in range(100)}
    (thread,) = used
    assert thread.daemon
    assert thread.name == "praval-worker"


async def test_no_thread_is_started_before_it_is_needed() -> None:
    """A Reef of coroutines has no worker threads."""

    @agent("a")
    async def handler(spore: Spore) -> None:
        return None

    async with Reef(handler) as reef:
        await reef.broadcast({})
        await reef.wait_idle(5)
        assert not [each for each in threading.enumerate() if each.name == "praval-worker"]


async def test_closing_ends_the_threads() -> None:
    """Idle ones end at once, a busy one after what it is doing."""
    threads = WorkerThreads(2, asyncio.get_running_loop())
    gate = threading.Event()
    idle = await threads.run(threading.current_thread)

    def work() -> threading.Thread:
        gate.wait(10)
        return threading.current_thread()

    blocked = [asyncio.create_task(threads.run(work)) for _ in range(2)]
    await asyncio.sleep(0)
    gate.set()
    used = await asyncio.gather(*blocked)
    threads.close()
    for thread in (idle, *used):
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


def test_a_thread_that_outlives_its_loop_ends_quietly() -> None:
    """When the loop is gone nobody can be told; the thread does not complain, and ends."""
    gate, found = threading.Event(), []

    def work() -> None:
        found.append(threading.current_thread())
        inside.set()
        gate.wait(10)

    inside = threading.Event()

    async def main() -> None:
        threads = WorkerThreads(1, asyncio.get_running_loop())
        task = asyncio.create_task(threads.run(work))
        await asyncio.to_thread(inside.wait, 10)
        task.cancel()
        await asyncio.wait([task])
        threads.close()

    asyncio.run(main())
    gate.set()
    (thread,) = found
    thread.join(10)
    assert not thread.is_alive()


async def test_a_wrapper_around_a_coroutine_function_is_awaited() -> None:
    """A plain function that returns an awaitable is called in a thread, awaited on the loop."""
    loop_thread = threading.get_ident()
    seen: dict[str, int] = {}

    async def inner(spore: Spore) -> dict[str, Any]:
        seen["inner"] = threading.get_ident()
        return {"n": spore.knowledge["n"]}

    def wrapper(spore: Spore) -> Any:
        seen["wrapper"] = threading.get_ident()
        return inner(spore)

    handler: Callable[..., Any] = agent("wrapped")(wrapper)
    async with Reef(handler) as reef:  # type: ignore[arg-type]
        assert (await reef.request("wrapped", {"n": 1})).knowledge == {"n": 1}
    assert seen["inner"] == loop_thread
    assert seen["wrapper"] != loop_thread
