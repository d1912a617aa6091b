"""The contract of model providers, as cases that any of them can be put through.

::

    async def test_my_provider():
        await check_provider(lambda url, key: MyProvider(url, key), MyDialect())

``MyDialect`` says what the vendor's server accepts and answers; it is served by a real HTTP server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from praval.errors import (
    OverloadedError,
    ProviderAuthError,
    ProviderConnectionError,
    ProviderError,
    ProviderProtocolError,
    ProviderStatusError,
    ProviderTimeoutError,
    RateLimitError,
)
from praval.providers import BaseProvider, Image, Limits, register_provider, unregister_provider
from praval.providers.calls import achat, astream
from praval.providers.streams import AnswerStream
from praval.testing.model_server import PATIENCE, Dialect, Gate, ModelServer, Reply

KEY = "sk-conformance-4711-secret"
NAME = "provider-under-test"
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16

Maker = Callable[[str, str], BaseProvider]


@dataclass
class Bench:
    """A provider before its server, for one case."""

    server: ModelServer
    dialect: Dialect
    provider: BaseProvider

    def ask(self, message: str = "Hello", **options: Any) -> Awaitable[Any]:
        """Ask the provider like any caller; it does not retry unless the case wants that."""
        return achat(message, provider=NAME, **{"timeout": PATIENCE, **options})

    def stream(self, message: str = "Hello", **options: Any) -> AnswerStream:
        """Ask for a streamed answer."""
        return astream(message, provider=NAME, **{"timeout": PATIENCE, **options})

    def asked_once(self) -> None:
        """Fail if anything was sent, and perhaps billed, twice."""
        assert len(self.server.requests) == 1, f"{len(self.server.requests)} requests were sent"

    async def deserted(self) -> None:
        """Wait until the server has seen its client leave."""
        left = await asyncio.to_thread(self.server.deserted.acquire, timeout=PATIENCE)
        assert left, "the connection was not closed"

    async def arrived(self) -> None:
        """Wait until the server has got a request."""
        assert await asyncio.to_thread(self.server.arrived.acquire, timeout=PATIENCE)


Case = Callable[[Bench], Awaitable[None]]
CASES: dict[str, Case] = {}


def _case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


async def check_provider(
    make: Maker, dialect: Dialect, *, only: Iterable[str] | None = None
) -> list[str]:
    """Put a provider through the contract; return the names of the cases it passed.

    Args:
        make: makes the provider for an address and a key; called once per case.
        dialect: what the vendor's server accepts and says.
        only: names of cases (of ``CASES``); default: all.

    Raises:
        AssertionError: it fails a case; the message begins with its name.
    """
    passed = []
    for name in CASES if only is None else only:
        try:
            async with _bench(make, dialect) as bench:
                await CASES[name](bench)
                assert not bench.server.problems, bench.server.problems
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        passed.append(name)
    return passed


@contextlib.asynccontextmanager
async def _bench(make: Maker, dialect: Dialect) -> AsyncIterator[Bench]:
    async with ModelServer(dialect, KEY) as server:
        provider = make(server.url, KEY)
        register_provider(NAME, provider, limits=Limits(max_retries=0, failures=1_000))
        try:
            yield Bench(server, dialect, provider)
        finally:
            unregister_provider(NAME)
            await provider.aclose()


@contextlib.contextmanager
def _raises(kind: type[Exception]) -> Any:
    caught: list[Exception] = []
    try:
        yield caught
    except Exception as error:  # noqa: BLE001 - judged below
        caught.append(error)
    assert caught, f"{kind.__name__} was expected"
    (failure,) = caught
    assert isinstance(failure, kind), f"{kind.__name__} was expected, not {failure!r}"
    assert KEY not in f"{failure} {failure!r} {failure.__cause__!r}", "the key is in the error"


# ------------------------------------------------------------------------------------ answers


@_case
async def answers_with_text_usage_and_model(bench: Bench) -> None:
    """The text arrives as it was sent, in any language, and so do the counts of tokens."""
    bench.server.reply(Reply([bench.dialect.text("Grüße 🌊", input_tokens=12, output_tokens=34)]))
    response = await bench.ask(max_tokens=50)
    assert response.text == "Grüße 🌊"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (12, 34)
    assert response.model
    assert response.provider == NAME
    assert response.finish_reason == "stop"
    bench.asked_once()


@_case
async def sends_system_and_history(bench: Bench) -> None:
    """The server's schema accepts a whole conversation."""
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    assert await bench.ask("Three?", system="Count.", history=turns) == "fine"
    sent = bench.server.requests[0].body.decode()
    for text in ("Count.", "One?", "Two.", "Three?"):
        assert text in sent, f"{text} was not sent"


