"""An authority in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from praval.certs import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Make an authority."""
    return Authority.create(tmp_path / "certs")
