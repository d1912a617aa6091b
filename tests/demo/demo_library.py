"""Makes folders of files, and knows by its own means which Python file imports which."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from pathlib import Path

from praval.demo.evidence import Skeptic, Verdict
from praval.demo.links import Linker, Proposal
from praval.demo.reading import Vocabulary, observe
from praval.demo.sources import decode, find_sources, read_source


def write_files(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write the files below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def examine(root: Path) -> tuple[dict[str, list[Proposal]], dict[str, list[Verdict]]]:
    """Let reader, linker and skeptic work through a folder, without agents."""
    catalogue = find_sources(root)
    names = [source.name for source in catalogue.sources]
    vocabulary = Vocabulary(names, catalogue.package)
    linker, skeptic = Linker(names, catalogue.package), Skeptic(catalogue)
    proposals, verdicts = {}, {}
    for source in catalogue.sources:
        text, note = decode(read_source(root / source.name), source.kind)
        proposed = linker.propose(observe(source, text, note, vocabulary))
        proposals[source.name] = proposed
        verdicts[source.name] = skeptic.check(source.name, [p.target for p in proposed])
    return proposals, verdicts


def verified(verdicts: Mapping[str, list[Verdict]]) -> set[tuple[str, str]]:
    """The edges that stood the check."""
    return {(name, v.target) for name, found in verdicts.items() for v in found if v.verified}


def refuted(verdicts: Mapping[str, list[Verdict]]) -> dict[tuple[str, str], str]:
    """The edges that did not, with the reasons."""
    return {
        (name, v.target): v.reason for name, found in verdicts.items() for v in found
        if not v.verified
    }  # fmt: skip


def import_oracle(root: Path) -> set[tuple[str, str]]:
    """Find the imports between the Python files of a package folder, independently.

    Works on dotted names in one dictionary, where the code under test works on paths; uses
    nothing of praval. Knows a package at the root (with all its parents) and one above it.
    """
    prefix: list[str] = []
    above = root
    while (above / "__init__.py").exists():
        prefix.insert(0, above.name)
        above = above.parent
    modules: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        dotted = [*prefix, *path.relative_to(root).with_suffix("").parts]
        if dotted[-1] == "__init__":
            dotted.pop()
        modules[".".join(dotted)] = path.relative_to(root).as_posix()
    edges = set()
    for module, file in modules.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse((root / file).read_bytes())
        except (SyntaxError, ValueError):
            continue
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        wanted = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {modules.get(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = package.split(".")
                    if node.level > len(parts):
                        continue  # Python: attempted relative import beyond top-level package
                    parents = parts[: len(parts) - (node.level - 1)]
                    base = ".".join([*parents, *([node.module] if node.module else [])])
                for alias in node.names:
                    wanted.add(modules.get(f"{base}.{alias.name}", modules.get(base)))
        edges |= {(file, target) for target in wanted if target and target != file}
    return edges
