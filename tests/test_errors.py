"""Errors: one tree, as it is drawn, and messages that help."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import praval
from praval import AgentSession, Reef, Spore, agent, agent_pipeline, configure, errors
from praval.errors import PravalError
from praval.plugins import load
from praval.settings import Settings, from_environment


def drawn() -> dict[str, tuple[str | None, str]]:
    """Read the tree in the docstring: class -> its parent and its comment."""
    found: dict[str, tuple[str | None, str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ((?:│   |    )*)(?:[├└]── )?(\w+Error)\s*(.*)", line)
        if match:
            depth = 0 if "─" not in line else len(match[1]) // 4 + 1
            path = [*path[:depth], match[2]]
            found[match[2]] = (path[-2] if depth else None, match[3])
    return found


CLASSES = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and issubclass(each, BaseException)
}


def test_the_drawing_is_complete() -> None:
    """Every error is in the tree of the docstring, and nothing else is."""
    assert set(drawn()) == set(CLASSES)
    assert len(CLASSES) > 25


def test_the_drawing_is_true() -> None:
    """Each error stands below its own parent."""
    for name, (parent, _) in drawn().items():
        ours = [
            base.__name__ for base in CLASSES[name].__bases__ if base.__module__ == "praval.errors"
        ]
        assert ours == ([parent] if parent else []), name


def test_the_drawing_tells_which_errors_are_timeouts() -> None:
    """``except TimeoutError`` catches exactly those that promise it, or say so by their name."""
    for name, (_, comment) in drawn().items():
        is_timeout = issubclass(CLASSES[name], TimeoutError)
        assert is_timeout == ("TimeoutError" in comment or "Timeout" in name), name


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_documented_and_caught_by_one_except(name: str) -> None:
    """All are PravalErrors with a docstring of their own; none is a bare PravalError's alias."""
    assert issubclass(CLASSES[name], PravalError)
    assert CLASSES[name].__doc__
    assert (CLASSES[name].__doc__ or "").endswith((".", ")"))


def test_no_module_defines_an_error_outside_the_tree() -> None:
    """An error that a library user may catch is under PravalError, wherever it is defined."""
    root = Path(praval.__file__).parent
    for path in root.rglob("*.py"):
        for name, bases in re.findall(
            r"^class (\w+(?:Error|Fault|Exception))\((.*)\):", path.read_text(), re.M
        ):
            if bases.startswith("ExceptionGroup["):
                continue  # a report of several errors, each of them from the tree
            known = any(
                base.strip().split(".")[-1] in {*CLASSES, "Exception"} for base in bases.split(",")
            )
            assert known, f"{path.name}: {name}({bases})"
            if "Exception" in bases.split(","):
                assert name in ("PravalError", "InjectedFault"), f"{path.name}: {name}"


# -- messages --------------------------------------------------------------------------------


@agent("echo")
async def echo(spore: Spore) -> dict[str, Any]:
    return {"n": 1}


@agent("slow")
async def slow(spore: Spore) -> None:
    await asyncio.sleep(3600)


@agent("echo")
async def impostor(spore: Spore) -> None:
    return None


def on_a_loop(work: Callable[[], Any]) -> Callable[[], Any]:
    async def main() -> None:
        work()

    return lambda: asyncio.run(main())


def in_a_reef(work: Callable[[Reef], Any], **options: Any) -> Callable[[], Any]:
    async def main() -> None:
        async with Reef(echo, slow, **options) as reef:
            try:
                await work(reef)
            finally:
                await reef.aclose(drain=False)

    return lambda: asyncio.run(main())


def twice() -> None:
    async def main() -> None:
        reef = Reef()
        async with reef:
            pass
        async with reef:
            pass

    asyncio.run(main())


SAMPLE: list[tuple[type[PravalError], Callable[[], Any], str]] = [
    (errors.UnknownNameError, lambda: configure(max_thread=3), r"Did you mean"),
    (
        errors.UnknownNameError,
        lambda: load("transport", "ampq", {"amqp": "a:b"}, group="g"),
        "Did you mean",
    ),
    (errors.ConfigurationError, lambda: from_environment({"PRAVAL_DEBUG": "x"}), "Expected"),
    (errors.ConfigurationError, lambda: agent("a", retries=-1), "at least 0"),
    (errors.ConfigurationError, lambda: AgentSession(timeout=-1), "above 0"),
    (errors.ConfigurationError, agent_pipeline, "at least one"),
    (errors.AgentError, lambda: agent("praval")(lambda spore: None), "choose"),
    (errors.HandlerSignatureError, lambda: agent("a")(lambda message: None), "Write: def"),
    (errors.HandlerSignatureError, lambda: Reef(lambda spore: None), "decorate it with @agent"),  # type: ignore[arg-type]
    (errors.DuplicateAgentError, lambda: Reef(echo, impostor), "Choose another name, or remove"),
    (errors.UnknownAgentError, lambda: praval.get_agent_info("ecko"), "Did you mean|Known"),
    (
        errors.UnknownAgentError,
        in_a_reef(lambda reef: reef.send("ecko", {})),
        'Did you mean "echo"',
    ),
    (errors.KnowledgeError, lambda: Spore.create({"a": {1, object()}}), r"knowledge\['a'\]"),
    (errors.SporeTooLargeError, lambda: Spore.create({"a": 1}, limit=2), "Send a reference|raise"),
    (errors.MalformedSporeError, lambda: Spore.from_bytes(b"{"), "not a spore"),
    (errors.ReefError, twice, "make a new one"),
    (errors.ReefClosedError, lambda: asyncio.run(Reef().broadcast({})), "use `async with"),
    (errors.NoReefError, on_a_loop(praval.get_reef), "use `async with|await astart_agents"),
    (errors.BlockingCallError, on_a_loop(lambda: praval.chat("x")), "Write `await achat"),
    (
        errors.MailboxFullError,
        in_a_reef(
            lambda reef: asyncio.gather(*(reef.send("echo", {}) for _ in range(9))),
            settings=Settings(
                reef_config=praval.settings.ReefSettings(channel_capacity=1, overflow="reject")
            ),
        ),
        "Slow down|raise reef_config.channel_capacity",
    ),
    (
        errors.RequestTimeoutError,
        in_a_reef(lambda reef: reef.request("slow", {}, 0.01)),
        "Raise timeout=",
    ),
    (errors.FeatureUnavailableError, lambda: echo.remember("x"), "does not have yet"),
    (errors.ConfigurationError, lambda: Reef(security=object()), "must be a Keyring"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    ("kind", "provoke", "advice"),
    SAMPLE,
    ids=[f"{n}-{each[0].__name__}" for n, each in enumerate(SAMPLE)],
)
def test_a_message_says_what_happened_and_what_to_do(
    kind: type[PravalError], provoke: Callable[[], Any], advice: str
) -> None:
    """Each is a sentence of words with the cause in it, and with a way out."""
    with pytest.raises(kind) as caught:
        provoke()
    text = str(caught.value)
    assert type(caught.value) is kind
    assert re.search(advice, text), text
    assert len(text) > 25
    assert text.rstrip("'\"").endswith((".", "?", "`", ")"))
    assert "\n" not in text
