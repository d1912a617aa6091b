"""Tools of a server that speaks the Model Context Protocol, over stdio or streamable HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import re
import ssl
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from praval.errors import ConfigurationError, ToolError
from praval.sync import (
    at_background_exit,
    background_loop,
    has_background_loop,
    hop,
    owner_loop,
)
from praval.tools.addresses import is_plaintext_to_others
from praval.tools.tool import TIMEOUT, checked_name

if TYPE_CHECKING:
    from mcp import Client

CONNECT_TIMEOUT = 30.0
READ_TIMEOUT = 300.0
"""Seconds of silence that a stream of a server may have."""


class MCPTool:
    """A tool of a server; used like a :class:`~praval.tools.Tool`."""

    shared = False
    owner: str | None = None

    def __init__(self, server: MCPServer, name: str, description: str, parameters: Any) -> None:
        self.server = server
        self.remote_name = name
        # servers may use dots and slashes, models' vendors do not
        self.name = checked_name(re.sub("[^a-zA-Z0-9_-]", "_", server.prefix + name)[:64])
        self.description = description
        self.parameters: dict[str, Any] = parameters
        self.timeout = server.timeout
        self.requires_approval = (
            server.requires_approval
            if isinstance(server.requires_approval, bool)
            else name in server.requires_approval
        )

    async def run(self, arguments: str) -> str:
        """Have the server call it.

        Raises:
            ToolError: the tool failed, or the server is gone.
        """
        given = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
        return await self.server.call(self.remote_name, given)

    def __repr__(self) -> str:
        return f"<MCPTool {self.name!r} of {self.server!r}>"


class MCPServer:
    """A server whose tools become an agent's: ``@agent(tools=[MCPServer("https://.../mcp")])``.

    It is connected on first use, once per event loop, and again when the connection was lost. The
    connection ends with the loop, or with :meth:`aclose`, or with ``async with``.

    Args:
        target: the address of a streamable HTTP endpoint, or a command with its arguments, whose
            standard input and output are spoken to.
        env: environment variables for the command, beside a few harmless ones.
        cwd: the directory in which the command runs.
        headers: sent with each HTTP request, for instance an Authorization; over https only,
            unless to this machine or with ``allow_plaintext=True``.
        only: names of the tools to offer; default: all.
        prefix: put before each name, to keep two servers' tools apart.
        requires_approval: True, or names of tools: a human must agree before each call.
        timeout: seconds one call may take; None: no limit.

    Raises:
        ConfigurationError: the target is neither, or a header would travel unencrypted.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        headers: Mapping[str, str] | None = None,
        only: Collection[str] | None = None,
        prefix: str = "",
        requires_approval: bool | Collection[str] = False,
        timeout: float | None = TIMEOUT,
        allow_plaintext: bool = False,
    ) -> None:
        if isinstance(target, str) and not target.startswith(("http://", "https://")):
            raise ConfigurationError(
                "MCPServer takes an http(s) address, or a command as a list of words: "
                '["python", "server.py"].'
            )
        if not target or not all(isinstance(word, str) for word in target):
            raise ConfigurationError("MCPServer's command must be a list of words.")
        has_secrets = bool(headers) and isinstance(target, str) and not allow_plaintext
        if has_secrets and is_plaintext_to_others(str(target)):
            raise ConfigurationError(
                "The headers for this MCPServer would travel unencrypted: use https, or "
                "allow_plaintext=True in a network you trust."
            )
        self.target: str | list[str] = target if isinstance(target, str) else list(target)
        self.env = dict(env) if env is not None else None
        self.cwd = cwd
        self.headers = dict(headers or {})
        self.only = None if only is None else frozenset(only)
        self.prefix = prefix
        self.requires_approval = requires_approval
        self.timeout = timeout
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}

    async def tools(self) -> list[MCPTool]:
        """Return the server's tools, connecting if need be.

        Raises:
            ToolError: it cannot be reached, or has not a tool of ``only``.
        """
        found: list[MCPTool] = await self._at_home(self._tools())
        return found

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Call a tool and return what it says.

        Raises:
            ToolError: the tool failed, or the connection was lost.
        """
        said: str = await self._at_home(self._call(name, arguments))
        return said

    async def aclose(self) -> None:
        """End the running loop's connection; the next use makes a new one."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.end()

    async def __aenter__(self) -> Self:
        await self._session()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _at_home(self, work: Any) -> Any:
        """Do the work on the loop of the Reef whose handler runs here, if there is one."""
        home = owner_loop.get()
        return await (hop(home, work) if home is not None and home.is_running() else work)

    async def _tools(self) -> list[MCPTool]:
        session = await self._session()
        found = [
            each for each in session.tools if self.only is None or each.remote_name in self.only
        ]
        missing = (self.only or frozenset()) - {each.remote_name for each in found}
        if missing:
            raise ToolError(f"{self!r} has no tool {', '.join(sorted(missing))}.")
        return found

    async def _call(self, name: str, arguments: dict[str, Any]) -> str:
        session = await self._session()
        try:
            result = await session.client.call_tool(name, arguments)
        except Exception as error:
            if _is_lost(error):  # the next call connects again
                self._sessions.pop(asyncio.get_running_loop(), None)
                await session.end()
            raise ToolError(f"{self!r} could not call {name}: {error!r}.") from error
        said = "\n".join(map(_as_text, result.content))
        if result.is_error:
            raise ToolError(said or f"{name} failed.")
        return said

    async def _session(self) -> _Session:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.task.done():
            for other in [other for other in self._sessions if other.is_closed()]:
                del self._sessions[other]
            session = self._sessions[loop] = _Session(self)
        await session.ready()
        return session

    def __repr__(self) -> str:
        """Show where it is; an address without the parts that may hold secrets."""
        if isinstance(self.target, str):
            return f"<MCPServer {re.sub('//[^/@]*@', '//', self.target).partition('?')[0]}>"
        return f"<MCPServer {self.target[0]}>"


