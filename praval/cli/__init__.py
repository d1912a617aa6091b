"""The command ``praval``. Everything it needs beyond the runtime is the extra ``[cli]``."""

from __future__ import annotations

import sys

NEEDED = ("typer", "rich", "markdown_it")


def main() -> None:
    """Run the command line; ends the process with its exit code.

    0: done; 1: it failed on the way; 2: it was asked for something impossible; 130: Ctrl-C.
    """
    try:
        from praval.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDED:
            raise
        sys.exit(
            f"The command praval needs the package {error.name}, which is not installed. "
            'Install it with: pip install "praval-asyncio[cli]"'
        )
    except KeyboardInterrupt:
        sys.exit(130)
    app()
