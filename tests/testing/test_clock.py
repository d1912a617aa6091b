"""Virtual time: sleeping costs nothing, order is exact, threads are waited for."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from praval.errors import ConfigurationError
from praval.testing import VirtualClock
from praval.testing.clock import EPOCH, START

YEAR = 365 * 86_400


@pytest.fixture
def stopwatch() -> Iterator[None]:
    """Fail a test that takes more than a few real seconds."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("stopwatch")
async def test_sleeping_for_a_year_takes_no_real_time() -> None:
    """Both clocks have gone on by exactly a year, and nobody waited."""
    with VirtualClock() as clock:
        loop = asyncio.get_running_loop()
        assert (loop.time(), clock.time()) == (START, EPOCH)
        await asyncio.sleep(YEAR)
        assert (loop.time(), clock.time()) == (START + YEAR, EPOCH + YEAR)


@pytest.mark.usefixtures("stopwatch")
async def test_time_goes_on_after_ages() -> None:
    """Where a float cannot tell nanoseconds any more, timers still fire, and only when due."""
    with VirtualClock() as clock:
        await clock.advance(1e12)
        for _ in range(100):
            before = clock.monotonic()
            await asyncio.sleep(0.001)
            assert clock.monotonic() > before


async def test_timers_fire_in_the_order_in_which_they_are_due() -> None:
    """Whatever the order of setting, each fires at its own time."""
    fired: list[float] = []
    with VirtualClock() as clock:
        for seconds in (5.0, 0.25, 3600.0, 1.0, 2.0):
            loop = asyncio.get_running_loop()
            loop.call_later(seconds, lambda: fired.append(clock.monotonic() - START))
        await clock.advance(4000)
    assert fired == [0.25, 1.0, 2.0, 5.0, 3600.0]


async def test_time_stands_still_while_something_is_ready() -> None:
    """A busy task never sees the clock move, however often it yields."""
    with VirtualClock() as clock:
        soon = asyncio.create_task(asyncio.sleep(0.001))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert clock.monotonic() == START
        await soon
        assert clock.monotonic() == START + 0.001


async def test_timeouts_are_virtual_too() -> None:
    """``asyncio.timeout`` counts virtual seconds."""
    with VirtualClock() as clock:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        assert clock.monotonic() == START + 3600


async def test_advance_does_what_is_due_and_nothing_later() -> None:
    """What was due, and all that follows from it at that moment, has been done afterwards."""
    done: list[str] = []

    async def chain() -> None:
        await asyncio.sleep(10)
        for step in range(50):
            await asyncio.sleep(0)
            done.append(f"step {step}")
        await asyncio.sleep(0.5)
        done.append("later")

    with VirtualClock() as clock:
        task = asyncio.create_task(chain())
        await clock.advance(9.9)
        assert done == []
        await clock.advance(0.1)
        assert done == [f"step {step}" for step in range(50)]
        assert clock.time() == EPOCH + 10
        await task


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
async def test_time_goes_forwards_by_finite_steps_only(seconds: float) -> None:
    """Anything else is refused and moves nothing."""
    with VirtualClock() as clock:
        with pytest.raises(ConfigurationError, match="0 seconds or more"):
            await clock.advance(seconds)
        assert clock.time() == EPOCH


async def test_rest_waits_for_what_is_ready_but_lets_no_time_pass() -> None:
    """Everybody has gone as far as they can without the clock."""
    reached: list[int] = []

    async def walk() -> None:
        for step in range(100):
            reached.append(step)
            await asyncio.sleep(0)
        await asyncio.sleep(1)
        reached.append(-1)

    with VirtualClock() as clock:
        task = asyncio.create_task(walk())
        await clock.rest()
        assert reached == list(range(100))
        assert clock.time() == EPOCH
        await task


async def test_time_waits_for_a_thread() -> None:
    """A thread that works for a while in real time finishes before the next timer."""
    order: list[str] = []

    def work() -> None:
        time.sleep(0.05)
        order.append("thread")

    async def timer() -> None:
        await asyncio.sleep(0.001)
        order.append("timer")

    with VirtualClock():
        ticking = asyncio.create_task(timer())
        await asyncio.to_thread(work)
        await ticking
    assert order == ["thread", "timer"]


