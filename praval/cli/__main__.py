"""``python -m praval.cli``: the command ``praval`` of this very interpreter."""

from praval.cli import main

main()
