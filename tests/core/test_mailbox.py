"""Mailboxes: order of starting, lanes of keys, capacity, and publishers that wait for room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from praval.core import mailbox as module
from praval.core.delivery import Posted
from praval.core.mailbox import AGING, Mailbox
from praval.core.spore import DEFAULT_PRIORITY, Header

_numbers = count()


def posted(priority: int = DEFAULT_PRIORITY, key: str | None = None) -> Posted:
    return Posted(Header(f"{next(_numbers)}", 0.0, priority=priority, key=key), b"{}")


def drained(mailbox: Mailbox) -> list[Posted]:
    """Pop all there is and settle each at once."""
    out = []
    while (taken := mailbox.pop()) is not None:
        out.append(taken)
        if taken.header.key is not None:
            mailbox.finished(taken.header.key, taken.header)
    return out


@contextmanager
def aging(value: int) -> Iterator[None]:
    """Let priorities be worth so few arrivals that a short example reaches the limit."""
    module.AGING = value
    try:
        yield
    finally:
        module.AGING = AGING


# -- order -----------------------------------------------------------------------------------


def test_ordinary_spores_leave_in_order_of_arrival() -> None:
    """Without priorities and keys it is a queue, and says that it needs no special care."""
    mailbox = Mailbox(10)
    sent = [posted() for _ in range(5)]
    for each in sent:
        mailbox.put(each)
    assert not mailbox.special
    assert mailbox.size == 5
    assert drained(mailbox) == sent
    assert mailbox.pop() is None


def test_a_higher_priority_leaves_first() -> None:
    """Ten beats five beats one; equals leave in order of arrival."""
    mailbox = Mailbox(10)
    low, first, second, high = posted(1), posted(), posted(), posted(10)
    for each in (low, first, second, high):
        mailbox.put(each)
    assert mailbox.special
    assert drained(mailbox) == [high, first, second, low]
    assert not mailbox.special


def test_a_low_priority_does_not_starve() -> None:
    """A spore is passed by at most AGING later ones per level of priority between them."""
    mailbox = Mailbox(10_000)
    low = posted(4)
    mailbox.put(low)
    for _ in range(3 * AGING):
        mailbox.put(posted(6))
    assert drained(mailbox).index(low) == 2 * AGING - 1


@given(st.lists(st.integers(1, 10), max_size=60), st.integers(1, 5))
def test_nobody_is_passed_by_more_than_aging_allows(priorities: list[int], worth: int) -> None:
    """The order is that of arrival less what the priority is worth, for any mixture."""
    with aging(worth):
        mailbox = Mailbox(100)
        sent = [posted(priority) for priority in priorities]
        for each in sent:
            mailbox.put(each)
        got = drained(mailbox)
    arrival = {id(each): number for number, each in enumerate(sent)}
    naive = sorted(sent, key=lambda each: arrival[id(each)] - worth * each.header.priority)
    assert got == naive
    for place, each in enumerate(got):
        passed = [other for other in got[:place] if arrival[id(other)] > arrival[id(each)]]
        best = max((other.header.priority for other in passed), default=0)
        assert len(passed) <= worth * max(0, best - each.header.priority)


# -- against a naive model -------------------------------------------------------------------


class Model:
    """What a mailbox does, said as plainly as possible."""

    def __init__(self) -> None:
        self.arrivals = count()
        self.ready: list[tuple[int, Posted]] = []
        self.parked: list[Posted] = []
        self.holders: dict[str, Posted] = {}

    def put(self, each: Posted) -> None:
        key = each.header.key
        if key is not None and key in self.holders:
            self.parked.append(each)
            return
        if key is not None:
            self.holders[key] = each
        self.enqueue(each)

    def enqueue(self, each: Posted) -> None:
        self.ready.append((next(self.arrivals), each))

    def pop(self) -> Posted | None:
        if not self.ready:
            return None
        best = min(
            self.ready, key=lambda entry: (entry[0] - 3 * entry[1].header.priority, entry[0])
        )
        self.ready.remove(best)
        return best[1]

    def finished(self, key: str, header: Header) -> bool:
        if key not in self.holders or self.holders[key].header is not header:
            return False
        del self.holders[key]
        following = next((each for each in self.parked if each.header.key == key), None)
        if following is None:
            return False
        self.parked.remove(following)
        self.put(following)
        return True

    def discard(self, gone: set[int]) -> set[int]:
        waiting = {id(each) for _, each in self.ready} | {id(each) for each in self.parked}
        self.ready = [entry for entry in self.ready if id(entry[1]) not in gone]
        self.parked = [each for each in self.parked if id(each) not in gone]
        return waiting & gone


class MailboxMachine(RuleBasedStateMachine):
    """Every method in any order, compared with the model after each."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox = Mailbox(4)
        self.model = Model()
        self.running: list[Posted] = []
        self.ordered = True
        """False once something was discarded: gaps in the arrivals count no more."""
        self._patched = aging(3)
        self._patched.__enter__()

    def teardown(self) -> None:
        self._patched.__exit__(None, None, None)

    @rule(priority=st.just(5) | st.integers(1, 10), key=st.none() | st.sampled_from("ab"))
    def put(self, priority: int, key: str | None) -> None:
        each = posted(priority, key)
        self.mailbox.put(each)
        self.model.put(each)

    @rule()
    def pop(self) -> None:
        taken = self.mailbox.pop()
        if self.ordered:
            assert taken is self.model.pop()
        elif taken is not None:
            assert self.model.discard({id(taken)}) == {id(taken)}
        else:
            assert not self.model.ready
        if taken is not None:
            self.running.append(taken)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.running))
        self.running.remove(each)
        key = each.header.key
        if key is not None:
            moved = self.mailbox.finished(key, each.header)
            assert moved == self.model.finished(key, each.header)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.running))
        self.running.remove(each)
        self.mailbox.put_back(each)
        self.model.enqueue(each)

    @rule(key=st.sampled_from("ab"))
    def refuse_one_that_never_came_in(self, key: str) -> None:
        stranger = posted(key=key)
        assert self.mailbox.finished(key, stranger.header) is False

    @rule(priority=st.integers(1, 10), key=st.none() | st.sampled_from("ab"))
    def discard(self, priority: int, key: str | None) -> None:
        def unwanted(each: Posted) -> bool:
            return each.header.priority >= priority and each.header.key == key

        gone = self.mailbox.discard(unwanted)
        assert all(unwanted(each) for each in gone)
        assert self.model.discard({id(each) for each in gone}) == {id(each) for each in gone}
        left = [each for _, each in self.model.ready] + self.model.parked
        assert not any(unwanted(each) for each in left)
        for each in gone:
            if each.header.key is not None:
                moved = self.mailbox.finished(each.header.key, each.header)
                assert moved == self.model.finished(each.header.key, each.header)
        self.ordered = self.ordered and not gone

    @invariant()
    def sizes_agree(self) -> None:
        assert self.mailbox.ready == len(self.model.ready)
        assert self.mailbox.size == len(self.model.ready) + len(self.model.parked)
        assert self.mailbox.has_room() == (self.mailbox.size < 4)

    @invariant()
    def one_key_runs_once(self) -> None:
        keys = [each.header.key for each in self.running if each.header.key is not None]
        assert len(keys) == len(set(keys))


