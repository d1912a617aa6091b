"""The document about security says what is tested, and no more."""

from __future__ import annotations

import re

import pytest

from praval.core.lifetimes import DEFAULT, STRICT, shown
from tests.sealing.claims import CLAIMS, DOCUMENT, table, written


def test_the_table_of_claims_is_up_to_date() -> None:
    """``python -m tests.sealing.claims`` writes it."""
    text = DOCUMENT.read_text()
    assert table() in text
    assert written(text) == text


@pytest.mark.parametrize("test", sorted({test for tests in CLAIMS.values() for test in tests}))
def test_each_test_of_the_table_exists(test: str) -> None:
    """A renamed test takes its claim along."""
    file, _, name = test.partition("::")
    source = (DOCUMENT.parents[1] / "tests" / "sealing" / file).read_text()
    assert re.search(rf"^((async )?def {name}\(|{name} = )", source, re.M), test


def test_the_windows_in_the_document_are_those_of_the_code() -> None:
    """Both presets, computed."""
    text = DOCUMENT.read_text()
    for times in (DEFAULT, STRICT):
        assert f"| {shown(times.window)} |" in text
