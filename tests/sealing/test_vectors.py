"""The frozen vectors: what PSV1 means does not change without a new suite."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.vectors.make_psv1 import FILE, load, make, outcome

FROZEN: dict[str, Any] = json.loads(FILE.read_text())
VECTORS = FROZEN["vectors"]


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_a_frozen_envelope_has_the_outcome_it_always_had(number: int) -> None:
    """The message, byte for byte, or the code of the refusal."""
    vector = VECTORS[number]
    kept = {key: vector[key] for key in ("code", "message", "content") if key in vector}
    assert outcome(load(FROZEN), vector) == kept, vector["name"]
    assert (kept["code"] == "ok") is vector["valid"]


def test_there_are_enough_vectors_and_most_must_fail() -> None:
    """For each code that opening has, at least one."""
    codes = Counter(vector["code"] for vector in VECTORS)
    assert len(VECTORS) >= 200
    assert sum(codes.values()) - codes["ok"] >= 120
    assert len({vector["data"] for vector in VECTORS}) > 200
    assert codes.keys() == {
        "ok", "malformed", "unsupported", "too_large", "expired", "not_yet_valid",
        "unknown_sender", "stale_card", "revoked", "bad_signature", "not_for_me",
        "not_a_recipient", "misrouted", "not_permitted", "no_key", "bad_decrypt",
    }  # fmt: skip


def test_sealing_with_the_same_randomness_gives_the_same_bytes() -> None:
    """The other direction: the file can be made again."""
    assert make() == FROZEN