class TestMailboxAgainstModel(MailboxMachine.TestCase):  # type: ignore[misc, valid-type]
    """Any sequence of calls leaves the mailbox as the naive model says."""

    settings = settings(max_examples=60, stateful_step_count=40)


# -- keys ------------------------------------------------------------------------------------


def test_spores_of_one_key_wait_for_one_another() -> None:
    """The second of a key starts only when the first is settled; other keys pass."""
    mailbox = Mailbox(10)
    first, second, other = posted(key="a"), posted(10, key="a"), posted(1, key="b")
    for each in (first, second, other):
        mailbox.put(each)
    assert mailbox.size == 3
    assert mailbox.ready == 2
    assert [mailbox.pop(), mailbox.pop(), mailbox.pop()] == [first, other, None]
    assert mailbox.finished("b", other.header) is False
    assert mailbox.finished("a", first.header) is True
    assert mailbox.pop() is second
    assert mailbox.size == 0


def test_a_key_leaves_no_trace_when_its_last_spore_is_settled() -> None:
    """A million different keys do not stay in memory."""
    mailbox = Mailbox(10)
    for number in range(1_000):
        each = posted(key=f"k{number}")
        mailbox.put(each)
        assert drained(mailbox) == [each]
    assert not mailbox._lanes
    mailbox.put(posted())
    mailbox.pop()
    assert not mailbox.special


def test_discarding_keeps_the_order_of_the_rest() -> None:
    """What is unwanted comes back in its order; what stays leaves in its own."""
    mailbox = Mailbox(10)
    sent = [posted(priority) for priority in (5, 1, 5, 9, 1, 5)]
    for each in sent:
        mailbox.put(each)
    assert mailbox.discard(lambda each: each.header.priority == 1) == [sent[1], sent[4]]
    assert drained(mailbox) == [sent[3], sent[0], sent[2], sent[5]]


# -- capacity --------------------------------------------------------------------------------


async def publish(mailbox: Mailbox, each: Posted) -> None:
    """Publish as ``praval.core.publisher`` does."""
    if not mailbox.has_room():
        await mailbox.wait_for_room()
        while mailbox.size >= mailbox.capacity and not mailbox.closed:
            await mailbox.wait_for_room()
    if not mailbox.closed:
        mailbox.put(each)


