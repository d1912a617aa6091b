"""A server of the Model Context Protocol, made with the official SDK: see test_mcp.py.

``python mcp_server.py`` speaks over stdio, ``python mcp_server.py 8000`` over streamable HTTP.
"""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server.mcpserver import MCPServer

server = MCPServer("workshop")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("it broke")


@server.tool()
async def wait() -> str:
    """Wait for ever."""
    await asyncio.Event().wait()
    return "never"


@server.tool()
def pid() -> str:
    """Tell the server's process."""
    return str(os.getpid())


@server.tool()
def die() -> str:
    """End the server."""
    os._exit(1)


@server.tool(name="files.read")
def read(path: str) -> str:
    """Read a file."""
    return f"what is in {path}"


if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run("stdio")
