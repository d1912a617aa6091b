"""What ``praval run`` runs: from ``module:attribute`` to a Reef that can be entered."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import msgspec

from praval import Agent, Reef
from praval.core.transport_choice import choose
from praval.errors import ConfigurationError, PravalError
from praval.plugins import near
from praval.settings import configure, current_settings

ATTRIBUTE = "reef"
"""What is looked for in a module if the target names nothing."""
WANTED = "a Reef, an agent, a list of agents, or a function without arguments that returns one"


class Target(msgspec.Struct, frozen=True):
    """Where the team is, as the user wrote it."""

    module: str
    attribute: str
    file: Path | None = None
    """The file, if the target is one."""

    @classmethod
    def read(cls, text: str) -> Target:
        """Take ``module:attribute`` or ``path/to/file.py:attribute`` apart.

        Raises:
            ConfigurationError: it is neither.
        """
        where, _, attribute = (text if ":" in text else f"{text}:{ATTRIBUTE}").rpartition(":")
        is_file = where.endswith(".py") or os.sep in where
        if is_file and attribute.isidentifier():
            path = Path(where).resolve()
            return cls(path.stem, attribute, path)
        if attribute.isidentifier() and all(part.isidentifier() for part in where.split(".")):
            return cls(where, attribute)
        raise ConfigurationError(
            f"{text!r} is no target: write module:attribute or path/to/file.py:attribute."
        )

    @property
    def package(self) -> str:
        """The name of the target's outermost package or module."""
        return self.module.partition(".")[0]

    def folder(self) -> Path:
        """Return the folder of the target's code, without importing it.

        Raises:
            ConfigurationError: there is no such module.
        """
        if self.file is not None:
            return self.file.parent
        _look_in(os.getcwd())
        spec = importlib.util.find_spec(self.package)
        if spec is None:
            raise self._not_found()
        places = spec.submodule_search_locations or [os.path.dirname(spec.origin or "")]
        return Path(next(iter(places)))

    def load(self) -> Any:
        """Import the module and return the attribute.

        Raises:
            ConfigurationError: there is no such module or attribute, or importing it failed, in
                which case its traceback was printed.
        """
        module = self._import()
        try:
            return getattr(module, self.attribute)
        except AttributeError:
            public = [name for name in vars(module) if not name.startswith("_")]
            raise ConfigurationError(
                f"{self.file or self.module} has no attribute {self.attribute!r}."
                f"{near(self.attribute, public)} The target is {WANTED}."
            ) from None

    def _import(self) -> ModuleType:
        try:
            if self.file is not None:
                return self._import_file(self.file)
            _look_in(os.getcwd())
            return importlib.import_module(self.module)
        except PravalError:
            raise  # the team's own; it says what is wrong in a sentence
        except Exception as error:  # noqa: BLE001 - the team's code may raise anything
            if isinstance(error, ModuleNotFoundError) and self._is_part(error.name):
                raise self._not_found() from None
            traceback.print_exception(error.with_traceback(_users_part(error.__traceback__)))
            raise ConfigurationError(
                f"{self.file or self.module} cannot be imported; see the traceback."
            ) from None

    def _import_file(self, file: Path) -> ModuleType:
        if not file.is_file():
            raise ConfigurationError(f"There is no file {file}.")
        _look_in(str(file.parent))  # for the modules beside it, as `python file.py` does
        name = self.module if self.module not in sys.modules else str(file)
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ConfigurationError(f"{file} is no Python file.")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def _is_part(self, name: str | None) -> bool:
        return name is not None and f"{self.module}.".startswith(f"{name}.")

    def _not_found(self) -> ConfigurationError:
        here = [path.stem for path in Path.cwd().glob("*.py")]
        return ConfigurationError(
            f"There is no module {self.module!r} in {Path.cwd()}, and none is installed."
            f"{near(self.module, here)}"
        )


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of the Reef; None: nothing."""

    transport: str | None = None
    namespace: str | None = None
    journal: str | bool | None = None
    drain: float | None = None

    def apply(self) -> None:
        """Make settings of what can be one, for Reefs that the target makes itself.

        Raises:
            ConfigurationError: a value cannot be used.
        """
        limits: dict[str, Any] = {}
        if self.drain is not None:
            limits["drain_timeout"] = self.drain
        if self.journal is True:
            limits["enable_persistence"] = True
        changes: dict[str, Any] = {"reef_config": limits}
        if self.transport is not None:
            choose(self.transport, current_settings().transport_security)
            changes["transport"] = self.transport
        configure(changes)

    def reef(self, made: object) -> Reef:
        """Return the Reef that the target is, or one of its agents.

        Raises:
            ConfigurationError: the target is none of these, or it is a Reef that contradicts.
            AgentError: the agents cannot be in one Reef.
        """
        if isinstance(made, Reef):
            if wrong := ", ".join(self._contradicted(made)):
                raise ConfigurationError(
                    f"The target is a Reef that says otherwise than {wrong}: change it there, or "
                    "let the target be a list of agents."
                )
            return made
        agents = [made] if isinstance(made, Agent) else made
        if not (isinstance(agents, list | tuple) and all(isinstance(a, Agent) for a in agents)):
            raise ConfigurationError(f"The target must be {WANTED}, not {made!r}.")
        if not agents:
            raise ConfigurationError("The target is a list without agents: nothing would run.")
        return Reef(*agents, namespace=self.namespace or "praval", journal=self.journal)

    def _contradicted(self, reef: Reef) -> Iterable[str]:
        settings = reef.settings
        if self.transport is not None and reef.transport_choice != choose(
            self.transport, settings.transport_security
        ):
            yield "--transport"
        if self.namespace not in (None, reef.namespace):
            yield "--namespace"
        if self.drain not in (None, settings.reef_config.drain_timeout):
            yield "--drain"
        wanted = Reef(journal=self.journal, namespace=reef.namespace, settings=settings)
        if self.journal is not None and reef.journal_path != wanted.journal_path:
            yield "--journal"


def _look_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """Cut the frames of this command and of the import system off the beginning."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file != __file__ and "importlib" not in file:
            return trace
        trace = trace.tb_next
    return None