async def test_time_can_leave_a_stuck_thread_behind() -> None:
    """``hold=False`` is for threads that wait for something that only time brings."""
    gate = threading.Event()
    with VirtualClock() as clock:
        waiting = asyncio.ensure_future(asyncio.to_thread(gate.wait, 30))
        await clock.advance(60, hold=False)
        assert clock.time() == EPOCH + 60
        gate.set()
        assert await waiting
        assert clock.time() == EPOCH + 60


async def test_held_waits_for_real_input() -> None:
    """While real input is expected the next timer does not fire ahead of it."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    with VirtualClock() as clock, ours, theirs:
        ours.setblocking(False)
        threading.Timer(0.05, theirs.send, [b"hello"]).start()
        with clock.held():
            async with asyncio.timeout(1):
                assert await loop.sock_recv(ours, 5) == b"hello"
        assert clock.time() == EPOCH


async def test_what_threads_send_is_let_in_when_the_loop_has_nothing_else_to_do() -> None:
    """However early a thread reports, what is ready runs to its end first."""
    order: list[str] = []
    loop = asyncio.get_running_loop()
    with VirtualClock() as clock:
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=[order.append, "thread"])
        thread.start()
        thread.join()
        for step in range(3):
            order.append(f"loop {step}")
            await asyncio.sleep(0)
        await clock.rest()
    assert order == ["loop 0", "loop 1", "loop 2", "thread"]


async def test_a_report_of_a_thread_can_be_cancelled() -> None:
    """The handle that ``call_soon_threadsafe`` returns works as ever."""
    called: list[int] = []
    handles: list[asyncio.Handle] = []
    loop = asyncio.get_running_loop()
    with VirtualClock() as clock:
        thread = threading.Thread(
            target=lambda: handles.append(loop.call_soon_threadsafe(called.append, 1))
        )
        thread.start()
        thread.join()
        handles[0].cancel()
        await clock.rest()
    assert called == []


async def test_the_loop_is_as_before_afterwards() -> None:
    """Real time again; nothing of the loop or its selector stays replaced."""
    loop = asyncio.get_running_loop()
    before = dict(vars(loop)), dict(vars(loop._selector))  # type: ignore[attr-defined]
    real = loop.time()
    with VirtualClock() as clock:
        assert VirtualClock.of(loop) is clock
        await asyncio.sleep(1000)
    assert VirtualClock.of(loop) is None
    assert real <= loop.time() < real + 5
    after = dict(vars(loop)), dict(vars(loop._selector))  # type: ignore[attr-defined]
    assert [set(each) for each in after] == [set(each) for each in before]
    assert after[0]["_clock_resolution"] == before[0]["_clock_resolution"]


async def test_timers_that_exist_keep_their_distance() -> None:
    """A timer from before fires as many seconds later, and one that is left goes on really."""
    loop = asyncio.get_running_loop()
    fired = asyncio.Event()
    loop.call_later(3600, fired.set)
    with VirtualClock() as clock:
        await fired.wait()
        assert clock.monotonic() - START == pytest.approx(3600, abs=1)
        left = asyncio.Event()
        loop.call_later(0.02, left.set)
    began = time.monotonic()
    await left.wait()
    assert 0.01 < time.monotonic() - began < 5


async def test_what_a_thread_sent_is_not_lost_at_the_end() -> None:
    """A report that was not let in when the clock is taken away arrives all the same."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    with VirtualClock():
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=[arrived.set])
        thread.start()
        thread.join()
    async with asyncio.timeout(5):
        await arrived.wait()


async def test_entering_again_is_harmless_and_a_second_clock_is_refused() -> None:
    """One loop has one time."""
    with VirtualClock() as clock:
        with clock:
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        assert clock.time() == EPOCH + 2
        with pytest.raises(ConfigurationError, match="already"), VirtualClock():
            pass


async def test_a_clock_serves_one_loop() -> None:
    """Another loop needs a clock of its own."""

    async def enter(clock: VirtualClock) -> None:
        with pytest.raises(ConfigurationError, match="one loop at a time"), clock:
            pass

    with VirtualClock() as clock:
        with clock.held():
            await asyncio.to_thread(lambda: asyncio.run(enter(clock)))
        with VirtualClock.of(asyncio.get_running_loop()) or VirtualClock():
            await asyncio.sleep(1)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.every_loop
async def test_uvloop_is_refused_with_a_clear_error() -> None:
    """Its timers are out of reach; the message says what to do."""
    with pytest.raises(ConfigurationError, match=r"uvloop.*virtual_time=False"), VirtualClock():
        pass