class _Session:
    """A connection, which lives in a task of its own: it must be closed where it was opened."""

    client: Client
    tools: list[MCPTool]

    def __init__(self, server: MCPServer) -> None:
        self.server = server
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closing = asyncio.Event()
        # a context of its own: the connection outlives the handler that was the first to ask
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(self._live(), name="praval-mcp", context=contextvars.Context())
        self.task.add_done_callback(self._ended)
        if has_background_loop() and background_loop() is loop:
            at_background_exit(self.end)

    async def ready(self) -> None:
        """Wait until it is connected.

        Raises:
            ToolError: it could not be.
        """
        await asyncio.shield(self.connected)

    async def end(self) -> None:
        """Close the connection and wait for it."""
        self.closing.set()
        if not self.connected.done():
            self.task.cancel()
        await asyncio.wait([self.task])

    async def _live(self) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    self.client = await stack.enter_async_context(await self._client(stack))
                    self.tools = [
                        MCPTool(self.server, each.name, each.description or each.name,
                                each.input_schema)
                        for each in await _all_tools(self.client)
                    ]  # fmt: skip
                self.connected.set_result(None)
                await self.closing.wait()
        except Exception as error:  # noqa: BLE001 - told to whoever waits; nobody else can be
            if not self.connected.done():
                failure = ToolError(f"{self.server!r} cannot be used: {_innermost(error)!r}.")
                failure.__cause__ = error
                self.connected.set_exception(failure)
                self.connected.exception()  # nobody may be waiting any more

    def _ended(self, _: asyncio.Task[None]) -> None:
        if not self.connected.done():
            failure = ToolError(f"{self.server!r} was closed before it was connected.")
            self.connected.set_exception(failure)
            self.connected.exception()  # as above

    async def _client(self, stack: contextlib.AsyncExitStack) -> Client:
        try:
            return await asyncio.to_thread(_make_client, self.server, stack)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"MCP servers need the package {error.name!r}, which is not installed. "
                'Install it with: pip install "praval-asyncio[mcp]"'
            ) from error


def _make_client(server: MCPServer, stack: contextlib.AsyncExitStack) -> Client:
    """Make the SDK's client; in a thread, for the import alone takes a second."""
    import_module("jsonschema")  # or the SDK imports it, and reads files, on the loop
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters
    from mcp.client.streamable_http import streamable_http_client

    if not isinstance(server.target, str):
        command, *args = server.target
        return Client(
            StdioServerParameters(command=command, args=args, env=server.env, cwd=server.cwd)
        )
    import_module("httpcore2")  # as above
    import httpx2

    http = httpx2.AsyncClient(
        headers=server.headers,
        timeout=httpx2.Timeout(CONNECT_TIMEOUT, read=READ_TIMEOUT),
        verify=_tls_context(),
    )
    stack.push_async_callback(http.aclose)
    return Client(streamable_http_client(server.target, http_client=http))


def _innermost(error: Exception) -> Exception:
    """Return what a group that has nothing else is about."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        (error,) = error.exceptions
    return error


def _is_lost(error: Exception) -> bool:
    """Whether the connection is gone, and not just this one call refused."""
    from mcp import MCPError
    from mcp_types import CONNECTION_CLOSED

    return not isinstance(error, MCPError) or error.error.code == CONNECTION_CLOSED


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return the TLS context that all servers share: it takes long to make."""
    import httpx2

    return httpx2.create_ssl_context()


async def _all_tools(client: Client) -> list[Any]:
    found: list[Any] = []
    page = await client.list_tools()
    found += page.tools
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        found += page.tools
    return found


def _as_text(part: Any) -> str:
    text = getattr(part, "text", None)
    if isinstance(text, str):
        return text
    return f"({part.type}, which cannot be shown as text)"
