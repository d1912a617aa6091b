"""The verified dependencies of Python files are exactly those in the syntax trees."""

from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from demo_library import examine, import_oracle, refuted, verified, write_files
from hypothesis import given, settings
from hypothesis import strategies as st

from praval.demo.imports import Shelf, Unparsable, parse
from praval.demo.sources import asyncio_folder

TRICKY = {
    "pkg/__init__.py": "from . import alpha, VERSION\nfrom .beta import *\n",
    "pkg/alpha.py": "import pkg.beta as b, os\nfrom pkg import gamma as g\n",
    "pkg/beta.py": "from .alpha import thing  # a circle\nfrom .sub import deep\n",
    "pkg/gamma.py": (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from .sub.deep import Deep\n"
        "try:\n    import fast_delta as delta\nexcept ImportError:\n    from . import delta\n"
        "def late():\n    if 1: from .epsilon import e; from . import zeta\n"
    ),
    "pkg/delta.py": 'TEXT = """\nfrom . import alpha\nimport pkg.beta\n"""  # from . import g\n',
    "pkg/epsilon.py": "import alpha\nimport beta.gamma\nimport json, pkg\n",
    "pkg/zeta.py": "from . import (  # (old)\n  alpha,  # from . import beta\n  delta as d,\n)\n",
    "pkg/broken.py": "from . import alpha\ndef oops(:\n",
    "pkg/latin.py": b"s = '\xe9\xe8'\nfrom . import alpha\n",
    "pkg/cookie.py": b"# coding: latin-1\n# \xe9\nfrom . import alpha\n",
    "pkg/bom.py": b"\xef\xbb\xbffrom . import alpha\n",
    "pkg/crlf.py": b"import os\r\nfrom . import \\\r\n    alpha\r\n",
    "pkg/empty.py": "",
    "pkg/dynamic.py": "import importlib\nimportlib.import_module('pkg.alpha')\nimport_('beta')\n",
    "pkg/hash.py": 's = "#"; import pkg.alpha\nx = 1;from.import beta\n',
    "pkg/dots.py": "from . sub import deep\nfrom ...nowhere import alpha\nfrom .. import alpha\n",
    "pkg/missing.py": "from .absent import alpha\nimport pkg.absent\nfrom . import _absent\n",
    "pkg/myself.py": "from . import myself\nimport pkg.myself\n",
    "pkg/escape.py": "PATTERN = '\\d'\nfrom . import alpha\n",
    "pkg/sub/__init__.py": "",
    "pkg/sub/deep.py": "from .. import alpha\nfrom . . beta import x\nfrom ... import pkg\n",
    "pkg/sub/deeper/__init__.py": "from ...gamma import *\nfrom . import own, thing\n",
    "pkg/sub/deeper/own.py": "from ....pkg import zeta\nfrom pkg.sub import deep as alias\n",
    "pkg/nosuch/inside.py": "from ..alpha import a\nimport pkg.nosuch.other\n",
    "pkg/nosuch/other.py": "from . import inside\n",
}


def test_asyncio_is_understood_as_its_syntax_trees_say() -> None:
    """For Python's own asyncio the verified edges equal those of an independent reading."""
    proposals, verdicts = examine(asyncio_folder())
    expected = import_oracle(asyncio_folder())
    assert len(expected) > 100
    assert verified(verdicts) == expected
    assert refuted(verdicts), "a linker that proposes only what is true is not generous"
    assert proposals


@pytest.mark.parametrize("root", ["pkg", "."])
def test_a_tricky_package_is_understood_as_its_syntax_trees_say(tmp_path: Path, root: str) -> None:
    """Aliases, parents, circles, conditions, strings, bad files: seen from inside and outside."""
    write_files(tmp_path, TRICKY)
    _, verdicts = examine(tmp_path / root)
    assert verified(verdicts) == import_oracle(tmp_path / root)


