"""MCP: a server's tools become an agent's, over stdio and streamable HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from praval import Reef, Spore, achat, agent, chat
from praval.errors import ConfigurationError, ToolDefinitionError, ToolError
from praval.tools import Approvals, MCPServer, approvals

PATIENCE = 30.0
SCRIPT = str(Path(__file__).with_name("mcp_server.py"))
STDIO = [sys.executable, SCRIPT]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server that speaks streamable HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*STDIO, str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, "the server did not start"
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["stdio", "http"])
def target(request: pytest.FixtureRequest, address: str) -> Any:
    return STDIO if request.param == "stdio" else address


async def test_a_servers_tools_are_offered_and_called(target: Any, caller: Any) -> None:
    """With the server's words and schema; its failures are told to the model."""
    model = caller([("add", '{"a": 2, "b": 3}'), ("fail", "{}"), ("add", '{"a": "x"}')], "Five.")
    async with MCPServer(target, only=["add", "fail"]) as server:
        assert await achat("2 + 3?", provider="caller", tools=[server]) == "Five."
    specs = {each.name: each for each in model.requests[0].tools}
    assert set(specs) == {"add", "fail"}
    assert specs["add"].description == "Add two numbers."
    assert set(specs["add"].parameters["properties"]) == {"a", "b"}
    (sum_, failed), (broken, broke), (wrong, refused) = model.results
    assert (sum_, failed) == ("5", False)
    assert broke
    assert "Error executing tool fail" in broken
    assert refused
    assert "valid" in wrong.lower()


async def test_an_agent_has_a_servers_tools_beside_its_own(target: Any, caller: Any) -> None:
    """The connection is made when first needed, and kept between the agent's calls."""
    model = caller([("w_pid", "{}"), ("own", "{}")], "a", [("w_pid", "{}")], "b")

    def own() -> str:
        return "mine"

    server = MCPServer(target, prefix="w_")

    @agent("worker", provider="caller", tools=[own, server])
    async def worker(spore: Spore) -> None:
        await achat("Go.")

    async with Reef(worker) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(PATIENCE)
        first = dict(enumerate(model.results))
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(PATIENCE)
        assert reef.ledger().handled == 2, reef.dead_letters()
        await server.aclose()
    assert first[1] == ("mine", False)
    assert model.results[0] == first[0], "the same process"


async def test_cancelling_a_call_leaves_the_connection_usable(target: Any, caller: Any) -> None:
    """A tool's time-out ends the wait, not the server."""
    async with MCPServer(target, timeout=0.2) as server:
        model = caller([("wait", "{}")], [("add", '{"a": 1, "b": 1}')], "Two.")
        assert await achat("Go.", provider="caller", tools=[server]) == "Two."
    assert model.results == [("wait took longer than 0.2 s.", True), ("2", False)]


async def test_a_server_that_dies_is_started_again(caller: Any) -> None:
    """The call that it died in is a failure for the model; the next one works."""
    async with MCPServer(STDIO, timeout=PATIENCE) as server:
        model = caller([("die", "{}")], [("add", '{"a": 1, "b": 1}')], "Two.")
        assert await achat("Go.", provider="caller", tools=[server]) == "Two."
    (_, died), added = model.results
    assert died
    assert added == ("2", False)


