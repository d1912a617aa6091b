"""Over TLS: HTTP/2 where the server offers it, one TLS context, and no key in any log."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from openai_server import completion

from praval import achat
from praval.providers import (
    AnthropicProvider,
    CohereProvider,
    OpenAICompatibleProvider,
    OpenAIProvider,
    register_provider,
    tls,
)

KEY = "sk-secret-over-tls"


def certificate(folder: Path) -> tuple[Path, str]:
    """Make a certificate for this machine, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + pem
    )
    return path, pem.decode()


class Http2Server:
    """Answers each request over HTTP/2 with the same completion, once ``number`` are under way."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connections = 0
        self.keys: list[str] = []
        self.waiting: list[tuple[Any, asyncio.StreamWriter, int]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        protocol.initiate_connection()
        writer.write(protocol.data_to_send())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for event in protocol.receive_data(data):
                    self.take(protocol, writer, event)
                writer.write(protocol.data_to_send())
        writer.close()

    def take(self, protocol: Any, writer: asyncio.StreamWriter, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            headers = {bytes(name): bytes(value) for name, value in event.headers}
            self.keys.append(headers[b"authorization"].decode())
        elif isinstance(event, h2.events.StreamEnded):
            self.waiting.append((protocol, writer, event.stream_id))
            if len(self.waiting) >= self.number:
                for each in self.waiting:
                    self.answer(*each)
                self.waiting.clear()

    def answer(self, protocol: Any, writer: asyncio.StreamWriter, stream: int) -> None:
        headers = [(":status", "200"), ("content-type", "application/json")]
        protocol.send_headers(stream, headers)
        protocol.send_data(stream, completion("over HTTP/2"), end_stream=True)
        writer.write(protocol.data_to_send())


@contextlib.asynccontextmanager
async def serving(server: Http2Server, path: Path, alpn: list[str]) -> AsyncIterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    context.set_alpn_protocols(alpn)
    listening = await asyncio.start_server(server, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate that the providers' TLS context trusts during the test."""
    path, pem = certificate(tmp_path)
    tls.tls_context()  # imports what a client needs
    context = ssl.create_default_context(cadata=pem)
    monkeypatch.setattr(tls, "_tls_context", lambda: context)
    return path


async def test_calls_at_once_share_one_http2_connection_and_no_log_has_the_key(
    trusted: Path,
) -> None:
    """Five questions, each answered only when all five have arrived."""
    server = Http2Server(5)
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    root, handler = logging.getLogger(), Keep()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        async with serving(server, trusted, ["h2"]) as url:
            provider = OpenAICompatibleProvider(url, KEY, model="m")
            register_provider("mine", provider)
            answers = await asyncio.gather(*(achat("?", provider="mine") for _ in range(5)))
            await provider.aclose()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert answers == ["over HTTP/2"] * 5
    assert server.keys == [f"Bearer {KEY}"] * 5
    assert server.connections == 1
    assert any("HTTP/2" in record for record in records)
    assert KEY not in "\n".join(records)


async def test_a_server_that_is_not_trusted_gets_no_key(tmp_path: Path) -> None:
    """The handshake fails before anything is sent."""
    path, _ = certificate(tmp_path)
    server = Http2Server(1)
    async with serving(server, path, ["h2"]) as url:
        provider = OpenAICompatibleProvider(url, KEY, model="m")
        register_provider("mine", provider)
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            await achat("?", provider="mine", timeout=10)
        await provider.aclose()
    assert not server.keys


async def test_a_tls_context_is_built_once_for_all_providers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever asks: it costs 24 ms and would hold up the loop."""
    import httpx

    tls._tls_context.cache_clear()
    made: list[ssl.SSLContext] = []
    original = httpx.create_ssl_context

    def counting(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        made.append(original(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(httpx, "create_ssl_context", counting)
    providers = [
        OpenAIProvider(KEY),
        OpenAIProvider(KEY, api="responses"),
        AnthropicProvider(KEY),
        CohereProvider(KEY),
        OpenAICompatibleProvider("https://models.example/v1", KEY),
    ]
    clients = await asyncio.gather(*(each._open() for each in providers for _ in range(10)))
    assert len(made) == 1
    assert len(set(clients)) == len(providers), "one client per provider and loop"
    for client in set(clients):
        assert client._transport._pool._ssl_context is made[0]  # type: ignore[attr-defined]
    for each in providers:
        await each.aclose()
