"""scripts/install-servers.sh: it installs what is missing, or says how."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.servers.process import ROOT

SCRIPT = ROOT / "scripts" / "install-servers.sh"
PACKAGES = "rabbitmq-server mosquitto mosquitto-clients activemq redis-server postgresql openssl"
POLICY = "/usr/sbin/policy-rc.d"


class Machine:
    """A machine on which nothing is installed yet: stubs on PATH note what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "policy-rc.d"
        self.script = folder / "install.sh"
        self.script.write_text(SCRIPT.read_text().replace(POLICY, str(self.policy)))
        self.add("dpkg-query", "exit 1")
        self.add("id", "echo 0")
        self.add(
            "apt-get", f'echo "$@" >>{folder}/calls; sh {self.policy}; echo $? >>{folder}/calls'
        )

    def add(self, program: str, text: str) -> None:
        path = self.folder / program
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def install(self) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", self.script],
            env={"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_happens_when_all_is_there() -> None:
    """No word, and no network: this runs before each run of the tests."""
    done = subprocess.run(["sh", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_root_gets_the_packages_and_no_running_services(machine: Machine) -> None:
    """While apt works, a policy forbids to start anything; afterwards it is gone."""
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert PACKAGES in done.stdout
    update, during, install, during_too = machine.calls()
    assert update.endswith("update")
    assert install.endswith(f"install -y --no-install-recommends {PACKAGES}")
    assert during == during_too == "101"
    assert not machine.policy.exists()


def test_a_policy_of_the_machine_is_kept(machine: Machine) -> None:
    """It is the administrator's."""
    machine.policy.write_text("exit 102\n")
    assert machine.install().returncode == 0
    assert machine.calls()[1] == "102"
    assert machine.policy.read_text() == "exit 102\n"


def test_what_fails_is_told_and_leaves_no_policy(machine: Machine) -> None:
    """As without a network."""
    machine.add("apt-get", "echo no route >&2; exit 100")
    done = machine.install()
    assert done.returncode == 1
    assert "no route" in done.stderr
    assert f"By hand: apt-get install -y --no-install-recommends {PACKAGES}" in done.stderr
    assert not machine.policy.exists()


def test_who_is_not_root_is_told_the_command(machine: Machine) -> None:
    """And nothing is tried."""
    machine.add("id", "echo 1000")
    done = machine.install()
    assert done.returncode == 1
    command = f"sudo apt-get install -y --no-install-recommends {PACKAGES}"
    assert f"sudo apt-get update && {command}" in done.stderr
    assert not (machine.folder / "calls").exists()


def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    """Here: one package."""
    machine.add("dpkg-query", 'case "$*" in *activemq*) exit 1 ;; *) printf installed ;; esac')
    assert machine.install().returncode == 0
    assert machine.calls()[2].endswith("--no-install-recommends activemq")
