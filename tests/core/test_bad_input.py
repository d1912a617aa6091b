"""Bad input: each kind has its typed error, says what is wrong, and changes nothing."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from praval import (
    Agent,
    AgentSession,
    Reef,
    Spore,
    agent,
    agent_pipeline,
    astart_agents,
    conditional_agent,
    configure,
    get_registry,
    register_agent,
    throttled_agent,
)
from praval.errors import (
    AgentError,
    ConfigurationError,
    DuplicateAgentError,
    HandlerSignatureError,
    KnowledgeError,
    MalformedSporeError,
    PravalError,
    SporeTooLargeError,
    UnknownAgentError,
    UnknownNameError,
)
from praval.settings import Settings, current_settings, merge
from praval.testing import TestReef


def good(spore: Spore) -> None:
    """A handler without fault."""


async def no_spore(message: Any) -> None:
    """A handler that cannot be given a spore."""


def generator(spore: Spore) -> Any:
    yield 1


async def async_generator(spore: Spore) -> Any:
    yield 1


async def wants(spore: Spore, moon: Any) -> None:
    """A handler with a parameter that nobody provides."""


async def always(spore: Spore) -> bool:
    """A condition whose coroutine would be true for every spore."""
    return False


async def collects(*spore: Spore) -> None:
    """A handler that takes any number of spores."""


async def collects_names(**spore: Spore) -> None:
    """A handler that takes any names."""


async def behind(limit: int = 10, spore: Spore | None = None, /) -> None:
    """A handler whose spore is by position only, behind another parameter."""


async def reef_by_position(reef: Reef, /, spore: Spore) -> None:
    """A handler whose Reef cannot be given by name."""


class Callee:
    """A class is no handler, though it can be called."""

    def __init__(self, spore: Spore) -> None:
        self.spore = spore


def state(reef: Reef) -> dict[str, Any]:
    """All that bad input could change."""
    return {
        "ledger": reef.ledger(),
        "agents": {name: runner.agent for name, runner in reef.runners.items()},
        "channels": reef.channels,
        "running": reef.running,
        "health": reef.health_check(),
        "letters": reef.dead_letters(),
        "requests": len(reef.requests),
        "registry": get_registry().list_agents(),
        "settings": current_settings(),
    }


@pytest.fixture
async def reef() -> AsyncIterator[TestReef]:
    """A running Reef with a small limit on sizes, one agent and something in its ledger."""
    limits = merge(Settings(), {"security": {"max_message_size": 1_000}})
    async with TestReef(agent("reader", responds_to=["page"])(good), settings=limits) as running:
        await running.broadcast({"type": "page"})
        await running.settle()
        yield running
        await running.broadcast({"type": "page"})
        await running.settle()
        assert [each.agent for each in running.handled].count("reader") == 2, "it works as before"
        assert running.ledger().balanced


# -- declarations ----------------------------------------------------------------------------

DECLARATIONS: list[tuple[str, type[PravalError], Callable[[], Any]]] = [
    ("no function", HandlerSignatureError, lambda: agent("x")(5)),  # type: ignore[arg-type]
    ("a string", HandlerSignatureError, lambda: agent("x")("handler")),  # type: ignore[arg-type]
    ("a class", HandlerSignatureError, lambda: agent("x")(Callee)),
    ("a generator", HandlerSignatureError, lambda: agent("x")(generator)),
    ("an async generator", HandlerSignatureError, lambda: agent("x")(async_generator)),
    ("no spore parameter", HandlerSignatureError, lambda: agent("x")(no_spore)),
    ("no parameter at all", HandlerSignatureError, lambda: agent("x")(lambda: None)),
    ("spores collected", HandlerSignatureError, lambda: agent("x")(collects)),
    ("names collected", HandlerSignatureError, lambda: agent("x")(collects_names)),
    ("spore by position, behind", HandlerSignatureError, lambda: agent("x")(behind)),
    ("a builtin without signature", HandlerSignatureError, lambda: agent("x")(min)),
    ("no name", HandlerSignatureError, lambda: agent(good)),  # type: ignore[arg-type]
    ("registered without spore", HandlerSignatureError, lambda: register_agent(no_spore)),
    ("registered number", HandlerSignatureError, lambda: register_agent(5)),
    ("empty name", AgentError, lambda: agent("")(good)),
    ("blank name", AgentError, lambda: agent("  ")(good)),
    ("name is a number", AgentError, lambda: agent(5)(good)),  # type: ignore[arg-type]
    ("name too long", AgentError, lambda: agent("é" * 65)(good)),
    ("half a surrogate", AgentError, lambda: agent("a\ud800")(good)),
    ("reserved name", AgentError, lambda: agent("praval")(good)),
    ("reserved start", AgentError, lambda: Agent("@home")),
    ("types no strings", ConfigurationError, lambda: agent("x", responds_to=[5])),  # type: ignore[list-item]
    ("types a number", ConfigurationError, lambda: agent("x", responds_to=5)),  # type: ignore[arg-type]
    ("transactional", ConfigurationError, lambda: agent("x", transactional="no")),  # type: ignore[arg-type]
    ("auto_broadcast", ConfigurationError, lambda: agent("x", auto_broadcast="no")),  # type: ignore[arg-type]
    ("empty channel", ConfigurationError, lambda: agent("x", channel="")),
    ("negative timeout", ConfigurationError, lambda: agent("x", timeout=-1)),
    ("timeout zero", ConfigurationError, lambda: agent("x", timeout=0)),
    ("timeout NaN", ConfigurationError, lambda: agent("x", timeout=math.nan)),
    ("timeout text", ConfigurationError, lambda: agent("x", timeout="5")),  # type: ignore[arg-type]
    ("negative retries", ConfigurationError, lambda: agent("x", retries=-1)),
    ("retries fraction", ConfigurationError, lambda: agent("x", retries=1.5)),  # type: ignore[arg-type]
    ("negative backoff", ConfigurationError, lambda: agent("x", backoff=-0.1)),
    ("endless backoff", ConfigurationError, lambda: agent("x", backoff=math.inf)),
    ("concurrent zero", ConfigurationError, lambda: agent("x", concurrent=0)),
    ("concurrent negative", ConfigurationError, lambda: agent("x", concurrent=-2)),
    ("on_error", ConfigurationError, lambda: agent("x", on_error="ignore")),  # type: ignore[arg-type]
    ("condition", ConfigurationError, lambda: conditional_agent("x", True)),  # type: ignore[arg-type]
    ("async condition", ConfigurationError, lambda: conditional_agent("x", always)),  # type: ignore[arg-type]
    ("generator condition", ConfigurationError, lambda: conditional_agent("x", generator)),
    ("throttle zero", ConfigurationError, lambda: throttled_agent("x", 0)),
    ("throttle NaN", ConfigurationError, lambda: throttled_agent("x", math.nan)),
    ("session timeout", ConfigurationError, lambda: AgentSession(timeout=-1)),
    ("session agents", ConfigurationError, lambda: AgentSession(max_agents=0)),
    ("no stage", ConfigurationError, agent_pipeline),
    ("stage no agent", HandlerSignatureError, lambda: agent_pipeline(good)),  # type: ignore[arg-type]
    ("unknown key", UnknownNameError, lambda: configure(max_thread=4)),
    ("bad value", ConfigurationError, lambda: configure({"reef_config": {"max_hops": -1}})),
    ("reef of a list", HandlerSignatureError, lambda: Reef([agent("y")(good)])),  # type: ignore[arg-type]
    ("malformed JSON", MalformedSporeError, lambda: Spore.from_bytes(b'{"praval_spore":1,')),
    ("JSON of another kind", MalformedSporeError, lambda: Spore.from_bytes(b'{"a":1}')),
]


@pytest.mark.parametrize(
    ("kind", "declare"), [each[1:] for each in DECLARATIONS], ids=[each[0] for each in DECLARATIONS]
)
async def test_a_bad_declaration_is_refused_and_changes_nothing(
    reef: TestReef, kind: type[PravalError], declare: Callable[[], Any]
) -> None:
    """Nothing is registered, configured or started by a declaration that is refused."""
    before = state(reef)
    with pytest.raises(kind, match=r".{20,}"):
        declare()
    after = state(reef)
    if declare is DECLARATIONS[-3][2]:  # declares a good agent on the way
        assert after["registry"][-1]["name"] == "y"
        after["registry"].pop()
    assert after == before


# -- adding ----------------------------------------------------------------------------------


@agent("reader")
async def impostor(spore: Spore) -> None:
    """Another agent of the same name."""


async def test_a_duplicate_name_is_refused_and_the_first_stays(reef: TestReef) -> None:
    """In a running Reef, in a new one, and in a session."""
    agent("reader")(impostor.handler)
    before = state(reef)
    with pytest.raises(DuplicateAgentError, match=r"'reader' already.*Choose another name"):
        await reef.add(impostor)
    assert state(reef) == before
    reader = before["agents"]["reader"]
    with pytest.raises(DuplicateAgentError):
        Reef(reader, impostor)
    session = AgentSession()
    session.add_agent(reader)
    with pytest.raises(DuplicateAgentError):
        session.add_agent(impostor)


@pytest.mark.parametrize(
    "candidate",
    [good, 5, None, "reader", Callee],
    ids=["function", "number", "none", "text", "class"],
)
async def test_what_is_no_agent_cannot_be_added(reef: TestReef, candidate: Any) -> None:
    """The message says how to make one."""
    before = state(reef)
    with pytest.raises(HandlerSignatureError, match="is not an agent"):
        await reef.add(candidate)
    assert state(reef) == before


async def test_a_reef_by_position_cannot_be_injected(reef: TestReef) -> None:
    """All but the spore is given by name; the message says what to remove."""
    definition = agent("by_position")(reef_by_position)
    before = state(reef)
    with pytest.raises(
        HandlerSignatureError, match=r"takes 'reef' by position only.*Remove the '/'"
    ):
        await reef.add(definition)
    assert state(reef) == before


def test_a_decorator_without_a_name_says_what_to_write() -> None:
    """The message has the function's own name in it."""
    with pytest.raises(HandlerSignatureError, match=r'Write @agent\("good"\)'):
        agent(good)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"responds_to": 5}, "responds_to must be a list of strings, not 5"),
        ({"transactional": "no"}, "transactional must be True or False, not 'no'"),
        ({"auto_broadcast": "no"}, "auto_broadcast must be True or False, not 'no'"),
        ({"_condition": always}, "condition must be a plain function"),
    ],
)
def test_a_bad_option_is_named(option: dict[str, Any], text: str) -> None:
    """With the agent, what was given and what it is to be."""
    with pytest.raises(ConfigurationError, match=f"Agent 'x': {text}"):
        agent("x", **option)


