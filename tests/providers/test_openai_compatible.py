"""Servers that speak the OpenAI protocol: what is sent, and what their answers become."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import textwrap
import traceback
from typing import Any

import pytest
from openai_server import OpenAIServer, completion

from praval import achat, chat, configure
from praval.errors import (
    ConfigurationError,
    PravalError,
    ProviderError,
)
from praval.providers import (
    OpenAICompatibleProvider,
    ProviderTimeoutError,
    register_provider,
)
from praval.providers.tls import tls_context

HELD = 60.0
"""Seconds that a call may take which the test ends long before."""


def registered(server: OpenAIServer, key: str | None = None) -> OpenAICompatibleProvider:
    provider = OpenAICompatibleProvider(server.url, key, model="tiny")
    register_provider("mine", provider)
    return provider


async def test_a_call_is_one_request_with_the_question_the_model_and_the_given_options(
    server: OpenAIServer,
) -> None:
    """Nothing that the caller did not give is sent along."""
    registered(server)
    server.answer = 200, completion("Paris."), {}
    answer = await achat(
        "Capital of France?", system="Be short.", provider="mine", model="big", max_tokens=5, seed=1
    )
    assert answer == "Paris."
    assert [request.json for request in server.requests] == [
        {
            "model": "big",
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Capital of France?"},
            ],
            "max_tokens": 5,
            "seed": 1,
        }
    ]


async def test_calls_one_after_the_other_share_a_connection(server: OpenAIServer) -> None:
    """The client is kept: the second call needs no new handshake."""
    registered(server)
    for _ in range(3):
        assert await achat("Hello", provider="mine") == "fine"
    assert (len(server.requests), server.connections) == (3, 1)


async def test_the_key_travels_as_a_bearer_token(guarded_server: OpenAIServer, key: str) -> None:
    """A server that checks keys accepts ours, surrounding white space removed."""
    registered(guarded_server, f"{key}\n")
    assert await achat("Hello", provider="mine") == "fine"


async def test_without_a_key_no_authorization_is_sent(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key in the environment is for the server in the environment, for no other."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-another-server")
    registered(server)
    assert await achat("Hello", provider="mine") == "fine"
    assert "authorization" not in server.requests[0].headers


async def test_the_environment_names_server_and_key(
    guarded_server: OpenAIServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """provider="openai_compatible" needs no code: two variables and a model will do."""
    monkeypatch.setenv("OPENAI_BASE_URL", guarded_server.url)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert await achat("Hello", provider="openai_compatible", model="m") == "fine"


ERRORS = {
    "an error object": (429, b'{"error": {"message": "slow down", "type": "rate"}}', "slow down"),
    "an error string": (500, b'{"error": "on fire"}', "on fire"),
    "a detail": (422, b'{"detail": [{"msg": "bad field"}]}', "bad field"),
    "a page": (404, b"<html>nothing here</html>", "nothing here"),
    "nothing": (503, b"", "(empty answer)"),
    "bytes that are no text": (500, b"\xff\xfe", "HTTP 500"),
    "a very long text": (500, b"x" * 100_000, "xxx..."),
    "deep nonsense": (500, b"[" * 50_000, "HTTP 500"),
    "a redirect": (302, b"", "HTTP 302"),
    "no JSON": (200, b"fine!", "no chat completion"),
    "an error with status 200": (200, b'{"error": {"message": "sorry"}}', "sorry"),
    "no choices": (200, b'{"choices": []}', "no chat completion"),
    "a wrong type": (200, b'{"choices": [{"message": {"content": 5}}]}', "no chat completion"),
    "no text": (200, completion(None), "without text"),
}


@pytest.mark.parametrize("shape", ERRORS)
async def test_an_answer_that_is_no_text_is_a_provider_error_that_quotes_it(
    server: OpenAIServer, shape: str
) -> None:
    """Whatever a server answers, the caller gets one type of error, short, naming the server."""
    configure({"performance": {"max_retries": 0}})
    status, body, said = ERRORS[shape]
    server.answer = status, body, {"location": "/elsewhere"} if status == 302 else {}
    registered(server)
    with pytest.raises(ProviderError) as caught:
        await achat("Hello", provider="mine")
    assert said in str(caught.value)
    assert server.url in str(caught.value)
    assert len(str(caught.value)) < 800
    assert len(server.requests) == 1, "a redirect is not followed"


async def test_a_server_that_hangs_up_is_a_provider_error(server: OpenAIServer) -> None:
    """No answer at all is told apart from a bad one."""
    server.hangs_up = True
    registered(server)
    with pytest.raises(ProviderError, match="failed: RemoteProtocolError"):
        await achat("Hello", provider="mine")


async def test_a_server_that_is_not_there_is_a_provider_error() -> None:
    """The message names the address and asks whether somebody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    register_provider("mine", OpenAICompatibleProvider(url, model="m"))
    with pytest.raises(ProviderError, match=f"{url} failed: ConnectError.*Is the server running"):
        await achat("Hello", provider="mine")


