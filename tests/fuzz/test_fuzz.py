"""A slice of the fuzzing that `make fuzz` does at length."""

from __future__ import annotations

from collections import Counter

from praval.errors import SealCode
from tests.fuzz.sealing import BLOCK, fuzz, run_block


def test_no_mutation_is_accepted_and_none_brings_an_untyped_error() -> None:
    """Thirty seconds, or 500,000 cases, whichever comes first."""
    counts, wrong = fuzz(500_000, seed=2, seconds=30)
    assert wrong == []
    assert counts.total() >= BLOCK


def test_a_case_can_be_repeated() -> None:
    """Block by block, the same seed gives the same; another seed does not."""
    first, again, other = run_block(1, 7), run_block(1, 7), run_block(2, 7)
    assert first == again
    assert first != other


def test_the_mutations_reach_every_part() -> None:
    """Structure, times, cards, signature, decryption and the body are all refused somewhere."""
    counts: Counter[str] = Counter()
    for block in range(40):
        counts += run_block(3, block)[0]
    codes = {name.partition(": ")[2] for name in counts}
    assert codes >= {
        SealCode.MALFORMED, SealCode.UNSUPPORTED, SealCode.BAD_SIGNATURE, SealCode.BAD_DECRYPT,
        SealCode.UNKNOWN_SENDER, SealCode.NOT_PERMITTED, SealCode.EXPIRED, SealCode.MISROUTED,
    }  # fmt: skip
    assert counts["signed envelope: bad_decrypt"] > 50
    assert counts["signed card: malformed"] > 100