async def test_a_handler_that_wants_too_much_cannot_be_added(reef: TestReef) -> None:
    """What cannot be injected is an error when the agent is to start, and names the parameter."""
    definition = agent("wants")(wants)
    before = state(reef)
    with pytest.raises(HandlerSignatureError, match="wants 'moon', which nothing provides"):
        await reef.add(definition)
    assert state(reef) == before


async def test_a_bad_replacement_leaves_the_old_definition_at_work(reef: TestReef) -> None:
    """A notebook cell that is run again with a mistake does not silence the agent."""

    def cell(broken: bool) -> Any:
        if broken:

            async def handler(spore: Spore, moon: Any) -> None:
                return None
        else:

            async def handler(spore: Spore) -> dict[str, Any]:  # type: ignore[misc]
                return {"n": 1}

        return agent("cell", responds_to=["cell"])(handler)

    await reef.add(cell(broken=False))
    mistake = cell(broken=True)
    before = state(reef)
    with pytest.raises(HandlerSignatureError, match="moon"):
        await reef.add(mistake)
    assert state(reef) == before
    assert (await reef.request("cell", {"type": "cell"})).knowledge == {"n": 1}


async def test_an_unknown_agent_cannot_be_removed(reef: TestReef) -> None:
    """The near name is suggested."""
    before = state(reef)
    with pytest.raises(UnknownAgentError, match='Did you mean "reader"'):
        await reef.remove("raeder")
    assert state(reef) == before


