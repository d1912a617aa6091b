"""Everything that is logged meanwhile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class Log(logging.Handler):
    """Keeps what is logged, tracebacks included, as one text."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, and the arguments as a structured log would show them."""
        self._lines.append(f"{record.name}: {self.format(record)} {record.args!r}")


@contextlib.contextmanager
def logged() -> Iterator[Log]:
    """Collect what all loggers of the process log at any level, those of libraries included."""
    root, log = logging.getLogger(), Log()
    known = root.manager.loggerDict.values()
    loggers = [each for each in known if isinstance(each, logging.Logger)]
    before = [(each, each.level, each.propagate, each.disabled) for each in [root, *loggers]]
    for each in loggers:
        each.level, each.propagate, each.disabled = logging.NOTSET, True, False
    root.addHandler(log)
    root.setLevel(logging.DEBUG)  # also forgets what loggers remember of levels
    try:
        yield log
    finally:
        root.removeHandler(log)
        for each, level, propagate, disabled in before:
            each.propagate, each.disabled = propagate, disabled
            each.setLevel(level)
