"""Plug-ins: how a name becomes a class."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from praval.errors import ConfigurationError, UnknownNameError
from praval.plugins import load, near

BUILTIN = {"ordered": "collections:OrderedDict", "path": "pathlib:Path"}
GROUP = "praval.test_things"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A third party's distribution that registers two plug-ins, on the path."""
    site = tmp_path / "site"
    info = site / "third_party-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nfancy = third_party_things:Fancy\npath = third_party_things:Fancy\n"
        "[praval.others]\nhidden = third_party_things:Fancy\n"
    )
    (site / "third_party_things.py").write_text("class Fancy:\n    pass\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "third_party_things", raising=False)
    return site


def test_a_built_in_is_found_in_the_table() -> None:
    """The table names module and attribute; the module is imported when asked for."""
    assert load("thing", "ordered", BUILTIN, group=GROUP) is OrderedDict


def test_a_third_party_registers_by_entry_point(installed: Path) -> None:
    """An installed distribution's plug-in is found by its name."""
    assert load("thing", "fancy", BUILTIN, group=GROUP).__name__ == "Fancy"


def test_a_built_in_cannot_be_taken_over(installed: Path) -> None:
    """A distribution that registers a built-in's name changes nothing."""
    assert load("thing", "path", BUILTIN, group=GROUP) is Path


def test_a_plug_in_of_another_kind_is_not_found(installed: Path) -> None:
    """Each kind has its group."""
    with pytest.raises(UnknownNameError):
        load("thing", "hidden", BUILTIN, group=GROUP)


def test_nothing_is_imported_before_it_is_asked_for(installed: Path) -> None:
    """Looking for one plug-in does not load the others."""
    load("thing", "ordered", BUILTIN, group=GROUP)
    with pytest.raises(UnknownNameError):
        load("thing", "nobody", BUILTIN, group=GROUP)
    assert "third_party_things" not in sys.modules


def test_an_unknown_name_lists_the_known_and_the_near_one(installed: Path) -> None:
    """Built-ins and installed plug-ins are named alike."""
    with pytest.raises(UnknownNameError) as caught:
        load("thing", "fancie", BUILTIN, group=GROUP)
    assert str(caught.value) == (
        "Unknown thing 'fancie'; known: fancy, ordered, path. Did you mean \"fancy\"?"
    )


def test_no_plug_in_at_all_is_said_in_words() -> None:
    """An empty list is not an empty sentence."""
    with pytest.raises(UnknownNameError, match=r"Unknown thing 'x'; known: none\.$"):
        load("thing", "x", {}, group=GROUP)


def test_a_missing_package_names_what_to_install() -> None:
    """The plug-in exists but cannot be imported: the message has the command."""
    table = {"amqp": "praval_no_such_package.client:Client"}
    with pytest.raises(
        ConfigurationError, match=r"needs the package \'praval_no_such_package\'"
    ) as e:
        load("transport", "amqp", table, group=GROUP)
    assert 'pip install "praval-asyncio[amqp]"' in str(e.value)
    assert isinstance(e.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("amqps", ["amqp", "mqtt"], ' Did you mean "amqp"?'),
        ("qmtt", ["amqp", "mqtt"], ' Did you mean "mqtt"?'),
        ("kafka", ["amqp", "mqtt"], ""),
        ("", ["amqp"], ""),
        ("x", [], ""),
    ],
)
def test_near_suggests_one_name_or_none(name: str, known: list[str], hint: str) -> None:
    """A far-off suggestion would be worse than none."""
    assert near(name, known) == hint