# -- publishing ------------------------------------------------------------------------------

BAD_DATA: list[tuple[str, type[PravalError], Any]] = [
    ("none", KnowledgeError, None),
    ("a number", KnowledgeError, 5),
    ("a string", KnowledgeError, "target_agent"),
    ("a list", KnowledgeError, [{"type": "page"}]),
    ("an object", KnowledgeError, {"a": object()}),
    ("a function", KnowledgeError, {"a": print}),
    ("NaN", KnowledgeError, {"a": [math.nan]}),
    ("infinity", KnowledgeError, {"a": {"b": -math.inf}}),
    ("a surrogate", KnowledgeError, {"a": "\ud800"}),
    ("a type that is no string", KnowledgeError, {"type": 5}),
    ("too large", SporeTooLargeError, {"type": "page", "text": "x" * 1_001}),
    ("a target that is no string", ConfigurationError, {"type": "page", "target_agent": 5}),
]


@pytest.mark.parametrize(
    ("way", "kind", "data"),
    [
        pytest.param(way, kind, data, id=f"{way}-{label}")
        for way in ("broadcast", "to_channel", "send", "request")
        for label, kind, data in BAD_DATA
        if kind is not ConfigurationError or way in ("broadcast", "to_channel")
    ],
)
async def test_bad_knowledge_is_refused_and_changes_nothing(
    reef: TestReef, way: str, kind: type[PravalError], data: Any
) -> None:
    """No delivery begins, nothing is counted, no request stays open."""
    before = state(reef)
    call = {
        "broadcast": lambda: reef.broadcast(data),
        "to_channel": lambda: reef.abroadcast_to_channel("main", data),
        "send": lambda: reef.send("reader", data),
        "request": lambda: reef.request("reader", data, 5),
    }[way]
    with pytest.raises(kind, match=r".{20,}"):
        await call()
    assert state(reef) == before