def test_the_tricky_package_edge_by_edge(tmp_path: Path) -> None:
    """The edges that the oracle itself might get wrong, written down by hand."""
    write_files(tmp_path, TRICKY)
    _, verdicts = examine(tmp_path / "pkg")
    found = verified(verdicts)
    by_source = {source: {b for a, b in found if a == source} for source, _ in found}
    assert by_source["__init__.py"] == {"alpha.py", "beta.py"}
    assert by_source["alpha.py"] == {"beta.py", "gamma.py"}
    assert by_source["gamma.py"] == {"sub/deep.py", "delta.py", "epsilon.py", "zeta.py"}
    assert by_source["epsilon.py"] == {"__init__.py"}
    assert by_source["zeta.py"] == {"alpha.py", "delta.py"}
    assert by_source["hash.py"] == {"alpha.py", "beta.py"}
    assert by_source["dots.py"] == {"sub/deep.py"}
    assert by_source["missing.py"] == {"__init__.py"}
    assert by_source["crlf.py"] == by_source["bom.py"] == by_source["cookie.py"] == {"alpha.py"}
    assert by_source["sub/deeper/own.py"] == {"sub/deep.py"}
    assert by_source["nosuch/inside.py"] == {"alpha.py", "nosuch/other.py"}
    for silent in ("delta.py", "dynamic.py", "broken.py", "latin.py", "empty.py", "myself.py"):
        assert silent not in by_source


def test_what_only_looks_like_an_import_is_proposed_and_refuted(tmp_path: Path) -> None:
    """The linker falls for strings and comments; the skeptic says what is wrong with each."""
    write_files(tmp_path, TRICKY)
    reasons = refuted(examine(tmp_path / "pkg")[1])
    assert reasons["delta.py", "alpha.py"] == "alpha is named, but no import leads to this file"
    assert "no import leads" in reasons["dynamic.py", "beta.py"]
    assert "no import leads" in reasons["epsilon.py", "alpha.py"]
    assert reasons["zeta.py", "__init__.py"] == "nothing is imported from the package's own file"
    assert "not valid Python" in reasons["broken.py", "alpha.py"]
    assert "line 2" in reasons["broken.py", "alpha.py"]
    assert "not valid Python" in reasons["latin.py", "alpha.py"]


def test_a_verified_import_names_its_line(tmp_path: Path) -> None:
    """The evidence is the first line that shows the dependency."""
    write_files(tmp_path, {"a.py": "x = 1\nimport b\nfrom b import c\n", "b.py": ""})
    (verdict,) = examine(tmp_path)[1]["a.py"]
    assert (verdict.line, verdict.reason) == (2, "import b")


def test_scripts_import_their_neighbours_but_modules_of_packages_do_not(tmp_path: Path) -> None:
    """As on ``sys.path``: a script's folder is on it, a package's own folder is not."""
    write_files(
        tmp_path,
        {
            "scripts/run.py": "import helper, pkg.core\n",
            "scripts/helper.py": "",
            "other/run.py": "import helper\n",
            "pkg/__init__.py": "",
            "pkg/core.py": "import util\n",
            "pkg/util.py": "",
        },
    )
    assert verified(examine(tmp_path)[1]) == {
        ("scripts/run.py", "scripts/helper.py"),
        ("scripts/run.py", "pkg/core.py"),
    }


def test_a_project_with_a_src_folder_is_understood(tmp_path: Path) -> None:
    """Tests import the package by its own name, without ``src``."""
    write_files(
        tmp_path,
        {
            "src/lib/__init__.py": "from lib.core import x\n",
            "src/lib/core.py": "",
            "tests/test_core.py": "from lib import core\nimport lib\n",
        },
    )
    assert verified(examine(tmp_path)[1]) == {
        ("src/lib/__init__.py", "src/lib/core.py"),
        ("tests/test_core.py", "src/lib/core.py"),
        ("tests/test_core.py", "src/lib/__init__.py"),
    }


