"""Deliveries: each receiver has knowledge of its own, and the ledger can tell when it is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from praval import DeadLetter, Failure, LedgerSnapshot, Outcome, Reason, Receipt, Reef, Spore, agent
from praval.core.delivery import FEW, STATES, Posted, Tally, copier
from praval.core.spore import Header
from praval.testing import TestReef

LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUE = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)
KNOWLEDGE = st.dictionaries(st.text(max_size=3), VALUE, max_size=5)


def containers(value: Any) -> list[Any]:
    """Every dictionary and list in a value, itself included."""
    if isinstance(value, dict):
        return [value, *(found for item in value.values() for found in containers(item))]
    if isinstance(value, list):
        return [value, *(found for item in value for found in containers(item))]
    return []


def spoil(value: Any) -> None:
    """Change every container, the innermost too."""
    for found in containers(value):
        if isinstance(found, dict):
            found["spoilt"] = True
        else:
            found.append("spoilt")


# -- copies ----------------------------------------------------------------------------------


@given(KNOWLEDGE)
def test_a_copier_copies_everything_that_can_change(knowledge: dict[str, Any]) -> None:
    """Copies are equal, share no container, and stay as they are when another is changed."""
    raw = msgspec.json.encode(knowledge)
    expected = msgspec.json.decode(raw)
    make = copier(raw)
    first, second = make(), make()
    assert first == second == expected
    shared = {id(found) for found in containers(first)} & {
        id(found) for found in containers(second)
    }
    assert not shared
    spoil(first)
    assert second == expected
    assert make() == expected


@pytest.mark.parametrize("receivers", [1, FEW, FEW + 1, 20])
@pytest.mark.parametrize("plain", [False, True])
async def test_nobodys_change_is_seen_by_another(receivers: int, plain: bool) -> None:
    """However many agents hear a broadcast, each finds the knowledge as it was sent, nested too."""
    sent = {"type": "t", "list": [1, {"deep": [2]}], "dict": {"a": {"b": []}}, "none": None}
    found: list[dict[str, Any]] = []

    def look(spore: Spore) -> None:
        found.append(msgspec.json.decode(msgspec.json.encode(spore.knowledge)))
        spoil(spore.knowledge)

    async def coroutine(spore: Spore) -> None:
        look(spore)

    def function(spore: Spore) -> None:
        look(spore)

    agents = [agent(f"a{n}")(function if plain else coroutine) for n in range(receivers)]
    async with TestReef(*agents) as reef:
        await reef.broadcast(sent)
        await reef.settle()
    assert found == [sent] * receivers


async def test_the_senders_later_changes_are_not_seen() -> None:
    """Knowledge is what it was at the moment of publishing."""
    seen: list[dict[str, Any]] = []

    @agent("a")
    async def handler(spore: Spore) -> None:
        seen.append(spore.knowledge)

    async with Reef(handler) as reef:
        data = {"list": [1]}
        await reef.broadcast(data)
        spoil(data)
        await reef.wait_idle(5)
    assert seen == [{"list": [1]}]


async def test_a_retry_finds_the_knowledge_as_it_was_sent() -> None:
    """What a failed attempt did to its copy is not there at the next one, nor in a dead letter."""
    seen: list[Any] = []

    @agent("a", retries=2, backoff=0)
    async def handler(spore: Spore) -> None:
        seen.append(list(spore.knowledge["list"]))
        spoil(spore.knowledge)
        raise ValueError("again")

    async with TestReef(handler) as reef:
        await reef.broadcast({"list": [1]})
        await reef.settle()
        (letter,) = reef.dead_letters()
    assert seen == [[1], [1], [1]]
    assert letter.spore.knowledge == {"list": [1]}


async def test_a_reply_is_the_askers_own() -> None:
    """What the answering agent changes after returning does not reach the asker."""
    kept: dict[str, Any] = {"list": [1]}

    @agent("keeper")
    async def keeper(spore: Spore) -> dict[str, Any]:
        return kept

    async with Reef(keeper) as reef:
        reply = await reef.request("keeper", {})
        spoil(reply.knowledge)
        assert kept == {"list": [1]}
        spoil(kept)
        assert (await reef.request("keeper", {})).knowledge == kept


# -- the ledger ------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 9), min_size=len(STATES) + 1, max_size=len(STATES) + 1),
    st.integers(-3, 3),
)
def test_a_snapshot_is_balanced_exactly_when_every_delivery_is_accounted_for(
    numbers: list[int], lost: int
) -> None:
    """One delivery too few or too many in any state, and ``balanced`` is false."""
    states = dict(zip((*STATES, "pending"), numbers, strict=True))
    snapshot = LedgerSnapshot(**states, deliveries=sum(numbers) + lost)
    assert snapshot.settled == sum(numbers) - states["pending"]
    assert snapshot.balanced is (lost == 0)
    assert ("NOT BALANCED" in str(snapshot)) is (lost != 0)


def test_every_outcome_is_a_field_of_the_snapshot() -> None:
    """A new way to end cannot be forgotten in the count."""
    fields = set(LedgerSnapshot.__struct_fields__)
    assert {outcome.name.lower() for outcome in Outcome} <= fields
    assert fields - set(STATES) == {"pending", "deliveries", "published", "reasons"}


def test_a_snapshot_names_only_what_happened() -> None:
    """Its text is short enough to print after a run."""
    snapshot = LedgerSnapshot(handled=3, failed=1, pending=2, deliveries=6)
    assert str(snapshot) == "6 deliveries: 3 handled, 1 failed, 2 pending (balanced)"
    assert str(LedgerSnapshot()) == "0 deliveries: none (balanced)"


def test_a_tally_forgets_nothing() -> None:
    """A snapshot of a tally carries its counts, and the pending number it is told."""
    tally = Tally()
    tally.counts[Outcome.HANDLED] = 2
    tally.counts[Outcome.EXPIRED] = 1
    tally.deliveries, tally.published = 4, 3
    tally.reasons[Reason.TTL] = 1
    snapshot = tally.snapshot(1)
    assert snapshot == LedgerSnapshot(
        handled=2, expired=1, pending=1, deliveries=4, published=3, reasons={Reason.TTL.value: 1}
    )
    assert snapshot.balanced
    assert not tally.snapshot(0).balanced


# -- the rest --------------------------------------------------------------------------------


def test_opening_gives_each_receiver_its_own_knowledge() -> None:
    """A posted spore can be opened again and again."""
    posted = Posted(Header("id", 0.0), b'{"a":[1]}', attempt=2)
    first = posted.open()
    spoil(first.knowledge)
    assert posted.open().knowledge == {"a": [1]}
    assert first.attempt == 2


async def test_a_receipt_can_be_awaited_again() -> None:
    """Awaiting a receipt returns it; one with an error raises that each time."""
    receipt = Receipt("id", 2)
    assert await receipt is receipt
    assert await receipt is receipt
    refused = Receipt("id", error=ValueError("no"))
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await refused


def test_a_failure_says_who_what_and_why() -> None:
    """The text of a failure is one line for a report."""
    spore = Spore.create({"type": "question"})
    lost = Failure("a", spore, Outcome.FAILED, Reason.HANDLER_RAISED, ValueError("broken"))
    assert str(lost) == "a <- 'question': handler raised: ValueError('broken')"
    nobody = Failure(None, spore, Outcome.UNDELIVERABLE, Reason.NO_RECIPIENT)
    assert str(nobody) == "nobody <- 'question': nobody listens"


async def test_a_dead_letter_tells_the_whole_story() -> None:
    """It holds the spore, the agent, the reason, the error and the number of attempts."""

    @agent("a", retries=1, backoff=0)
    async def handler(spore: Spore) -> None:
        raise ValueError("broken")

    async with TestReef(handler) as reef:
        receipt = await reef.broadcast({"type": "t"})
        await reef.settle()
        (letter,) = reef.dead_letters()
    assert isinstance(letter, DeadLetter)
    assert (letter.spore.id, letter.agent, letter.attempts) == (receipt.id, "a", 2)
    assert (letter.reason, letter.error) == (Reason.HANDLER_RAISED, "ValueError('broken')")
