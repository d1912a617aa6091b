"""Retries, limits, the circuit and the chain: what happens when providers falter."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from praval import Reef, Spore, achat, agent, astream, chat, configure
from praval.errors import (
    CircuitOpenError,
    ConfigurationError,
    NoModelError,
    OverloadedError,
    ProviderConnectionError,
    ProviderError,
    ProviderStatusError,
    ProviderTimeoutError,
    RateLimitError,
)
from praval.providers import (
    BaseProvider,
    ChatRequest,
    Limits,
    Response,
    asking,
    calls,
    configure_providers,
    register_provider,
)
from praval.providers.refusals import retry_after
from praval.providers.resilience import Circuit, Guard, Places, Rate

PATIENCE = 10.0


class Faltering(BaseProvider):
    """Raises the errors it is given, in turn, and then answers with its name."""

    any_loop = True

    def __init__(self, name: str = "fine", *errors: Exception) -> None:
        self.name = name
        self.errors = list(errors)
        self.asked = 0
        self.models: list[str | None] = []

    async def respond(self, request: ChatRequest) -> Response:
        self.asked += 1
        self.models.append(request.model)
        if self.errors:
            raise self.errors.pop(0)
        return Response(self.name)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which was waited before each further attempt; no time passes."""
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr(asking.asyncio, "sleep", sleep)
    monkeypatch.setattr(calls.time, "sleep", seconds.append)
    return seconds


# -- retries ---------------------------------------------------------------------------------


async def test_what_passes_is_tried_again_with_growing_and_jittered_delays(
    slept: list[float],
) -> None:
    """Half to the whole of 0.5, 1, 2 s."""
    model = Faltering("fine", *(OverloadedError("busy", 529) for _ in range(3)))
    register_provider("model", model)
    assert await achat("?", provider="model") == "fine"
    assert model.asked == 4
    for delay, most in zip(slept, (0.5, 1.0, 2.0), strict=True):
        assert most / 2 <= delay <= most


async def test_the_servers_wish_is_honoured(slept: list[float]) -> None:
    """Retry-After, plus a little, so that not all come back at once; not if it is too long."""
    register_provider("model", Faltering("fine", RateLimitError("slow", 429, 7.0)))
    assert await achat("?", provider="model") == "fine"
    assert 7.0 <= slept[0] <= 7.5
    patient = Faltering("fine", RateLimitError("slow", 429, 3_600.0))
    register_provider("model", patient)
    with pytest.raises(RateLimitError):
        await achat("?", provider="model")
    assert patient.asked == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e300"}, None),
        ({}, None),
    ],
)
def test_a_wish_is_read_in_each_of_its_forms(
    headers: dict[str, str], seconds: float | None
) -> None:
    """Seconds, milliseconds, a date; nonsense is no wish."""
    assert retry_after(headers) == seconds


def test_a_date_in_the_future_is_a_wish() -> None:
    """As HTTP allows."""
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    seconds = retry_after({"retry-after": later})
    assert seconds is not None
    assert 90 < seconds <= 100


