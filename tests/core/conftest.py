"""What several tests of the core need."""

from __future__ import annotations

from itertools import count

import pytest

_names = count()


@pytest.fixture
def url() -> str:
    """A bus of this test's own."""
    return f"local://bus{next(_names)}"
