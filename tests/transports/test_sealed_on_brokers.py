"""One team, unchanged, sealed, on real brokers: what they carry tells them nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from praval import Reef, Spore, agent
from praval.core.keys import Keyring
from praval.core.sealed_bridge import SealedBridge
from praval.core.transport import Delivery, MessageTransport, TransportFactory
from praval.errors import RequestFailedError, RequestTimeoutError
from tests.core.hosts import until
from tests.core.sealed_hosts import CANARY, Root, brisk, reopened, stored
from tests.transports import teams
from tests.transports.test_reef_on_brokers import Config, config, namespace

__all__ = ["config", "namespace"]

PAGES = 12


def refused(reef: Reef) -> dict[str, int]:
    assert isinstance(reef.bridge, SealedBridge)
    counts: dict[str, int] = reef.bridge.security()["refused"]
    return counts


async def outsider(config: Config) -> MessageTransport:
    """A client of the broker that has no keys."""
    keys = dict(config)
    transport = TransportFactory.create_transport(keys.pop("protocol"))
    await transport.initialize(keys)
    return transport


async def test_a_team_over_three_hosts_is_sealed_and_handles_every_page_once(
    config: Config, namespace: str
) -> None:
    root = Root()
    options: dict[str, Any] = {"transport": config, "namespace": namespace, "settings": brisk()}
    async with (
        Reef(teams.reader, security=root.keyring("reader"), **options),
        Reef(teams.editor, teams.clerk, security=root.keyring("editor", "clerk"), **options),
        Reef(teams.auditor, security=root.keyring("@desk", "auditor"), **options) as desk,
    ):
        for page in range(PAGES):
            await desk.broadcast({"type": "page", "page": page, "text": "word " * page})
        answer = await desk.request("clerk", {"say": "hello"}, timeout=20)
        assert answer.knowledge == {"echo": "hello"}
        with pytest.raises(RequestFailedError, match="out of ink"):
            await desk.request("clerk", {"fail": True}, timeout=20)
        await until(lambda: len(teams.DIGESTED) >= PAGES, "every page was digested")
        await until(lambda: len(teams.AUDITED) >= 2 * PAGES, "the auditor heard everything")
        await desk.wait_idle(20)
    assert sorted(teams.DIGESTED) == [(page, page) for page in range(PAGES)]
    assert len(teams.AUDITED) == len(set(teams.AUDITED)) == 2 * PAGES


async def test_an_attacker_on_the_broker_reads_nothing_and_changes_nothing(
    config: Config, namespace: str
) -> None:
    root, heard, seen = Root(), list[Any](), list[Delivery]()

    @agent("vault")
    async def vault(spore: Spore) -> dict[str, Any]:
        heard.append(spore.knowledge["secret"])
        return {"kept": spore.knowledge["secret"]}

    attacker = await outsider(config)
    options: dict[str, Any] = {"transport": config, "namespace": namespace, "settings": brisk()}
    try:
        for channel in ("vault_channel", "main", "@keys"):
            await attacker.subscribe(f"{namespace}.{channel}", seen.append)
        async with (
            Reef(vault, security=root.keyring("vault"), **options) as reef,
            Reef(security=root.keyring("@desk"), **options) as desk,
        ):
            answer = await desk.request("vault", {"type": CANARY, "secret": CANARY}, timeout=20)
            assert answer.knowledge == {"kept": CANARY}
            await desk.wait_idle(20)
            topic = f"{namespace}.vault_channel"
            await until(lambda: [d for d in seen if d.startswith(b"PSV1")], "it was overheard")
            sealed = next(bytes(each) for each in seen if each.startswith(b"PSV1"))
            await attacker.publish(topic, sealed)  # replayed
            await until(lambda: reef.ledger().duplicate, "it was known")
            await attacker.publish(topic, sealed[:-1] + bytes([sealed[-1] ^ 1]))
            await attacker.publish(f"{namespace}.main", sealed)  # moved
            plain = Spore.create({"secret": "mine"}, to_agent="vault").to_bytes()
            await attacker.publish(topic, plain)
            async with Reef(security=Root().keyring("@desk"), **options) as stranger:
                with pytest.raises(RequestTimeoutError):
                    await stranger.request("vault", {"secret": "forged"}, timeout=0.5)
            await until(
                lambda: {"bad_signature", "malformed"} <= refused(reef).keys(), "all were refused"
            )
        assert heard == [CANARY]
        assert not [each for each in seen if CANARY.encode() in each]
    finally:
        await attacker.close()


async def test_what_was_committed_before_a_restart_is_not_handled_after_it(
    config: Config, namespace: str, tmp_path: Path
) -> None:
    root, heard, seen = Root(), list[Any](), list[Delivery]()

    @agent("vault")
    async def vault(spore: Spore) -> None:
        heard.append(spore.knowledge["n"])

    folder = await asyncio.to_thread(stored, tmp_path / "keys", root.keyring("vault"))
    attacker = await outsider(config)
    options: dict[str, Any] = {"transport": config, "namespace": namespace, "settings": brisk()}
    topic = f"{namespace}.vault_channel"
    try:
        await attacker.subscribe(topic, seen.append)
        async with Reef(security=root.keyring("@desk"), **options) as desk:
            store = await asyncio.to_thread(reopened, folder)
            async with Reef(vault, security=store, **options):
                await desk.send("vault", {"n": 1})
                await desk.wait_idle(20)
                await until(lambda: seen, "it was overheard")
            store = await asyncio.to_thread(reopened, folder)
            async with Reef(vault, security=store, **options) as again:
                await attacker.publish(topic, bytes(seen[0]))
                await until(lambda: again.ledger().duplicate, "it was known")
                await desk.send("vault", {"n": 2})
                await desk.wait_idle(20)
    finally:
        await attacker.close()
    assert heard == [1, 2]


async def test_one_keyring_serves_all_reefs_of_a_process(config: Config, namespace: str) -> None:
    keyring = Keyring()
    options: dict[str, Any] = {"transport": config, "namespace": namespace, "security": keyring}
    async with Reef(teams.clerk, **options), Reef(**options) as desk:
        assert (await desk.request("clerk", {"say": 1}, timeout=20)).knowledge == {"echo": 1}
