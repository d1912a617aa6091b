"""Tools: functions that a model may have called while it works on an answer.

``@tool`` makes one of a function; ``@agent(tools=[...])`` and ``chat(..., tools=[...])`` hand them
to a model. :class:`MCPServer` brings those of a server that speaks the Model Context Protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from praval.tools.approvals import Approval, Approvals
from praval.tools.tool import Tool, clear_tools, get_tool, tool

if TYPE_CHECKING:
    from praval.tools.mcp import MCPServer

__all__ = ["Approval", "Approvals", "MCPServer", "Tool", "clear_tools", "get_tool", "tool"]


def __getattr__(name: str) -> Any:
    if name == "MCPServer":
        from praval.tools.mcp import MCPServer

        return MCPServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