BAD_ARGUMENTS: list[dict[str, Any]] = [
    {"ttl": -1}, {"ttl": 0}, {"ttl": math.nan}, {"ttl": "5"}, {"priority": 0}, {"priority": 11},
    {"priority": 5.5}, {"priority": True}, {"priority": "high"}, {"key": 5}, {"channel": 5},
    {"target_agent": 5}, {"target_agent": ["reader"]}, {"headers": {"a": 1}}, {"headers": ["a"]},
    {"headers": {1: "a"}},
]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=repr)
async def test_a_bad_argument_of_broadcast_names_itself(
    reef: TestReef, arguments: dict[str, Any]
) -> None:
    """Wrong type or range is an error at the call, not later at some receiver."""
    (name,) = arguments
    before = state(reef)
    with pytest.raises(ConfigurationError, match=name):
        await reef.broadcast({"type": "page"}, **arguments)
    assert state(reef) == before


@pytest.mark.parametrize("timeout", [-1, 0, math.nan, "5", [1]], ids=repr)
async def test_a_bad_timeout_is_refused(reef: TestReef, timeout: Any) -> None:
    """Negative, zero, NaN, no number: for a request, a session and a pipeline alike."""
    before = state(reef)
    with pytest.raises(ConfigurationError, match="timeout must be"):
        await reef.request("reader", {"type": "page"}, timeout)
    reader = before["agents"]["reader"]
    with pytest.raises(ConfigurationError, match="timeout must be"):
        await astart_agents(reader, initial_data={"type": "page"}, timeout=timeout)
    with pytest.raises(ConfigurationError, match="timeout must be"):
        await agent_pipeline(reader).arun({}, timeout)
    assert state(reef) == before


