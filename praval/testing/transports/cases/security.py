"""Logins and TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from praval.errors import (
    ConfigurationError,
    TransportConnectionError,
    TransportError,
    TransportLoginError,
    TransportTLSError,
)
from praval.testing.transports.case import NO_NETWORK, YES, case
from praval.testing.transports.harness import Mutual, Peer
from praval.testing.transports.log import logged
from praval.testing.transports.trial import Trial, expect, expect_equal, refused

WRONG = "wr0ng:/@ pässwörd"


async def roundtrip(trial: Trial, changes: Mapping[str, Any]) -> None:
    """Connect with these changes, and let a message come back."""
    client, inbox, topic = await trial.client(**changes), trial.inbox(), trial.topic("roundtrip")
    await client.subscribe(topic, inbox)
    await client.publish(topic, b"!")
    await inbox.wait(1)
    await client.close()


async def refuses(trial: Trial, peer: Peer, *words: str, **changes: Any) -> str:
    """Expect that a client does not connect to such a peer, and says why."""
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    async with trial.harness.peer(peer) as here:
        with refused(TransportTLSError, *words) as refusal:
            await trial.client(**{**here, **changes})
        expect(str(here["port"]) in str(refusal.error), "the error does not name the broker")
    return YES


async def _has_no_tls(trial: Trial) -> str:
    """Expect that a transport without connections refuses the keys that promise safe ones."""
    with refused(ConfigurationError, "client_cert"):
        await trial.client(client_cert="client.pem", client_key="key.pem")
    return NO_NETWORK


@case()
async def wrong_password(trial: Trial) -> str:
    """A wrong password is a login error that does not show it, and the right one works then."""
    if not trial.harness.has_network:
        await roundtrip(trial, {"username": "anybody", "password": WRONG})
        return NO_NETWORK
    client = trial.new()
    with refused(TransportLoginError) as refusal:
        await client.initialize(trial.config(password=WRONG))
    expect(WRONG not in repr(refusal.error), "the error shows the password")
    expect_equal(client.health().state, "new", "the state")
    await client.initialize(trial.config())
    await client.publish(trial.topic(), b"!")
    return YES


@case()
async def good_certificate(trial: Trial) -> str:
    """A good certificate of the trusted authority is accepted, revocation checked."""
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    async with trial.harness.peer(Peer.TRUSTED) as here:
        await roundtrip(trial, here)
    return YES


@case()
async def wrong_host(trial: Trial) -> str:
    """A certificate for another host is refused."""
    return await refuses(trial, Peer.WRONG_HOST, "another host")


@case()
async def expired_certificate(trial: Trial) -> str:
    """An expired certificate is refused."""
    return await refuses(trial, Peer.EXPIRED, "expired")


@case()
async def revoked_certificate(trial: Trial) -> str:
    """With `crl_check` a revoked certificate is refused."""
    return await refuses(trial, Peer.REVOKED, "revoked")


@case()
async def unknown_authority(trial: Trial) -> str:
    """A certificate of an authority that is not trusted is refused."""
    return await refuses(trial, Peer.FOREIGN, "not trusted")


@case()
async def revocation_list_missing(trial: Trial) -> str:
    """`crl_check` without a revocation list is refused."""
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    async with trial.harness.peer(Peer.TRUSTED) as here:
        with refused(ConfigurationError, "revocation list"):
            await trial.client(**{**here, "crl": None})
    return YES


@case()
async def checks_off(trial: Trial) -> str:
    """`check_hostname` and `verify_certs` switch their check off, and only that, with a warning."""
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    with logged() as log:
        async with trial.harness.peer(Peer.WRONG_HOST) as here:
            await roundtrip(trial, {**here, "check_hostname": False})
        expect("check_hostname is off" in log.text, "no warning")
        off = {"verify_certs": False, "crl_check": None, "crl": None}
        async with trial.harness.peer(Peer.FOREIGN) as here:
            with refused(TransportTLSError, "not trusted"):
                await trial.client(**{**here, "check_hostname": False})
            await roundtrip(trial, {**here, **off})
        expect("verify_certs is off" in log.text, "no warning")
    return YES


@case()
async def tls_1_2(trial: Trial) -> str:
    """A broker that speaks TLS 1.2 at most is accepted by default."""
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    async with trial.harness.peer(Peer.TLS_1_2) as here:
        await roundtrip(trial, here)
    return YES


@case()
async def tls_1_3_only(trial: Trial) -> str:
    """With `ssl_version` TLSv1.3 a broker that speaks TLS 1.2 at most is refused."""
    return await refuses(trial, Peer.TLS_1_2, "version", ssl_version="TLSv1.3")


@case()
async def plaintext_url(trial: Trial) -> str:
    """A URL without TLS is refused, unless `allow_plaintext` is set."""
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    async with trial.harness.peer(Peer.PLAINTEXT) as here:
        address = {key: here[key] for key in ("host", "port")}
        plain = {"url": trial.harness.plaintext_url, **address}
        with refused(ConfigurationError, "allow_plaintext"):
            await trial.client(**plain)
        await roundtrip(trial, {**plain, "allow_plaintext": True})
    return YES


@case()
async def plaintext_port(trial: Trial) -> str:
    """A broker that speaks no TLS on its port is refused before anything is sent to it."""
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    async with trial.harness.peer(Peer.PLAINTEXT) as here:
        with refused(TransportConnectionError, "TLS", "connect_timeout"):
            await trial.client(**{**here, "connect_timeout": 1.0})
    return YES


@case(60.0)
async def client_certificate(trial: Trial) -> str:
    """A broker that demands client certificates accepts a good one."""
    return await _shows(trial, "good")


@case(60.0)
async def client_certificate_missing(trial: Trial) -> str:
    """A client without a certificate is told that the broker demands one."""
    return await _shows(trial, None, "client certificate")


@case(60.0)
async def client_certificate_foreign(trial: Trial) -> str:
    """A client certificate of another authority is refused, and the client is told."""
    return await _shows(trial, "foreign", "client certificate")


@case(60.0)
async def client_certificate_expired(trial: Trial) -> str:
    """An expired client certificate is refused, and the client is told."""
    return await _shows(trial, "expired", "client certificate")


@case(60.0)
async def client_certificate_revoked(trial: Trial) -> str:
    """A revoked client certificate is refused, and the client is told."""
    return await _shows(trial, "revoked", "client certificate")


async def _shows(trial: Trial, which: str | None, *words: str) -> str:
    if not trial.harness.has_network:
        return await _has_no_tls(trial)
    async with trial.harness.mutual() as mutual:
        assert isinstance(mutual, Mutual)
        changes = {**mutual.broker, **(getattr(mutual, which) if which else {})}
        if not words or (which == "revoked" and not mutual.checks_revocation):
            await roundtrip(trial, changes)
            return "no: the broker has no revocation lists" if words else YES
        # where a reset overtakes the alert, a connection error that names the possibility will do
        with refused(TransportConnectionError, *words):
            await trial.client(**changes)
    return YES


@case(60.0)
async def no_secret_logged(trial: Trial) -> str:
    """No credential is in any log at any level, in an error or in a `repr`."""
    secrets = [*trial.harness.secrets, WRONG]
    forms = [form for each in secrets for form in (each, quote(each), quote(each, safe=""))]
    shown: list[str] = []
    topic = trial.topic("secret")
    with logged() as log:
        network, inbox = await trial.network(), trial.inbox()
        client = await trial.client(**network.changes)
        await client.subscribe(topic, inbox, group=trial.group())
        await client.publish(topic, b"!")
        await inbox.wait(1)
        await network.cut()
        await trial.until(lambda: client.health().reconnects == 1, "it reconnects")
        shown += [repr(client), repr(client.health()), repr(vars(client))]
        await client.close()
        for wrong in ({"password": WRONG}, {"password": WRONG, "prefetch_count": 0}):
            try:
                await trial.client(**wrong)
            except (ConfigurationError, TransportError) as error:
                shown += [repr(error), str(error), repr(error.__cause__)]
        await asyncio.sleep(0)
        logging.getLogger("praval.testing").debug("the log is watched")
    text = log.text + "\n".join(shown)
    expect("the log is watched" in text, "the log was not watched: bad suite")
    for form in forms:
        where = text.find(form)
        expect(where < 0, f"a credential is in: ...{text[max(0, where - 300) : where]}")
    return YES
