"""Seeing what a Reef does from outside."""

from praval.observe.tracing import Tracing

__all__ = ["Tracing"]
