"""The channel of keys: cards, status lists, queries, and whatever else somebody puts there."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from praval.core.certificates import sign_status
from praval.core.key_channel import hear, query
from praval.errors import ReplayError, SealCode
from tests.sealing.actors import NOW, a_root, acquaint, code_of, host, note, opens


def test_a_newcomer_learns_all_by_one_query_from_whoever_holds_it() -> None:
    """Bob answers for alice, who may be gone; the card proves itself."""
    alice, bob, carol = host("alice"), host("bob"), host("carol")
    acquaint(alice, bob)
    for data in hear(bob, query(), NOW).answers:
        hear(carol, data, NOW)
    assert sorted(known.name for known in carol.directory.known(NOW)) == ["alice", "bob", "carol"]


def test_a_query_names_whom_it_wants() -> None:
    """By name, or by the agent id of an envelope from nobody known."""
    alice, bob = host("alice"), host("bob", "dave")
    acquaint(alice, bob)
    agent_id = alice.get("alice").agent_id
    assert hear(bob, query(names=["dave"]), NOW).answers == (bob.card("dave"),)
    assert hear(bob, query(ids=[agent_id]), NOW).answers == (alice.card("alice"),)
    assert hear(bob, query(names=["eve"]), NOW).answers == ()
    assert hear(bob, query(), NOW + 3 * 86_400_000).answers == ()


def test_cards_and_status_lists_are_taken_in() -> None:
    """A revocation that is heard there counts at once."""
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    (data,) = alice.seal(note(to="bob"), now=NOW).envelopes
    heard = hear(bob, alice.card("alice"), NOW)
    assert heard.card is not None
    assert (heard.kind, heard.card.name) == ("card", "alice")
    status = sign_status(a_root(), number=1, issued=NOW, expires=NOW + 9, serials=(1,))
    assert hear(bob, status, NOW).kind == "status"
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.REVOKED


def test_a_card_of_ours_that_we_did_not_issue_is_an_alarm() -> None:
    """Another store has our identity."""
    ours, copy = host("bob"), host("bob")
    foreign = copy.rotate("bob", now=NOW + 1)
    with pytest.raises(ReplayError):
        hear(ours, foreign, NOW + 1)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"PSV1", b'{"ids":[],"kind":"query"}', b'{"ids":[],"kind":"card","names":[]}',
        b'{"ids":[], "kind":"query","names":[]}', b'{"ids":["AA=="],"kind":"query","names":[]}',
        b'{"ids":[],"ids":[],"kind":"query","names":[]}', b'{"ids":' + b"[" * 8000,
        b'{"ids":[],"kind":"query","names":[' + b",".join([b'"x"'] * 33) + b"]}",
        host("bob").get("bob").certificates[0],
    ],
)  # fmt: skip
def test_what_does_not_belong_there_is_malformed(data: bytes) -> None:
    """Loose JSON, too many names, a bare certificate, a spore."""
    assert code_of(lambda: hear(host("bob"), data, NOW)) == SealCode.MALFORMED


BOB = host("bob")
GOOD = [query(names=["bob"], ids=[b"i" * 16]), BOB.card("bob")]


@given(st.binary(max_size=100), st.sampled_from(GOOD), st.integers(0, 60))
def test_no_bytes_bring_an_untyped_error(junk: bytes, good: bytes, at: int) -> None:
    """Bare, and inside something good."""
    for data in (junk, good[:at] + junk, good[:at] + junk + good[at:]):
        assert code_of(functools.partial(hear, BOB, data, NOW)) in {*SealCode, "ok"}