@pytest.mark.parametrize(
    "error",
    [
        ProviderStatusError("bad", 400),
        ProviderStatusError("gone", 404),
        ProviderConnectionError("broke off", sent=True),
        ProviderTimeoutError("slow"),
        ProviderError("odd"),
        ValueError("mine"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
async def test_what_would_fail_again_or_may_have_been_billed_is_not_repeated(
    slept: list[float], error: Exception
) -> None:
    """The error reaches the caller as it is."""
    model = Faltering("fine", error)
    register_provider("model", model)
    with pytest.raises(type(error), match=str(error)):
        await achat("?", provider="model")
    assert (model.asked, slept) == (1, [])


async def test_a_connection_that_never_came_about_is_tried_again(slept: list[float]) -> None:
    """Nothing was sent, so nothing can be billed twice."""
    register_provider("model", Faltering("fine", ProviderConnectionError("no", sent=False)))
    assert await achat("?", provider="model") == "fine"


async def test_the_number_of_attempts_is_the_settings_or_the_providers(slept: list[float]) -> None:
    """performance.max_retries, the guide's PRAVAL_MAX_RETRIES; a provider may have its own."""
    configure({"performance": {"max_retries": 1}})
    errors = [OverloadedError("busy", 503) for _ in range(9)]
    model = Faltering("fine", *errors)
    register_provider("model", model)
    with pytest.raises(OverloadedError):
        await achat("?", provider="model")
    assert model.asked == 2
    own = Faltering("fine", *errors[:3])
    register_provider("own", own, limits=Limits(max_retries=3))
    assert await achat("?", provider="own") == "fine"


async def test_a_stream_is_begun_again_only_while_nothing_was_delivered(
    slept: list[float],
) -> None:
    """What was delivered cannot be taken back."""

    class Streaming(Faltering):
        delivers = False

        async def stream(self, request: ChatRequest) -> Any:
            self.asked += 1
            if self.delivers:
                yield "half"
            if self.errors:
                raise self.errors.pop(0)
            yield "whole"
            yield Response("whole")

    model = Streaming("fine", OverloadedError("busy", 529))
    register_provider("model", model)
    async with astream("?", provider="model") as stream:
        assert [piece async for piece in stream] == ["whole"]
    assert model.asked == 2
    model.delivers, model.errors = True, [OverloadedError("busy", 529)]
    seen: list[str] = []

    async def read() -> None:
        async with astream("?", provider=["model", "model"]) as stream:
            async for piece in stream:
                seen.append(piece)

    with pytest.raises(OverloadedError):
        await read()
    assert (seen, model.asked) == (["half"], 3)


# -- the circuit -----------------------------------------------------------------------------


async def test_a_provider_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    """Calls fail at once; then one is let through, and its success closes the circuit."""
    now = [0.0]
    circuit = Circuit("x", failures=2, pause=30, clock=lambda: now[0])
    for _ in range(2):
        assert circuit.state == "closed"
        circuit.enter()
        circuit.report(ok=False)
    assert circuit.state == "open"
    now[0] = 10
    with pytest.raises(CircuitOpenError, match=r"2 times in a row.*20 s more"):
        circuit.enter()
    now[0] = 31
    assert circuit.state == "half-open"
    circuit.enter()
    with pytest.raises(CircuitOpenError):
        circuit.enter()  # one trial at a time
    circuit.report(ok=False)
    assert circuit.state == "open"
    now[0] = 62
    circuit.enter()
    circuit.forget()  # cancelled: it told nothing
    circuit.enter()
    circuit.report(ok=True)
    assert circuit.state == "closed"


async def test_only_the_providers_own_failures_open_the_circuit() -> None:
    """A bad request or a used-up quota says nothing of its health."""
    errors = [ProviderStatusError("bad", 400), RateLimitError("slow", 429), ValueError("mine")]
    register_provider("model", Faltering("fine", *errors), limits=Limits(failures=1, max_retries=0))
    for error in errors:
        with pytest.raises(type(error)):
            await achat("?", provider="model")
    assert await achat("?", provider="model") == "fine"


async def test_an_open_circuit_hands_over_to_the_next_provider() -> None:
    """The first is not even asked."""
    broken = Faltering("a", *(OverloadedError("busy", 500) for _ in range(9)))
    register_provider("a", broken, limits=Limits(failures=2, max_retries=0))
    register_provider("b", Faltering("b"))
    assert [await achat("?", provider=["a", "b"]) for _ in range(5)] == ["b"] * 5
    assert broken.asked == 2


# -- limits ----------------------------------------------------------------------------------


class Counting(BaseProvider):
    """Counts how many calls are in it at once."""

    any_loop = True

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    async def achat(self, messages: Any, model: str | None = None) -> str:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        await asyncio.sleep(0.005)
        with self.lock:
            self.now -= 1
        return "fine"


async def test_at_most_so_many_requests_are_under_way_at_once_on_all_loops_together() -> None:
    """Also from other threads with loops of their own."""
    model = Counting()
    register_provider("model", model, limits=Limits(max_concurrency=2))

    async def ask() -> list[Any]:
        return await asyncio.gather(*(achat("?", provider="model") for _ in range(8)))

    answers = await asyncio.gather(ask(), asyncio.to_thread(lambda: asyncio.run(ask())))
    assert answers == [["fine"] * 8] * 2
    assert model.most == 2


async def test_a_cancelled_wait_for_a_place_loses_no_place() -> None:
    """Whether it waits, or its turn has just come."""
    places = Places(1)
    order: list[int] = []

    async def work(number: int) -> None:
        async with places.place():
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.wait(tasks)
    await asyncio.wait_for(work(9), PATIENCE)
    assert order[0] == 0
    assert order[-1] == 9


def test_requests_are_spread_over_the_minute() -> None:
    """A burst first, then one by one as the minute allows, in order of arrival."""
    now = [0.0]
    rate = Rate(3, lambda: now[0])
    waits = [rate._reserve(3) for _ in range(5)]
    assert waits == [0, 0, 0, 60, 60]
    now[0] = 130
    assert rate._reserve(3) == 0


async def test_a_providers_rate_makes_calls_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """requests_per_minute; the wait is cancellable."""
    register_provider("model", Faltering(), limits=Limits(requests_per_minute=2))
    assert [await achat("?", provider="model") for _ in range(2)] == ["fine"] * 2
    with pytest.raises(ProviderTimeoutError):
        await achat("?", provider="model", timeout=0.05)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(requests_per_minute=0),
        Limits(max_concurrency=0),
        Limits(max_retries=-1),
        Limits(failures=0),
        Limits(pause=0),
        Limits(pause="long"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_limits_out_of_range_are_refused(limits: Limits) -> None:
    """When they are set."""
    with pytest.raises(ConfigurationError, match="Bad limits"):
        register_provider("model", Faltering(), limits=limits)


def test_a_guard_is_free_of_charge_without_limits() -> None:
    """A call that waits for nothing is not sent through the event loop again."""
    guard = Guard("x")
    steps = guard.attempt().__aenter__().__await__()
    with pytest.raises(StopIteration):
        next(steps)


# -- the chain -------------------------------------------------------------------------------


async def test_the_next_provider_is_asked_when_one_fails_for_good(slept: list[float]) -> None:
    """Whatever it raised; the answer tells who gave it."""
    register_provider("a", Faltering("a", ProviderStatusError("bad", 400)))
    register_provider("b", Faltering("b", ValueError("mine")))
    register_provider("c", Faltering("c"))
    response = await achat("?", provider=["a", "b", "c"])
    assert (response, response.provider) == ("c", "c")


async def test_when_all_fail_the_error_tells_of_each() -> None:
    """By name, with what it said."""
    register_provider("a", Faltering("a", ProviderStatusError("first reason", 400)))
    register_provider("b", Faltering("b", ValueError("second reason")))
    with pytest.raises(ProviderError, match=r"(?s)None of 2.*a: .*first.*b: ValueError: second"):
        await achat("?", provider=["a", "b"])


async def test_a_provider_without_a_key_is_passed_over() -> None:
    """So that one program works on machines with different keys."""
    register_provider("mine", Faltering("mine"))
    assert await achat("?", provider=["anthropic", "openai", "mine"]) == "mine"
    with pytest.raises(NoModelError, match=r"(?s)anthropic.*ANTHROPIC_API_KEY.*OPENAI_API_KEY"):
        await achat("?", provider=["anthropic", "openai"])


async def test_a_question_that_is_at_fault_is_not_asked_elsewhere() -> None:
    """The next one would refuse it too."""
    register_provider("b", Faltering("b"))
    with pytest.raises(ConfigurationError, match="known:"):
        await achat("?", provider=["nobody", "b"])


async def test_each_of_the_chain_is_asked_for_a_model_that_it_has() -> None:
    """The call's model is the first one's; others use their own, or the one behind the colon."""
    a, b = Faltering("a", ValueError("x")), Faltering("b", ValueError("x"))
    register_provider("a", a)
    register_provider("b", b)
    register_provider("c", c := Faltering("c"))
    assert await achat("?", provider=["a", "b:small", "c"], model="big") == "c"
    assert (a.models, b.models, c.models) == (["big"], ["small"], [None])


def test_a_model_goes_to_the_one_of_the_chain_that_makes_it() -> None:
    """By the vendors' names for their models, wherever it stands in the chain."""
    from praval.providers.choice import candidates

    configure_providers({name: {"api_key": "k"} for name in ("anthropic", "openai")})
    found = candidates([(["anthropic", "openai"], "gpt-4-turbo")])
    assert [(each.name, each.model) for each in found] == [
        ("anthropic", None),
        ("openai", "gpt-4-turbo"),
    ]


async def test_an_agent_may_have_a_chain() -> None:
    """@agent(provider=[...])."""
    register_provider("a", Faltering("a", ValueError("x")))
    register_provider("b", Faltering("b"))

    @agent("worker", provider=["a", "b"])
    async def worker(spore: Spore) -> dict[str, str]:
        return {"said": await achat("?")}

    async with Reef(worker) as reef:
        answer = await reef.request("worker", {"type": "x"}, timeout=PATIENCE)
        assert answer.knowledge == {"said": "b"}


def test_plain_code_has_all_of_it_too(slept: list[float]) -> None:
    """chat() with a chain, and a plain provider in it."""

    class Plain(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            raise OSError("plainly")

    register_provider("plain", Plain())
    register_provider("b", Faltering("b", OverloadedError("busy", 503)))
    assert chat("?", provider=["plain", "b"]) == "b"
    assert len(slept) == 1


def test_a_plain_provider_in_plain_code_is_retried_and_left_alone_too(slept: list[float]) -> None:
    """It is asked in the thread that calls chat(), behind the same guard."""
    asked: list[threading.Thread] = []

    class Plain(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            asked.append(threading.current_thread())
            if len(asked) == 2:
                return "fine"
            raise OverloadedError("busy", 503)

    register_provider("plain", Plain(), limits=Limits(max_retries=1, failures=2))
    assert chat("?", provider="plain") == "fine"
    assert asked == [threading.current_thread()] * 2
    with pytest.raises(OverloadedError):
        chat("?", provider="plain")
    with pytest.raises(CircuitOpenError):
        chat("?", provider="plain")
    assert (len(asked), len(slept)) == (4, 2)


@pytest.mark.parametrize("chain", [[], ["a", ""], ["a", 5]])
def test_a_chain_is_made_of_names(chain: Any) -> None:
    """Named in the error."""
    ask: Callable[..., Any] = chat
    with pytest.raises(ConfigurationError, match="provider must be"):
        ask("?", provider=chain)