async def switch(times: int = 4) -> None:
    """Let every task go on until it waits for something else than the loop."""
    for _ in range(times):
        await asyncio.sleep(0)


STEP = st.sampled_from(["publish"] * 4 + ["pop"] * 4 + ["switch", "cancel", "discard"])


@settings(max_examples=300)
@given(
    st.lists(STEP, min_size=10, max_size=60), st.integers(1, 5), st.randoms(use_true_random=False)
)
def test_publishers_pass_in_order_and_none_is_forgotten(
    steps: list[str], capacity: int, rng: object
) -> None:
    """However publishing, handling and cancelling mix: no overflow, no overtaking, no hanging."""
    asyncio.run(_publish_and_pop(steps, capacity, rng))


async def _publish_and_pop(steps: list[str], capacity: int, rng: object) -> None:
    mailbox = Mailbox(capacity)
    sent: dict[asyncio.Task[None], Posted] = {}
    got: list[Posted] = []

    def check() -> None:
        assert mailbox.size <= capacity

    def pop() -> None:
        if (taken := mailbox.pop()) is not None:
            got.append(taken)

    for step in steps:
        match step:
            case "publish":
                each = posted()
                sent[asyncio.create_task(publish(mailbox, each))] = each
                await asyncio.sleep(0)
            case "pop":
                pop()
            case "cancel" if waiting := [task for task in sent if not task.done()]:
                rng.choice(waiting).cancel()  # type: ignore[attr-defined]
            case "discard":
                got += mailbox.discard(lambda _: True)
            case _:
                await asyncio.sleep(0)
        check()
    for _ in range(len(sent) + 1):
        pop()
        await switch()
        check()
    assert all(task.done() for task in sent), "a publisher waits although there is room"
    assert not mailbox.crowded
    accepted = [each for task, each in sent.items() if not task.cancelled()]
    assert got == accepted


async def test_publishers_are_woken_in_batches() -> None:
    """A full mailbox lets nobody in until it is half empty, then as many as find room."""
    mailbox = Mailbox(4)
    tasks = [asyncio.create_task(publish(mailbox, posted())) for _ in range(10)]
    await switch()
    assert (mailbox.size, mailbox.crowded, mailbox.has_room()) == (4, True, False)
    mailbox.pop()
    await switch()
    assert mailbox.size == 3
    mailbox.pop()
    await switch()
    assert mailbox.size == 4
    assert sum(task.done() for task in tasks) == 6
    for _ in range(12):
        mailbox.pop()
        await switch()
    assert all(task.done() for task in tasks)
    assert not mailbox.crowded


async def test_no_more_publishers_are_woken_than_find_room() -> None:
    """Spores handled in one go wake as many publishers as there is room for, in their order."""
    mailbox = Mailbox(4)
    sent = [posted() for _ in range(16)]
    tasks = [asyncio.create_task(publish(mailbox, each)) for each in sent]
    await switch()
    got = []
    while len(got) < len(sent):
        got += [mailbox.pop() for _ in range(4)]
        await switch()
    assert got == sent
    await asyncio.gather(*tasks)


async def test_room_given_to_a_cancelled_publisher_is_given_on() -> None:
    """A publisher that is cancelled in the moment in which it got room does not keep it."""
    mailbox = Mailbox(1)
    mailbox.put(posted())
    first = asyncio.create_task(publish(mailbox, posted()))
    second = asyncio.create_task(publish(mailbox, posted()))
    await switch()
    mailbox.pop()
    first.cancel()
    await switch()
    assert first.cancelled()
    assert second.done()
    assert mailbox.size == 1


async def test_a_newcomer_does_not_take_the_room_of_one_who_was_woken() -> None:
    """Between being woken and going on, a publisher's room is kept for it."""
    mailbox = Mailbox(1)
    mailbox.put(posted())
    patient, newcomer = posted(), posted()
    waiting = asyncio.create_task(publish(mailbox, patient))
    await switch()
    mailbox.pop()
    later = asyncio.create_task(publish(mailbox, newcomer))
    assert not mailbox.has_room()
    await switch()
    assert waiting.done()
    assert mailbox.pop() is patient
    await later
    assert mailbox.pop() is newcomer


async def test_closing_wakes_every_publisher() -> None:
    """Those who wait for room when the agent goes find it gone, and wait no more."""
    mailbox = Mailbox(1)
    mailbox.put(posted())
    tasks = [asyncio.create_task(publish(mailbox, posted())) for _ in range(3)]
    await switch()
    mailbox.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert mailbox.size == 1


@pytest.mark.parametrize("capacity", [1, 2, 3, 1000])
def test_put_never_refuses(capacity: int) -> None:
    """What a handler emits may overflow: whether there is room is the caller's question."""
    mailbox = Mailbox(capacity)
    for _ in range(capacity + 5):
        mailbox.put(posted())
    assert mailbox.size == capacity + 5
    assert not mailbox.has_room()