@_case
async def sends_images(bench: Bench) -> None:
    """By their bytes and by their address."""
    answer = await bench.ask("What is it?", images=[PNG, "https://pictures.example/reef.png"])
    assert answer == "fine"
    sent = bench.server.requests[0].body.decode()
    assert Image.of(PNG).base64 in sent
    assert "https://pictures.example/reef.png" in sent


@_case
async def calls_tools_side_by_side_and_sends_the_results_back(bench: Bench) -> None:
    """Two calls of one round run at once; their results and failures reach the model."""
    meeting = asyncio.Barrier(2)

    async def weather(city: str) -> dict[str, str]:
        """Tell the weather."""
        await meeting.wait()
        return {"city": city, "sky": "blue"}

    async def broken(reason: str = "none") -> str:
        """Fail."""
        await meeting.wait()
        raise ValueError(f"it is {reason}")

    calls = [
        ("call_1", "weather", '{"city": "Oslo"}'),
        ("call_2", "broken", '{"reason": "broken"}'),
    ]
    bench.server.reply(Reply([bench.dialect.calls(calls)]), Reply([bench.dialect.text("Blue.")]))
    response = await bench.ask("Weather?", tools=[weather, broken])
    assert response.text == "Blue."
    first, second = bench.server.requests
    assert "Tell the weather." in first.body.decode()
    sent = second.body.decode()
    for text in ("call_1", "call_2", "blue", "it is broken", "Oslo"):
        assert text in sent, f"{text} was not sent back"
    assert response.usage.input_tokens == 22, "usage is summed over the rounds"


@_case
async def asks_for_a_wanted_type(bench: Bench) -> None:
    """The server's schema accepts the wish; the answer becomes a value of the type."""

    class City(msgspec.Struct):
        name: str
        people: int
        twins: list[str] = []

    bench.server.reply(Reply([bench.dialect.text('{"name": "Oslo", "people": 700000}')]))
    assert await bench.ask("A city?", returns=City) == City("Oslo", 700_000)
    assert "people" in bench.server.requests[0].body.decode()


# ------------------------------------------------------------------------------------ streams


@_case
async def streams_before_the_body_ends(bench: Bench) -> None:
    """The first piece is out while the server still holds the rest back."""
    gate = Gate()
    head, *rest = bench.dialect.events(["Gr", "üße", " 🌊"], input_tokens=3, output_tokens=9)
    bench.server.reply(Reply([head, gate, *rest]))
    pieces: list[str] = []
    async with bench.stream() as stream:
        async for piece in stream:
            pieces.append(piece)
            gate.open()
    assert "".join(pieces) == "Grüße 🌊"
    assert pieces[0] == "Gr"
    assert stream.response.text == "Grüße 🌊"
    assert (stream.response.usage.input_tokens, stream.response.usage.output_tokens) == (3, 9)
    assert stream.response.finish_reason == "stop"
    bench.asked_once()


@_case
async def streams_bytes_split_anywhere(bench: Bench) -> None:
    """Also in the middle of a line and of a character."""
    whole = b"".join(bench.dialect.events(["é", "ñ🌊"]))
    bench.server.reply(Reply([whole[i : i + 1] for i in range(len(whole))]))
    async with bench.stream() as stream:
        assert "".join([piece async for piece in stream]) == "éñ🌊"


@_case
async def streams_tool_calls(bench: Bench) -> None:
    """A round of calls in a stream is made, and the next round is streamed too."""
    called: list[int] = []

    def count(upto: int) -> int:
        """Count."""
        called.append(upto)
        return upto

    calls = [("call_1", "count", '{"upto": 3}'), ("call_2", "count", '{"upto": 4}')]
    bench.server.reply(
        Reply(bench.dialect.call_events(calls)), Reply(bench.dialect.events(["Do", "ne."]))
    )
    async with bench.stream(tools=[count]) as stream:
        assert "".join([piece async for piece in stream]) == "Done."
    assert sorted(called) == [3, 4]
    assert "call_2" in bench.server.requests[1].body.decode()


