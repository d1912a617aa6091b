"""Plain scripts as processes: starting, ending, Ctrl-C, threads, fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest


def start(script: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a script as a process with warnings as errors and asyncio's debug checks."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-u", "-c", textwrap.dedent(script)],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, cwd: Path) -> tuple[str, str]:
    """Run a script to its end; return what it printed on stdout and stderr."""
    process = start(script, cwd)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output, errors


def test_a_script_that_ends_lets_accepted_work_finish(tmp_path: Path) -> None:
    """Accepted by the default Reef means handled, even if the script ends at once."""
    output, errors = run(
        """
        import time
        from praval import agent, broadcast, start_agents

        @agent("slow")
        def slow(spore):
            time.sleep(0.2)
            print("handled", spore.knowledge["n"])

        start_agents(slow)
        for n in range(3):
            broadcast({"n": n})
        """,
        tmp_path,
    )
    assert output.split("\n")[:-1] == ["handled 0", "handled 1", "handled 2"]
    assert not errors


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_ctrl_c_cancels_the_waiting_session(kind: str, tmp_path: Path) -> None:
    """start_agents raises KeyboardInterrupt at once; the handler is cancelled if it can be."""
    process = start(
        f"""
        import asyncio, time
        from praval import agent, get_reef, start_agents

        @agent("stuck")
        {kind} stuck(spore):
            print("begun", flush=True)
            try:
                {"await asyncio.sleep(1000)" if kind == "async def" else "time.sleep(30)"}
            finally:
                print("ended", flush=True)

        try:
            start_agents(stuck, initial_data={{"n": 1}})
        except KeyboardInterrupt:
            print("interrupted", get_reef().ledger().cancelled, flush=True)
        """,
        tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    interrupted = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - interrupted < 10
    assert process.returncode == 0, errors
    assert output == ("ended\n" if kind == "async def" else "") + "interrupted 1\n"


def test_ctrl_c_that_nobody_catches_ends_the_process(tmp_path: Path) -> None:
    """A traceback of KeyboardInterrupt, an exit by that signal, and no hang at exit."""
    process = start(
        """
        import asyncio
        from praval import agent, start_agents

        @agent("stuck")
        async def stuck(spore):
            print("begun", flush=True)
            await asyncio.sleep(1000)

        start_agents(stuck, initial_data={"n": 1})
        """,
        tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "never awaited" not in errors


def test_a_thread_that_belongs_to_nobody_is_told_so(tmp_path: Path) -> None:
    """broadcast() and get_reef() need a handler, or a default Reef that somebody started."""
    output, _ = run(
        """
        import threading
        from praval import broadcast, get_reef
        from praval.errors import NoReefError

        def stray():
            for function in (get_reef, lambda: broadcast({"n": 1})):
                try:
                    function()
                except NoReefError as error:
                    print(error)

        thread = threading.Thread(target=stray)
        thread.start()
        thread.join()
        """,
        tmp_path,
    )
    assert output.count("belongs to no handler") == 2


def test_a_forked_child_has_a_reef_of_its_own(tmp_path: Path) -> None:
    """The child neither hangs on its parent's loop nor repeats its ids."""
    output, errors = run(
        """
        import os, warnings
        from praval import agent, start_agents
        from praval.core.spore import new_id

        @agent("worker")
        def worker(spore):
            return {"pid": os.getpid()}

        first = start_agents(worker, initial_data={"n": 1})
        assert first["pid"] == os.getpid()
        warnings.simplefilter("ignore")  # newer Pythons warn of fork in a process with threads
        parent_id = new_id()
        child = os.fork()
        if child == 0:
            second = start_agents(worker, initial_data={"n": 2})
            right = second["pid"] == os.getpid() and new_id()[:16] != parent_id[:16]
            os._exit(0 if right else 1)
        _, status = os.waitpid(child, 0)
        print("child:", os.waitstatus_to_exitcode(status))
        assert start_agents(worker, initial_data={"n": 3})["pid"] == os.getpid()
        """,
        tmp_path,
    )
    assert output == "child: 0\n"
    assert not errors


def test_asyncio_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """The loop's default Reef is closed with the loop: no warning, no destroyed task."""
    output, errors = run(
        """
        import asyncio, gc
        from praval import agent, abroadcast, astart_agents

        @agent("hangs", responds_to=["hang"])
        async def hangs(spore):
            await asyncio.sleep(1000)

        @agent("plain", responds_to=["go"])
        def plain(spore):
            return {"ok": True}

        async def main():
            print(dict(await astart_agents(hangs, plain, initial_data={"type": "go"})))
            await abroadcast({"type": "hang"})
            await asyncio.sleep(0)

        for _ in range(2):
            asyncio.run(main())
            gc.collect()
        """,
        tmp_path,
    )
    assert output == "{'ok': True}\n" * 2
    assert not errors


def test_blocking_calls_on_a_loop_name_their_twins(tmp_path: Path) -> None:
    """In async code the guide's blocking calls raise, and say what to await instead."""
    output, errors = run(
        """
        import asyncio
        from praval import AgentSession, agent, agent_pipeline, broadcast, chat, start_agents
        from praval.errors import BlockingCallError

        @agent("a")
        def a(spore):
            return None

        async def main():
            for call in (
                lambda: start_agents(a),
                lambda: broadcast({}),
                lambda: chat("x"),
                lambda: AgentSession().start(),
                lambda: agent_pipeline(a).run({}),
            ):
                try:
                    call()
                except BlockingCallError as error:
                    print(str(error).split("`")[1])

        asyncio.run(main())
        """,
        tmp_path,
    )
    assert output.split("\n")[:-1] == [
        "await astart_agents(...)",
        "await abroadcast(...)",
        "await achat(...)",
        "await astart(...)",
        "await arun(...)",
    ]
    assert not errors


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_sys_exit_in_a_handler_does_not_hang_the_script(kind: str, tmp_path: Path) -> None:
    """It is a failure like others, but of the Reef too: the next session gets one of its own."""
    output, errors = run(
        f"""
        import logging, sys
        from praval import agent, start_agents

        logging.disable()

        @agent("quitter", responds_to=["quit"])
        {kind} quitter(spore):
            sys.exit(3)

        @agent("worker", responds_to=["work"])
        def worker(spore):
            return {{"ok": True}}

        result = start_agents(quitter, initial_data={{"type": "quit"}}, timeout=20)
        print("told:", repr(result.errors[0].error))
        print(dict(start_agents(worker, initial_data={{"type": "work"}})))
        """,
        tmp_path,
    )
    assert output == "told: SystemExit(3)\n{'ok': True}\n"
    assert not errors
