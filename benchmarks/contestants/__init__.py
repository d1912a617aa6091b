"""The contestants. A child process loads one module of this package, the parent none.

Each module exports ``PROGRAMS``: contestant name -> workload kind -> program. A program builds its
agents, sends one message to warm them, then times the work alone and checks that every delivery
reached a handler.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from benchmarks.workloads import Program, Programs

_MODULES = {"praval": "praval_", "pykka": "pykka_", "autogen-core": "autogen_"}


def load(contestant: str, kind: str) -> Program:
    """The program of ``contestant`` for a workload kind.

    Raises:
        ModuleNotFoundError: the peer is not installed.
        KeyError: the contestant does not take part in this workload.
    """
    module = import_module(f"benchmarks.contestants.{_MODULES.get(contestant, 'floors')}")
    return cast(Programs, module.PROGRAMS)[contestant][kind]