@_case
async def leaving_a_stream_closes_its_connection(bench: Bench) -> None:
    """Nobody pays for an answer that nobody reads; the provider goes on working."""
    head, *_ = bench.dialect.events(["a", "b"])
    bench.server.reply(Reply([head, b": \n"], ends="never"))
    async with bench.stream() as stream:
        async for _ in stream:
            break
    await bench.deserted()
    bench.asked_once()
    bench.server.reply(Reply([bench.dialect.text("again")]))
    assert await bench.ask() == "again"


@_case
async def cancelling_a_stream_closes_its_connection(bench: Bench) -> None:
    """In the middle of a wait for the next piece; the request is not sent again."""
    head, *_ = bench.dialect.events(["a", "b"])
    begun = asyncio.Event()

    async def read() -> None:
        async with bench.stream() as stream:
            async for _ in stream:
                begun.set()

    for steps in range(1, 6):  # cancelled once, and again while it is closing
        bench.server.reply(Reply([head, b": \n"], ends="never"))
        begun.clear()
        reading = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), PATIENCE)
        for _ in range(steps):
            reading.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([reading])
        assert reading.cancelled(), "the cancellation was swallowed"
        await bench.deserted()
        bench.asked_once()


@_case
async def a_failure_inside_a_stream_is_a_provider_error(bench: Bench) -> None:
    """What came before it was delivered; nothing is sent again."""
    head, *_ = bench.dialect.events(["a", "b"])
    bench.server.reply(Reply([head, bench.dialect.failure_event()]))
    with _raises(ProviderError):
        async with bench.stream() as stream:
            assert [piece async for piece in stream] == ["unreachable"]
    bench.asked_once()


@_case
async def a_cut_stream_is_a_connection_error(bench: Bench) -> None:
    """Half an answer is never taken for a whole one."""
    head, *_ = bench.dialect.events(["a", "b"])
    bench.server.reply(Reply([head, b": \n"], ends="cut"))
    with _raises(ProviderConnectionError):
        async with bench.stream() as stream:
            async for _ in stream:
                pass
    bench.asked_once()


@_case
async def a_stream_that_ends_early_is_a_protocol_error(bench: Bench) -> None:
    """Not even when the body ends in good order."""
    head, *_ = bench.dialect.events(["a", "b"])
    bench.server.reply(Reply([head, b": \n"]))
    with _raises(ProviderProtocolError):
        async with bench.stream() as stream:
            async for _ in stream:
                pass


@_case
async def malformed_events_are_a_protocol_error(bench: Bench) -> None:
    """Not JSON, JSON of another shape, and deep nonsense."""
    for data in (b"data: {nonsense\n\n", b"data: [1]\n\n", b"data: " + b"[" * 50_000 + b"\n\n"):
        bench.server.reply(Reply([data, b": \n"]))
        with _raises(ProviderProtocolError):
            async with bench.stream() as stream:
                async for _ in stream:
                    pass


@_case
async def a_refused_stream_is_a_status_error(bench: Bench) -> None:
    """With the status and the server's words, as without streaming."""
    bench.server.reply(Reply([bench.dialect.error(429, "slow down")], 429, {"retry-after": "7"}))
    with _raises(RateLimitError) as caught:
        async with bench.stream() as stream:
            async for _ in stream:
                pass
    assert caught[0].retry_after == 7.0
    bench.asked_once()


# ----------------------------------------------------------------------------------- failures

STATUSES: dict[int, type[ProviderStatusError]] = {
    400: ProviderStatusError,
    401: ProviderAuthError,
    403: ProviderAuthError,
    404: ProviderStatusError,
    429: RateLimitError,
    500: OverloadedError,
    503: OverloadedError,
    529: OverloadedError,
}


@_case
async def each_status_has_its_error(bench: Bench) -> None:
    """With the status, the server's words, and never the key, even if the server repeats it."""
    for status, kind in STATUSES.items():
        bench.server.reply(Reply([bench.dialect.error(status, f"no, {KEY}!")], status))
        with _raises(kind) as caught:
            await bench.ask()
        error = caught[0]
        assert error.status == status
        assert "no, ***!" in str(error), "the server's words are missing"
        bench.asked_once()


@_case
async def a_passing_refusal_is_retried_when_the_server_says_so(bench: Bench) -> None:
    """429 and 529 with Retry-After: the request is sent again, and once only."""
    register_provider(NAME, bench.provider, limits=Limits(max_retries=2))
    for status in (429, 529):
        bench.server.reply(
            Reply([bench.dialect.error(status, "later")], status, {"retry-after": "0"}),
            Reply([bench.dialect.text("now")]),
        )
        assert await bench.ask() == "now"
        assert len(bench.server.requests) == 2


