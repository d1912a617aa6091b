"""Hosts and brokers die in the middle: nothing is lost, nothing is handled again after its commit.

The default run is short. ``make soak`` runs it with 20,000 spores, five killed workers and three
killed brokers per broker, and prints the counts.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.servers import ActiveMQ, Mosquitto, RabbitMQ, Redis, Server

TEAM = Path(__file__).with_name("kill_team.py")
SPORES = int(os.environ.get("PRAVAL_SOAK_SPORES", "1500"))
WORKER_KILLS = int(os.environ.get("PRAVAL_SOAK_WORKER_KILLS", "2"))
BROKER_KILLS = int(os.environ.get("PRAVAL_SOAK_BROKER_KILLS", "1"))
UNDER_WAY = 150
"""Spores that a replica may have handled without its sender having heard of it."""
LIMIT = 60 + SPORES / 50
"""Seconds that one run may take."""

BROKERS: dict[str, type[Server]] = {
    "amqp": RabbitMQ,
    "mqtt": Mosquitto,
    "stomp": ActiveMQ,
    "redis": Redis,
}


class Tally(NamedTuple):
    """What became of the numbers."""

    accepted: int
    lost: int
    again_after_commit: int
    repeated: int
    """Handled twice because the first time was not committed."""
    worker_kills: int
    broker_kills: int
    seconds: float


class Run:
    """One run: a broker, a source and a worker, and somebody who kills them."""

    def __init__(
        self,
        protocol: str,
        folder: Path,
        *,
        flaw: str = "",
        resend: float | None = None,
        replicas: int = 1,
        seed: int = 7,
    ) -> None:
        """Prepare it.

        Args:
            protocol: which broker.
            folder: for journals and logs.
            flaw: the promise that is broken.
            resend: want receipts, and send again after so many seconds without one, come what may.
            replicas: workers that share the work, 1 or 2; they are killed in turn.
            seed: of the moments of the kills.
        """
        self._workers = ("worker", "worker2")[:replicas]
        self._impatient = resend is not None
        self._reef_config: dict[str, Any] = {"resend_after": 2}
        if resend is not None:
            self._reef_config = {"resend_after": resend, "receipt": "receiver"}
        self.log = folder / "worker.log"
        self._folder = folder
        self._flaw = flaw
        # what is broken on purpose shows soon
        self._spores = min(SPORES, 1500) if flaw else SPORES
        self._chance = random.Random(seed)
        self._protocol = protocol
        self._server = BROKERS[protocol](durable=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kills = Counter[str]()
        self._environment: dict[str, str] = {}
        """Further variables of the processes."""

    @property
    def url(self) -> str:
        """Where the processes reach the broker."""
        return self._server.url

    def serving(self) -> None:
        """The broker has started, and nothing else yet."""

    def over(self) -> None:
        """All have ended but the broker."""

    def start(self, role: str) -> None:
        log = self.log if role in self._workers else self._folder / f"{role}.log"
        log.touch()
        config = {
            "protocol": self._protocol,
            "url": self.url,
            "ca_cert": str(self._server.pki.authority.ca_cert),
            "reconnect_delay": 0.05,
            "confirm_timeout": 5,
        }
        script = [
            sys.executable,
            TEAM,
            role,
            self._folder / f"{role}.sqlite",
            log,
            str(self._spores),
        ]
        with (self._folder / f"{role}.err").open("ab") as errors:
            self._processes[role] = subprocess.Popen(
                [*script, self._flaw],
                env={
                    **os.environ,
                    **self._environment,
                    "KILL_TEAM_TRANSPORT": json.dumps(config),
                    "KILL_TEAM_REEF_CONFIG": json.dumps(self._reef_config),
                    **({"KILL_TEAM_IMPATIENT": "1"} if self._impatient else {}),
                },
                stderr=errors,
            )

    def kill(self, role: str) -> None:
        process = self._processes.pop(role)
        process.kill()
        process.wait()

    def run(self) -> Tally:
        """Start all, kill at the moments that the seed chooses, wait until all is handled."""
        begin = time.monotonic()
        self._server.start()
        try:
            self.serving()
            for role in self._workers:
                self.start(role)
            self._wait_for_workers()
            self.start("source")
            if self._flaw == "no-outbox":
                self._kill_source_while_broker_is_away()
            for victim, moment in self._moments():
                self.wait(
                    lambda: self.handled >= moment,  # noqa: B023
                    f"{moment} were handled",
                    must=not self._flaw,
                )
                if victim == "broker":
                    self._wait_for_workers()  # one that starts without a broker gives up
                    self._server.kill()
                    self._server.start()
                    self.kills["broker"] += 1
                else:
                    role = self._workers[self.kills["worker"] % len(self._workers)]
                    self.kill(role)
                    self.kills["worker"] += 1
                    self.start(role)
            source = self._processes["source"]
            self.wait(lambda: source.poll() is not None, "the source is done")
            assert source.returncode == 0, self.errors("source")
            self.wait(self._all_handled, "all were handled", must=not self._flaw)
            self._wait_for_workers()
            for role in self._workers:
                self._processes[role].terminate()
            for role in self._workers:
                assert self._processes[role].wait(30) == 0, self.errors(role)
            self.over()
        finally:
            for process in self._processes.values():
                process.kill()
                process.wait()
            self._server.close()
        return self._tally(time.monotonic() - begin)

    def _wait_for_workers(self) -> None:
        """Wait until all serve; one that was killed while it started has not said so."""
        last = lambda role: self.log.read_text().rpartition(f"process {role}\n")[2]  # noqa: E731
        for role in self._workers:
            self.wait(lambda: f"started {role}\n" in last(role), f"{role} serves")  # noqa: B023

    def _kill_source_while_broker_is_away(self) -> None:
        """What it calls accepted meanwhile is in its memory only, and dies with it."""
        log = self._folder / "source.log"
        self.wait(lambda: "connected" in log.read_text(), "the source is connected")
        self._server.kill()
        (self._folder / "source.go").touch()
        self.wait(lambda: log.read_text().count("accepted ") >= 100, "it has begun")
        self.kill("source")
        self._server.start()
        self.start("source")

    def _moments(self) -> list[tuple[str, int]]:
        kills = (2, 1) if self._flaw else (WORKER_KILLS, BROKER_KILLS)
        victims = ["worker"] * kills[0] + ["broker"] * kills[1]
        self._chance.shuffle(victims)
        span = self._spores * 0.8 / len(victims)
        return [
            (victim, int(span * (n + self._chance.uniform(0.3, 1))))
            for n, victim in enumerate(victims)
        ]

    @property
    def handled(self) -> int:
        return self.log.read_bytes().count(b"\nend ")

    def _all_handled(self) -> bool:
        return self.handled >= self._spores and len(set(self._ended())) == self._spores

    def _ended(self) -> list[str]:
        return [
            line.split()[1] for line in self.log.read_text().splitlines() if line.startswith("end ")
        ]

    def wait(self, holds: Callable[[], bool], what: str, *, must: bool = True) -> None:
        deadline = time.monotonic() + LIMIT if must else time.monotonic() + 10
        while not holds():
            if time.monotonic() > deadline:
                assert not must, f"never happened: {what}\n{self.errors('worker', 'source')}"
                return
            time.sleep(0.02)

    def errors(self, *roles: str) -> str:
        return "\n".join(
            (self._folder / f"{role}.err").read_text()[-3000:]
            for role in roles
            if (self._folder / f"{role}.err").exists()
        )

    def _tally(self, seconds: float) -> Tally:
        accepted = {
            line.split()[1]
            for line in (self._folder / "source.log").read_text().splitlines()
            if line.startswith("accepted ")
        }
        # A worker handles one at a time: what a process began after another one, it began after
        # the other's commit. So only the last one of each, when it is killed, may come again.
        committed: set[str] = set()
        begun: set[str] = set()
        last: dict[str, str] = {}
        again, repeated = 0, 0
        for line in self.log.read_text().splitlines():
            word, number, role = [*line.split(), ""][:3]
            if word == "process":
                last.pop(number, None)
            if word != "begin":
                continue
            again += number in committed
            repeated += number in begun
            if role in last:
                committed.add(last[role])
            begun.add(number)
            last[role] = number
        return Tally(
            accepted=len(accepted),
            lost=len(accepted - set(self._ended())),
            again_after_commit=again,
            repeated=repeated,
            worker_kills=self.kills["worker"],
            broker_kills=self.kills["broker"],
            seconds=round(seconds, 1),
        )


@pytest.mark.timeout(int(LIMIT * 3))
@pytest.mark.parametrize("protocol", BROKERS)
def test_nothing_is_lost_or_repeated_when_hosts_and_brokers_are_killed(
    protocol: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """Every accepted spore is handled; none again after its commit."""
    tally = Run(protocol, tmp_path).run()
    record_property("tally", tally._asdict())
    print(f"\n{protocol}: {tally}")
    assert tally.accepted == SPORES
    assert tally.lost == 0
    assert tally.again_after_commit == 0
    assert tally.repeated <= tally.worker_kills
    assert (tally.worker_kills, tally.broker_kills) == (WORKER_KILLS, BROKER_KILLS)


@pytest.mark.timeout(int(LIMIT * 3))
@pytest.mark.parametrize("protocol", BROKERS)
def test_replicas_that_are_killed_in_turn_lose_nothing(
    protocol: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """Only what a killed replica had under way, its receipts included, may come again."""
    tally = Run(protocol, tmp_path, replicas=2).run()
    record_property("tally", tally._asdict())
    print(f"\n{protocol}, two replicas: {tally}")
    assert (tally.accepted, tally.lost) == (SPORES, 0)
    assert tally.repeated <= UNDER_WAY * tally.worker_kills


@pytest.mark.timeout(int(LIMIT * 3))
def test_what_is_sent_again_is_not_handled_again(tmp_path: Path) -> None:
    """A sender that is far too impatient sends most spores several times."""
    tally = Run("redis", tmp_path, resend=0.05).run()
    print(f"\nimpatient: {tally}")
    assert (tally.accepted, tally.lost, tally.again_after_commit) == (SPORES, 0, 0)


@pytest.mark.timeout(int(LIMIT * 3))
@pytest.mark.parametrize("flaw", ["early-ack", "no-dedup", "no-outbox"])
def test_a_broken_promise_is_seen(flaw: str, tmp_path: Path) -> None:
    """The same run with an early acknowledgement, without ids, without an outbox: it fails."""
    tally = Run("redis", tmp_path, flaw=flaw, resend=0.05 if flaw == "no-dedup" else None).run()
    print(f"\n{flaw}: {tally}")
    assert tally.lost or tally.again_after_commit