async def test_the_key_is_in_no_message_repr_traceback_or_log(
    guarded_server: OpenAIServer, key: str, caplog: pytest.LogCaptureFixture, blocking_calls: Any
) -> None:
    """Not even if the server itself repeats it."""
    provider = registered(guarded_server, key)
    said = f'{{"error": {{"message": "{"x" * 290}Incorrect key {key}"}}}}'.encode()
    seen = [repr(provider), str(vars(provider)["_client"])]
    for status, body in ((401, said), (200, said), (401, said.replace(b"x", b""))):
        guarded_server.answer = status, body, {}
        with caplog.at_level(logging.DEBUG), pytest.raises(ProviderError) as caught:
            await achat("Hello", provider="mine")
        seen += traceback.format_exception(caught.value)
    seen += [repr(provider._client), *(record.getMessage() for record in caplog.records)]
    assert any("send_request_headers" in text for text in seen), "the log was on"
    blocking_calls.forgive()  # pytest writes its log while the loop waits
    assert guarded_server.requests[0].headers["authorization"] == f"Bearer {key}"
    for prefix in range(6, len(key) + 1):
        assert key[:prefix] not in "".join(seen)


async def test_a_time_out_ends_the_call_and_the_connection(server: OpenAIServer) -> None:
    """It is both a ProviderError and a TimeoutError; the server sees its client leave."""
    server.holds = True
    registered(server)
    with pytest.raises(ProviderTimeoutError, match=r"did not answer within 0\.05 s") as caught:
        await achat("Hello", provider="mine", timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert await asyncio.to_thread(server.deserted.acquire, timeout=10)


async def test_without_a_time_out_the_configured_one_holds(server: OpenAIServer) -> None:
    """performance.timeout, the guide's PRAVAL_REQUEST_TIMEOUT, limits each request."""
    configure({"performance": {"timeout": 0.05}})
    server.holds = True
    registered(server)
    with pytest.raises(ProviderTimeoutError, match=r"within 0\.05 s.*PRAVAL_REQUEST_TIMEOUT"):
        await achat("Hello", provider="mine")


async def test_a_longer_time_out_of_the_call_beats_the_configured_one(server: OpenAIServer) -> None:
    """The caller knows best: the setting is only what holds for calls that say nothing."""
    configure({"performance": {"timeout": 0.05}})
    server.holds = True
    registered(server)
    call = asyncio.create_task(achat("Hello", provider="mine", timeout=HELD))
    assert await asyncio.to_thread(server.arrived.acquire, timeout=10)
    done, _ = await asyncio.wait([call], timeout=0.3)
    assert not done
    call.cancel()
    await asyncio.wait([call])


async def test_cancellation_in_mid_call_closes_the_connection_and_nothing_else(
    server: OpenAIServer,
) -> None:
    """The cancelled call ends as cancelled; the provider answers the next one."""
    server.holds = True
    registered(server)
    call = asyncio.create_task(achat("Hello", provider="mine", timeout=HELD))
    assert await asyncio.to_thread(server.arrived.acquire, timeout=10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(server.deserted.acquire, timeout=10)
    server.holds = False
    assert await achat("Hello", provider="mine") == "fine"


@pytest.mark.every_loop
async def test_calls_at_once_are_all_answered_and_cancelled_ones_hurt_no_other(
    server: OpenAIServer,
) -> None:
    """More calls than the client has connections, a third of them cancelled on the way."""
    registered(server)
    calls = [asyncio.create_task(achat(f"Question {n}", provider="mine")) for n in range(150)]
    for call in calls[::3]:
        asyncio.get_running_loop().call_later(0.001, call.cancel)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(results[n] == "fine" for n in range(150) if n % 3)


def test_plain_code_calls_it_too(server: OpenAIServer) -> None:
    """The blocking form goes through the background loop."""
    registered(server)
    assert chat("Hello", provider="mine", temperature=0.5) == "fine"
    assert server.requests[0].json["temperature"] == 0.5


def test_loops_that_end_take_their_connections_along(server: OpenAIServer) -> None:
    """One provider serves one loop after the other, and leaves no open connection behind."""
    script = f"""
        import asyncio, gc
        from praval import achat, chat
        from praval.providers import OpenAICompatibleProvider, register_provider

        register_provider("mine", OpenAICompatibleProvider("{server.url}", model="m"))
        async def main():
            return [await achat("Hello", provider="mine") for _ in range(2)]
        for _ in range(2):
            print(asyncio.run(main()))
            gc.collect()
        print(chat("Hello", provider="mine"))
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split("\n")[:3] == ["['fine', 'fine']"] * 2 + ["fine"]
    assert server.connections == 3


BAD_URLS = ["", "localhost:8000", "ftp://host/v1", "http://", "https://me:pass-4711@host/v1"]
BAD_URLS += ["https://host/v1?key=pass-4711", "https://host/v1#pass-4711", "https://host:99999/v1"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_base_url_that_cannot_be_used_is_refused_unquoted(url: str) -> None:
    """It may hold a password, so the message does not repeat it."""
    with pytest.raises(ConfigurationError) as caught:
        OpenAICompatibleProvider(url)
    assert "pass-4711" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-tä", "sk a", "sk\r\nX-Evil: 1", "sk\x00"])
def test_a_key_that_no_header_can_carry_is_refused_unquoted(key: str) -> None:
    """Found when it is given, not in the middle of the first call."""
    with pytest.raises(ConfigurationError) as caught:
        OpenAICompatibleProvider("https://host/v1", key)
    assert key not in str(caught.value)


def test_a_key_does_not_travel_unencrypted_to_another_host() -> None:
    """Loopback is fine, another host needs https, or the explicit word."""
    with pytest.raises(ConfigurationError, match="unencrypted"):
        OpenAICompatibleProvider("http://gpu.example/v1", "sk-1")
    for url, key in (
        ("https://gpu.example/v1", "sk-1"),
        ("http://gpu.example/v1", None),
        ("http://localhost:1/v1", "sk-1"),
        ("http://127.1.2.3:1/v1", "sk-1"),
        ("http://[::1]:1/v1", "sk-1"),
    ):
        assert OpenAICompatibleProvider(url, key).base_url == url
    OpenAICompatibleProvider("http://gpu.example/v1", "sk-1", allow_plaintext=True)


async def test_what_cannot_be_sent_is_refused_before_anything_is_sent(
    server: OpenAIServer,
) -> None:
    """No model, an option that is no JSON, streaming: typed errors and no request."""
    register_provider("mine", OpenAICompatibleProvider(server.url))
    refusals: list[tuple[type[PravalError], str, dict[str, object]]] = [
        (ConfigurationError, "name of a model", {}),
        (ConfigurationError, "must be JSON", {"model": "m", "stop": object()}),
        (ConfigurationError, "use astream", {"model": "m", "stream": True}),
    ]
    for error, said, options in refusals:
        with pytest.raises(error, match=said):
            await achat("Hello", provider="mine", **options)  # type: ignore[arg-type]
    assert not server.requests


async def test_without_a_server_the_message_says_how_to_name_one() -> None:
    """provider="openai_compatible" alone knows no address."""
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
        await achat("Hello", provider="openai_compatible", model="m")


def test_all_providers_share_one_tls_context() -> None:
    """Making one costs 24 ms."""
    assert tls_context() is tls_context()