@_case
async def a_bad_request_is_not_retried(bench: Bench) -> None:
    """It would fail again."""
    register_provider(NAME, bench.provider, limits=Limits(max_retries=3))
    bench.server.reply(Reply([bench.dialect.error(400, "bad")], 400))
    with _raises(ProviderStatusError):
        await bench.ask()
    bench.asked_once()


@_case
async def a_slow_answer_ends_in_time(bench: Bench) -> None:
    """No status, or a body that stops in the middle: the time-out ends both, for good."""
    register_provider(NAME, bench.provider, limits=Limits(max_retries=3))
    half = bench.dialect.text("never")[:20]
    for reply in (Reply(ends="silence"), Reply([half], ends="never")):
        bench.server.reply(reply)
        for seconds in (0.1, 1.0, PATIENCE):  # a busy machine may take long to send anything
            with _raises(ProviderTimeoutError):
                await bench.ask(timeout=seconds)
            if bench.server.requests:
                break
        await bench.deserted()
        bench.asked_once()


@_case
async def a_cut_answer_is_a_connection_error(bench: Bench) -> None:
    """It may have been billed: it is not sent again."""
    register_provider(NAME, bench.provider, limits=Limits(max_retries=3))
    bench.server.reply(Reply([bench.dialect.text("never")[:20]], ends="cut"))
    with _raises(ProviderConnectionError):
        await bench.ask()
    bench.asked_once()


@_case
async def malformed_answers_are_protocol_errors(bench: Bench) -> None:
    """Whatever a server says with status 200, the caller gets text or this one error."""
    for body in (b"", b"fine!", b"{}", b"[]", b"null", b'"fine"', b"[" * 50_000, b"\xff\xfe"):
        bench.server.reply(Reply([body]))
        with _raises(ProviderProtocolError):
            await bench.ask()


@_case
async def nobody_there_is_a_connection_error(bench: Bench) -> None:
    """It says where it tried."""
    await asyncio.to_thread(bench.server.stop)
    with _raises(ProviderConnectionError) as caught:
        await bench.ask()
    assert isinstance(caught[0], ProviderConnectionError)
    assert not caught[0].sent, "nothing can have been sent"


# ------------------------------------------------------------------------ cancellation, crowds


@_case
async def cancelling_a_call_closes_its_connection(bench: Bench) -> None:
    """Only that one; the request is not sent again, and the provider goes on working."""
    register_provider(NAME, bench.provider, limits=Limits(max_retries=3))
    bench.server.reply(Reply(ends="silence"))
    call = asyncio.ensure_future(bench.ask())
    await bench.arrived()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled(), "the cancellation was swallowed"
    await bench.deserted()
    bench.asked_once()
    bench.server.reply(Reply([bench.dialect.text("again")]))
    assert await bench.ask() == "again"


@_case
async def cancelling_a_call_twice_closes_its_connection_too(bench: Bench) -> None:
    """The second cancellation, while the first is being carried out, leaves nothing open."""
    for steps in range(1, 6):
        bench.server.reply(Reply(ends="silence"))
        call = asyncio.ensure_future(bench.ask())
        await bench.arrived()
        for _ in range(steps):
            call.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([call])
        assert call.cancelled(), "the cancellation was swallowed"
        await bench.deserted()
        bench.asked_once()


@_case
async def two_hundred_calls_at_once_are_all_answered(bench: Bench) -> None:
    """By one client on one loop, over a bounded number of connections."""
    answers = await asyncio.gather(*(bench.ask(timeout=60) for _ in range(200)))
    assert answers == ["fine"] * 200
    assert len(bench.server.requests) == 200
    assert bench.server.connections <= 100, f"{bench.server.connections} connections"


@_case
async def the_key_is_in_no_log_and_no_repr(bench: Bench) -> None:
    """Not even in the most talkative log of all libraries involved."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    root, handler = logging.getLogger(), Keep()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        await bench.ask()
        bench.server.reply(Reply([bench.dialect.error(500, f"no {KEY}")], 500))
        with _raises(ProviderError):
            await bench.ask()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    said = "\n".join([*records, repr(bench.provider), str(bench.provider)])
    assert records, "nothing was logged: the case has no force"
    assert KEY not in said
