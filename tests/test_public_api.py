"""The public API: its names, their documentation, and the async twin of each blocking call."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import praval
from praval import testing

PACKAGE = Path(praval.__file__).parent
EXPORTS = [name for name in praval.__all__ if name != "__version__"]

GUIDE = {
    "Agent", "AgentSession", "Reef", "Spore", "SporeType", "agent", "agent_pipeline", "broadcast",
    "chat", "conditional_agent", "configure", "get_agent_info", "get_reef", "get_registry",
    "register_agent", "start_agents", "throttled_agent",
}  # fmt: skip
"""Names that the guide imports from `praval` and that this version has."""

BLOCKING = {
    "praval": {"chat", "start_agents", "broadcast"},
    "Agent": {"chat"},
    "AgentSession": {"start", "wait_for_completion"},
    "Pipeline": {"run"},
    "Reef": {"broadcast_to_channel", "wait_for_completion", "shutdown"},
}
"""What the guide prints as a blocking call, by the place where it is found."""


def members(owner: Any) -> list[tuple[str, Any]]:
    """Public methods and properties that a class of ours defines itself."""
    return [
        (name, each)
        for name, each in vars(owner).items()
        if not name.startswith("_")
        and (inspect.isfunction(each) or isinstance(each, property | classmethod))
    ]


CLASSES = [getattr(praval, name) for name in EXPORTS if inspect.isclass(getattr(praval, name))]
MEMBERS = [(owner, name, each) for owner in CLASSES for name, each in members(owner)]


# -- names -----------------------------------------------------------------------------------


def test_all_is_sorted_and_without_doubles() -> None:
    """One name, one line: a merge cannot hide a second one."""
    assert list(praval.__all__) == sorted(set(praval.__all__))


@pytest.mark.parametrize("name", praval.__all__)
def test_every_name_can_be_had(name: str) -> None:
    """Also those that are loaded on first use."""
    assert getattr(praval, name) is not None


def test_all_is_complete() -> None:
    """Whatever ``praval/__init__.py`` imports for its users is exported, and nothing else."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("praval")
        for alias in node.names
    }
    assert imported - {"calls"} == set(EXPORTS)


def test_what_the_guide_imports_is_there() -> None:
    """The names of the guide's core chapters are the public API."""
    assert set(EXPORTS) >= GUIDE


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Loading names on first use does not change what a typing error looks like."""
    with pytest.raises(AttributeError, match="no attribute 'agnet'"):
        praval.agnet  # noqa: B018
    assert not hasattr(praval, "calls")


def test_no_module_takes_the_name_of_a_function() -> None:
    """A file ``praval/agent.py`` would overwrite ``praval.agent`` when it is imported."""
    files = {path.stem for path in PACKAGE.iterdir()}
    assert not files & set(EXPORTS)


def test_the_names_say_where_they_live() -> None:
    """Every export is ours and imports from its module under its own name."""
    for name in EXPORTS:
        each = getattr(praval, name)
        assert each.__module__.startswith("praval."), name
        assert each.__name__ == name


# -- documentation ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPORTS)
def test_every_name_is_documented(name: str) -> None:
    """A docstring of its own, that begins with a sentence."""
    text = inspect.getdoc(getattr(praval, name)) or ""
    assert re.match(r".{10,}?[.:]", text, re.S), f"praval.{name}: {text!r}"
    assert not text.startswith(f"{name}("), "that is a signature made by a decorator"


@pytest.mark.parametrize(
    ("owner", "name", "each"), MEMBERS, ids=[f"{o.__name__}.{n}" for o, n, _ in MEMBERS]
)
def test_every_public_method_is_documented(owner: type, name: str, each: Any) -> None:
    """Methods and properties say what they do; there are enough of them to be sure we looked."""
    text = each.__doc__ or getattr(getattr(each, "__func__", None), "__doc__", None) or ""
    assert len(text) > 10, f"{owner.__name__}.{name}"


def test_the_methods_were_found() -> None:
    """The test above would pass on an empty list."""
    found = {f"{owner.__name__}.{name}" for owner, name, _ in MEMBERS}
    assert {
        "Reef.request",
        "Spore.create",
        "Spore.id",
        "Registry.get_agent",
        "Pipeline.run",
    } <= found
    assert len(found) > 60


@pytest.mark.parametrize("name", testing.__all__)
def test_the_testing_kit_is_documented(name: str) -> None:
    """What tests of users import has docstrings too."""
    assert len(inspect.getdoc(getattr(testing, name)) or "") > 20


# -- blocking and async ----------------------------------------------------------------------

PAIRS = [
    pytest.param(
        praval if place == "praval" else getattr(praval, place), name, id=f"{place}.{name}"
    )
    for place, names in BLOCKING.items()
    for name in sorted(names)
]


@pytest.mark.parametrize(("place", "name"), PAIRS)
def test_each_blocking_call_has_its_twin(place: Any, name: str) -> None:
    """``x`` blocks, ``ax`` is a coroutine function."""
    assert not inspect.iscoroutinefunction(getattr(place, name))
    assert inspect.iscoroutinefunction(getattr(place, f"a{name}"))


@pytest.mark.parametrize(("place", "name"), PAIRS)
def test_each_blocking_call_goes_through_the_bridge(place: Any, name: str) -> None:
    """Nothing is written twice: the blocking form is made by, or calls, the bridge module."""
    function: Callable[..., Any] = getattr(place, name)
    assert function.__code__.co_filename.endswith("sync.py") or {"refuse_on_loop"} <= set(
        function.__code__.co_names
    )


def test_whatever_has_a_twin_is_on_the_list() -> None:
    """Whoever adds a pair adds it to the table above."""
    found: dict[str, set[str]] = {}
    for place in [praval, *CLASSES]:
        names = praval.__all__ if place is praval else vars(place)
        pairs = {
            name
            for name in names
            if not name.startswith("_")
            and inspect.iscoroutinefunction(getattr(place, f"a{name}", None))
        }
        if pairs:
            found[place.__name__] = pairs
    assert found == BLOCKING


def test_decorated_handlers_keep_their_name_and_words() -> None:
    """An agent looks like its function to tools that read names and docstrings."""

    @praval.agent("reader")
    async def read_page(spore: praval.Spore) -> None:
        """Read a page."""

    assert (read_page.__name__, read_page.__doc__) == ("read_page", "Read a page.")  # type: ignore[attr-defined]
    assert "reader" in repr(read_page)