def is_there(pid: int) -> bool:
    """Whether a process of this number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_process_ends_with_the_connection() -> None:
    """No server is left behind."""
    async with MCPServer(STDIO) as server:
        pid = int(await server.call("pid", {}))
    async with asyncio.timeout(PATIENCE):
        while is_there(pid):  # noqa: ASYNC110 - the end of another process
            await asyncio.sleep(0.01)


def test_plain_scripts_use_a_server_too(caller: Any) -> None:
    """On the background loop."""
    caller([("add", '{"a": 2, "b": 2}')], "Four.")
    server = MCPServer(STDIO)
    assert chat("2 + 2?", provider="caller", tools=[server]) == "Four."


async def test_a_servers_tools_may_need_consent(
    caller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, as one does not trust all of them alike."""
    monkeypatch.setattr(approvals, "POLL", 0.01)
    model = caller([("add", '{"a": 2, "b": 3}')], "Hm.")
    async with MCPServer(STDIO, requires_approval=["add"]) as server:
        asking = asyncio.create_task(achat("Go.", provider="caller", tools=[server]))
        async with asyncio.timeout(PATIENCE):
            while not (pending := await Approvals().pending()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await Approvals().deny(pending[0].id)
        await asking
    assert model.results == [("A human refused this call.", True)]


async def test_a_server_that_cannot_be_reached_says_so(caller: Any) -> None:
    """No such command, a command that ends at once, nobody at the address, no such tool."""
    caller("never")
    for server, said in [
        (MCPServer(["no-such-command-anywhere"]), "cannot be used"),
        (MCPServer([sys.executable, "-c", "pass"]), "cannot be used"),
        (MCPServer("http://127.0.0.1:9/mcp"), "cannot be used"),
        (MCPServer(STDIO, only=["ad"]), "has no tool ad"),
    ]:
        with pytest.raises(ToolError, match=said) as caught:
            await achat("Go.", provider="caller", tools=[server])
        assert "TaskGroup" not in str(caught.value), "the reason is hidden in a group"
        await server.aclose()


async def test_a_name_that_no_model_could_call_is_made_one(caller: Any) -> None:
    """Dots are usual among servers; the server hears its own name."""
    model = caller([("files_read", '{"path": "a.txt"}')], "Read.")
    async with MCPServer(STDIO, only=["files.read"]) as server:
        assert await achat("Go.", provider="caller", tools=[server]) == "Read."
    assert model.results == [("what is in a.txt", False)]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_server_that_says_nothing_can_be_closed(has_begun: bool, tmp_path: Path) -> None:
    """At once, and not when the time to connect is over; who waits for it is told."""
    sign = tmp_path / "begun"
    code = f"import pathlib, sys; pathlib.Path({str(sign)!r}).touch(); sys.stdin.read()"
    server = MCPServer([sys.executable, "-c", code])
    asking = asyncio.create_task(server.tools())
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        while has_begun and not await asyncio.to_thread(sign.exists):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await server.aclose()
        with pytest.raises(ToolError, match="closed before it was connected"):
            await asking


async def test_two_servers_with_the_same_tools_need_a_prefix(caller: Any) -> None:
    """A model could not tell them apart."""
    caller("never")
    async with MCPServer(STDIO) as one, MCPServer(STDIO) as two:
        with pytest.raises(ToolDefinitionError, match="prefix="):
            await achat("Go.", provider="caller", tools=[one, two])


@pytest.mark.parametrize("target", ["server.py", "", [], [1]])
def test_a_target_that_is_neither_address_nor_command_is_refused(target: Any) -> None:
    """The error shows both forms."""
    with pytest.raises(ConfigurationError, match="MCPServer"):
        MCPServer(target)


def test_headers_do_not_travel_unencrypted_to_another_host() -> None:
    """They hold tokens; this machine, and a network one trusts, are another matter."""
    with pytest.raises(ConfigurationError, match="unencrypted") as caught:
        MCPServer("http://gpu.example/mcp", headers={"Authorization": "secret"})
    assert "secret" not in str(caught.value)
    MCPServer("http://127.0.0.1:1/mcp", headers={"Authorization": "secret"})
    MCPServer("http://gpu.example/mcp", headers={"A": "b"}, allow_plaintext=True)


def test_secrets_are_not_shown() -> None:
    """Neither in an address nor in a header."""
    server = MCPServer(
        "https://user:secret@host.example/mcp?key=secret", headers={"Authorization": "secret"}
    )
    assert repr(server) == "<MCPServer https://host.example/mcp>"
