"""Budgets 1-9 of the performance plan as scripts anyone can run: ``python -m benchmarks``.

Every figure is a ratio of two contestants measured in one run. ``README.md`` beside this file says
how, and holds the table of the last full run.
"""