def test_folders_without_init_are_packages_too(tmp_path: Path) -> None:
    """A namespace package's modules are found from the root and by the root's own name."""
    root = write_files(
        tmp_path / "space", {"a/one.py": "import b.two\nfrom space.b import two\n", "b/two.py": ""}
    )
    assert verified(examine(root)[1]) == {("a/one.py", "b/two.py")}


def test_a_package_hides_a_module_of_the_same_name(tmp_path: Path) -> None:
    """``x/__init__.py`` wins over ``x.py``, and a plain module has no submodules."""
    write_files(
        tmp_path,
        {
            "main.py": "import x\nfrom y import z\n",
            "x.py": "",
            "x/__init__.py": "",
            "y.py": "",
            "y/z.py": "",
        },
    )
    assert verified(examine(tmp_path)[1]) == {("main.py", "x/__init__.py"), ("main.py", "y.py")}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"def (:\n", "not valid Python"),
        (b"x = 1\0\n", "Python cannot parse it|not valid Python"),
        (b"s = '\xff'\n", "not valid Python"),
        (b"x = " + b"(" * 5000 + b")" * 5000, "Python cannot parse it|not valid Python"),
        (b"# coding: no-such-thing\n", "not valid Python"),
    ],
)
def test_what_python_cannot_read_is_a_finding(source: bytes, reason: str) -> None:
    """Every way in which parsing fails is one kind of error, with the reason."""
    with pytest.raises(Unparsable, match=reason):
        parse(source)


NAMES = st.sampled_from(["a", "b", "c", "os", "__init__"])
PLACES = st.lists(st.sampled_from(["p", "q"]), max_size=2).map(
    lambda parts: "/".join(["top", *parts])
)


@st.composite
def statements(draw: st.DrawFn) -> str:
    """One import statement in one of Python's many spellings."""
    name = st.sampled_from(["a", "b", "c", "p", "q", "top", "os"])
    dotted = st.lists(name, min_size=1, max_size=3).map(".".join)
    alias = draw(st.sampled_from(["", " as z"]))
    if draw(st.booleans()):
        text = "import " + ", ".join(draw(st.lists(dotted, min_size=1, max_size=2))) + alias
    else:
        dots = draw(st.sampled_from(["", ".", "..", ". .", "..."]))
        module = draw(dotted) if not dots or draw(st.booleans()) else ""
        names = draw(st.lists(name, min_size=1, max_size=3))
        gap = draw(st.sampled_from([" ", " \\\n ", "\t"]))
        what = draw(st.sampled_from([
            ", ".join(names) + alias,
            "(" + ",\n  ".join(names) + ")",
            "(  # (note\n" + ", # b)\n".join(names) + ",\n)",
        ]))  # fmt: skip
        text = f"from{gap}{dots}{module}{gap}import{gap}{what}"
    lines = text.split("\n")
    frame = draw(
        st.sampled_from(["{}", "if 1: {}", "x = '#'; {}", "def f():\n  {}", "'''\n{}\n'''"])
    )
    return frame.format("\n".join(lines)) + "\n"


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.tuples(PLACES, NAMES).map(lambda pair: f"{pair[0]}/{pair[1]}.py"),
        st.lists(statements(), max_size=4).map("".join),
        min_size=1,
        max_size=8,
    )
)
def test_any_package_is_understood_as_its_syntax_trees_say(files: dict[str, str]) -> None:
    """Whatever the spelling, the linker misses nothing that is true, and nothing false stays."""
    with TemporaryDirectory() as folder:
        root = write_files(Path(folder), {"top/__init__.py": "", **files}) / "top"
        assert verified(examine(root)[1]) == import_oracle(root)


@given(st.text(string.ascii_letters + " .,;:()\\\n#'\"=", max_size=300))
def test_no_text_upsets_the_shelf(text: str) -> None:
    """Source that is not Python is refused with the one error, never with another."""
    shelf = Shelf(["a.py", "b.py"], [], "root")
    with suppress(Unparsable):
        assert all(edge.target == "b.py" for edge in shelf.imports("a.py", text.encode()))
