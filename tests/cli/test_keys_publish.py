"""``praval keys publish``: a revocation reaches the hosts of a namespace, over a real broker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from praval import Reef
from praval.core.certificates import sign_status
from praval.core.sealed_bridge import SealedBridge
from praval.errors import RequestFailedError, RequestTimeoutError
from tests.cli.commands import Ended, praval
from tests.core.hosts import listener, until
from tests.core.sealed_hosts import Root, brisk
from tests.servers import Redis


def publish(url: str, *arguments: str) -> Ended:
    return praval("keys", "publish", *arguments, PRAVAL_TRANSPORT=url)


def status_of(root: Root, name: str, folder: Path) -> Path:
    """The status list that revokes a name, in a file."""
    now = int(time.time() * 1000)
    serials = [root.serials[name]]
    file = folder / "status.json"
    file.write_bytes(
        sign_status(root.key, number=1, issued=now, expires=now + 3_600_000, serials=serials)
    )
    return file


async def test_a_published_revocation_silences_its_owner(
    redis_server: Redis, tmp_path: Path
) -> None:
    """On hosts that run; they keep it, and tell those that start later."""
    root, heard = Root(), list[Any]()
    url = f"{redis_server.url}?ca_cert={redis_server.pki.ca}"
    options: dict[str, Any] = {"transport": url, "namespace": "revoked", "settings": brisk()}
    async with (
        Reef(listener("clerk", heard), security=root.keyring("clerk"), **options) as reef,
        Reef(security=root.keyring("@mole"), **options) as mole,
    ):
        await mole.send("clerk", {"n": 1})
        await mole.wait_idle(20)
        file = await asyncio.to_thread(status_of, root, "@mole", tmp_path)
        told = await asyncio.to_thread(publish, url, str(file), "--namespace", "revoked")
        assert (told.code, told.errors) == (0, "")
        assert isinstance(reef.bridge, SealedBridge)
        directory = reef.bridge.keeper.keyring.directory
        await until(lambda: directory._revoked, "it was heard")
        with pytest.raises((RequestFailedError, RequestTimeoutError)):  # it has heard it, too
            await mole.request("clerk", {"n": 2}, timeout=0.5)
    assert heard == [("clerk", 1)]


@pytest.mark.parametrize("content", [b"", b"junk", b'{"kind":"query"}'])
def test_what_is_neither_a_status_list_nor_a_card_is_refused(
    redis_server: Redis, tmp_path: Path, content: bytes
) -> None:
    """Before anything is sent."""
    file = tmp_path / "file"
    file.write_bytes(content)
    done = publish(f"{redis_server.url}?ca_cert={redis_server.pki.ca}", str(file))
    assert done.code == 2
    assert done.errors.startswith("praval keys: ")
    assert "Traceback" not in done.errors


def test_without_a_broker_it_says_how_to_name_one(tmp_path: Path) -> None:
    """Like the other commands."""
    root = Root()
    root.keyring("a")
    done = publish("", str(status_of(root, "a", tmp_path)))
    assert done.code == 2
    assert "Which broker?" in done.errors