@pytest.mark.parametrize("timeout", [-1, math.nan, "5"], ids=repr)
async def test_waiting_takes_no_negative_time(reef: TestReef, timeout: Any) -> None:
    """``wait_idle`` may look without waiting (0), but not into the past."""
    await reef.wait_idle(0)
    with pytest.raises(ConfigurationError, match="timeout must be"):
        await reef.wait_idle(timeout)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "9"], ids=repr)
async def test_a_bad_number_of_iterations_is_refused(reef: TestReef, number: Any) -> None:
    """``max_iterations`` is a whole number above 0; no agent is started otherwise."""
    before = state(reef)
    with pytest.raises(ConfigurationError, match="max_iterations"):
        await astart_agents(
            before["agents"]["reader"], initial_data={"type": "page"}, max_iterations=number
        )
    assert state(reef) == before


@pytest.mark.parametrize("way", ["broadcast", "send", "request", "publish"])
async def test_an_unknown_recipient_raises_and_is_counted_once(reef: TestReef, way: str) -> None:
    """The caller gets the near name; the ledger has one undeliverable delivery, nothing else."""
    before = state(reef)
    data = {"type": "page"}
    call: Callable[[], Any] = {
        "broadcast": lambda: reef.broadcast(data, target_agent="raeder"),
        "send": lambda: reef.send("raeder", data),
        "request": lambda: reef.request("raeder", data, 5),
        "publish": lambda: reef.publish(Spore.create(data, to_agent="raeder")),
    }[way]
    with pytest.raises(UnknownAgentError, match=r"No agent 'raeder'.*Did you mean \"reader\""):
        await call()
    after = state(reef)
    ledger = after.pop("ledger")
    assert ledger.undeliverable == before["ledger"].undeliverable + 1
    assert ledger.deliveries == before["ledger"].deliveries + 1
    assert ledger.balanced
    del before["ledger"]
    assert after == before


async def test_an_unknown_dead_letter_cannot_be_replayed(reef: TestReef) -> None:
    """The error says where to look."""
    before = state(reef)
    with pytest.raises(UnknownAgentError, match=r"see reef\.dead_letters"):
        await reef.replay("nothing:reader")
    assert state(reef) == before


@pytest.mark.parametrize(
    "data", [5, {"a": object()}, {"a": math.nan}], ids=["number", "object", "nan"]
)
async def test_bad_knowledge_inside_a_handler_fails_that_delivery_only(
    reef: TestReef, data: Any
) -> None:
    """The error is the handler's own; what it emitted before is kept, nothing else is counted."""
    caught: list[Exception] = []

    @agent("careless", responds_to=["go"])
    async def careless(spore: Spore) -> None:
        try:
            reef.emit(data, reef.runners["careless"])
        except KnowledgeError as error:
            caught.append(error)
            raise

    await reef.add(careless)
    before = reef.ledger()
    await reef.broadcast({"type": "go"})
    await reef.settle()
    after = reef.ledger()
    assert len(caught) == 1
    assert (after.failed, after.deliveries) == (before.failed + 1, before.deliveries + 1)
    assert after.balanced


# -- before and after ------------------------------------------------------------------------


async def test_a_reef_that_was_not_entered_says_so() -> None:
    """Every method that needs a running Reef raises ReefClosedError, not AttributeError."""
    new = Reef(agent("a")(good))
    calls: list[Callable[[], Any]] = [
        lambda: new.broadcast({}),
        lambda: new.send("a", {}),
        lambda: new.publish(Spore.create({})),
        lambda: new.request("a", {}),
        lambda: new.wait_idle(1),
        lambda: new.remove("a"),
        lambda: new.replay("x"),
    ]
    for call in calls:
        with pytest.raises(PravalError, match="was not entered yet"):
            await call()
    for plain in (new.get_statistics, lambda: new.clear_channel("main"), new.ledger):
        with pytest.raises(PravalError, match="was not entered yet"):
            plain()
    assert new.health_check()["status"] == "closed"
    assert new.dead_letters() == []
    await new.aclose()
