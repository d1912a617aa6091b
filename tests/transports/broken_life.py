"""Transports that break the contract in groups, connections, closing and configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from praval.core.transport import Callback, Confirmation, Health, Subscription
from praval.errors import (
    ConfigurationError,
    TransportClosedError,
    TransportConnectionError,
)
from praval_transports.config import Address
from praval_transports.dispatch import Listening
from praval_transports.link import Link
from praval_transports.local import LocalConfig, LocalLink, LocalTransport
from tests.transports.broken import Configured, breaks
from tests.transports.local_harness import NetworkedLocal

# -- groups ----------------------------------------------------------------------------------


@breaks("shared_group", "offline_group", "group_stays", "ack_after_success", "group_in_one_client")
class IgnoresGroups(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        return await super().subscribe(topic, callback, **{**more, "group": None})


@breaks("copies", "late_subscriber")
class HasOneGroup(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        group = f"group of {topic if isinstance(topic, str) else topic[0]}"
        return await super().subscribe(topic, callback, **{**more, "group": group})


@breaks("unsubscribe", "late_subscriber", "cancel_unsubscribe", "unsubscribe_inside")
class NeverLeaves(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        pass


@breaks("group_stays", "unsubscribe_busy")
class DropsGroups(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        await super().unsubscribe(target, **{**more, "drop_group": True})


@breaks("drop_group")
class KeepsGroups(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        await super().unsubscribe(target, **{**more, "drop_group": False})


@breaks("unsubscribe_inside")
class WaitsForItself(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        await asyncio.ensure_future(super().unsubscribe(target, **more))


# -- connections -----------------------------------------------------------------------------


@breaks("reconnect", "nothing_lost", "callbacks_survive", "broker_killed")
class ForgetsSubscriptions(NetworkedLocal):
    async def _listen_again(self, link: Link) -> None:
        pass


@breaks("publish_meanwhile", "no_broker")
class GivesUp(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        if self.health().state == "connecting":
            raise TransportConnectionError("There is no connection.")
        return await super().publish(topic, message, **more)


@breaks("ack_after_success", "callbacks_survive")
class DropsWhatItHolds(NetworkedLocal):
    async def _discard(self, link: Link) -> None:
        assert isinstance(link, LocalLink)
        for member in link._members.values():
            member._held.clear()
        await super()._discard(link)


@breaks("failover", "guide_keys")
class IgnoresBrokers(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        if config.get("compression"):
            raise ConfigurationError("No.")
        await super().initialize({key: config[key] for key in config if key != "brokers"})


@breaks("broker_killed")
class SaysItSurvives(NetworkedLocal):
    capabilities = msgspec.structs.replace(LocalTransport.capabilities, survives_broker_kill=True)


# -- cancelling and closing ------------------------------------------------------------------


@breaks("cancel_initialize")
class LeavesATask(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        task = asyncio.ensure_future(asyncio.sleep(5))
        await super().initialize(config)
        task.cancel()


@breaks("cancel_publish")
class BreaksWhenCancelled(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        try:
            return await super().publish(topic, message, **more)
        except asyncio.CancelledError:
            assert self._link is not None
            self._link.lose(TransportConnectionError("cancelled"))
            raise


@breaks("cancel_subscribe")
class LeavesAConsumer(NetworkedLocal):
    async def _withdraw(self, listening: Listening) -> None:
        pass


@breaks("cancel_unsubscribe")
class LeavesByHalves(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        assert isinstance(target, str)
        leaving = [each for each in self._listenings if ".".join(each.patterns[0]) == target]
        if not leaving:
            raise ConfigurationError("There is no such subscription.")
        self._listenings.remove(leaving[0])
        await asyncio.sleep(0)
        assert self._link is not None
        await self._link.leave(leaving[0], drop_group=False)


@breaks("cancel_close")
class ClosesByHalves(NetworkedLocal):
    async def close(self) -> None:
        if self.health().state == "closing":
            return
        self._state = "closing" if self._supervisor else self._state
        await asyncio.sleep(0)
        await super().close()


@breaks("close_busy")
class ClosesAtOnce(Configured):
    changes: ClassVar[dict[str, Any]] = {"close_timeout": 1e-6}


@breaks("close_late", "close_silent")
class ClosesInTheEnd(Configured):
    changes: ClassVar[dict[str, Any]] = {"close_timeout": 3600}


@breaks("close_twice")
class ClosesOnce(NetworkedLocal):
    async def close(self) -> None:
        if self.health().state in ("new", "closed"):
            raise TransportClosedError("It is not open.")
        await super().close()


@breaks("not_open")
class OpensByItself(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        if self.health().state == "new":
            await self.initialize({})
        return await super().publish(topic, message, **more)


# -- configuration and health ----------------------------------------------------------------


@breaks("no_secret_logged")
class LogsItsConfig(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        logging.getLogger("praval.transport").debug("connecting with %s", config)
        await super().initialize(config)


@breaks("unknown_key")
class IgnoresUnknownKeys(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        known = LocalConfig.__struct_fields__
        await super().initialize({key: config[key] for key in config if key in known})


@breaks("wrong_values")
class CorrectsValues(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        await super().initialize({**config, "max_attempts": config["max_attempts"] or 1})


@breaks("wrong_password", "plaintext_url", "wrong_host")
class HasCredentials(NetworkedLocal):
    """The bus has no logins and no TLS: what happens instead is checked too."""

    async def initialize(self, config: Mapping[str, Any]) -> None:
        if "username" in config:
            raise ConfigurationError("Who are you?")
        tls = ("client_cert", "client_key")
        await super().initialize({key: config[key] for key in config if key not in tls})


@breaks("client_names")
class HasOneName(NetworkedLocal):
    links: ClassVar[list[Link]] = []

    async def connect(self, address: Address, tls: Any) -> Link:
        link = await super().connect(address, tls)
        if self.config.client_id is None:
            while self.links:
                self.links.pop().lose(TransportConnectionError("Another one has that name."))
            self.links.append(link)
        return link


@breaks("health")
class CountsBadly(NetworkedLocal):
    def health(self) -> Health:
        return msgspec.structs.replace(super().health(), retried=0)


@breaks("given_back_counts", "health")
class CountsReturnsTwice(NetworkedLocal):
    def health(self) -> Health:
        health = super().health()
        return msgspec.structs.replace(health, given_back=2 * health.given_back)
