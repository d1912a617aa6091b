"""``python -m benchmarks.wire``: start brokers, run the contestants in turn, print the ratios."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.budgets import Budget
from tests.servers import ActiveMQ, Mosquitto, RabbitMQ, Redis, Server

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60.0


class Wire(NamedTuple):
    """One broker and who competes on it."""

    protocol: str
    server: type[Server]
    contestants: tuple[str, ...]
    count: int


SEALED = ("with receipts", "sealed")

WIRES = (
    Wire("amqp", RabbitMQ, ("aio-pika", "faststream", "praval", "praval reef", *SEALED), 10_000),
    Wire("mqtt", Mosquitto, ("aiomqtt", "praval", "praval reef", *SEALED), 20_000),
    Wire("stomp", ActiveMQ, ("stomp.py", "praval", "praval reef", *SEALED), 10_000),
    Wire("redis", Redis, ("redis-py", "praval", "praval reef", *SEALED), 20_000),
)

BUDGETS = (
    Budget("10a", "AMQP, against aio-pika", "amqp", "rate", "praval", "aio-pika", ">=", 0.8),
    Budget("10b", "AMQP, against FastStream", "amqp", "rate", "praval", "faststream", ">=", 1.1),
    Budget("10c", "MQTT, against aiomqtt", "mqtt", "rate", "praval", "aiomqtt", ">=", 0.8),
    Budget("10d", "STOMP, against stomp.py", "stomp", "rate", "praval", "stomp.py", ">=", 1.0),
    *(
        Budget(number, f"{wire}, sealed, CPU against unsealed with receipts", wire.lower(),
               "client_us", "sealed", "with receipts", "<=", 1.5)
        for number, wire in (("11a", "AMQP"), ("11b", "MQTT"), ("11c", "STOMP"))
    ),
)  # fmt: skip

Result = dict[str, float]


def run(wire: Wire, contestant: str, server: Server, count: int) -> Result:
    """Run one consumer and one producer; return messages per second and CPU per message."""
    config = {
        "protocol": wire.protocol,
        "url": server.url,
        "ca_cert": str(server.pki.authority.ca_cert),
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
    }
    consumer = _child(contestant, "consume", count, config)
    assert consumer.stdout is not None
    if consumer.stdout.readline().strip() != "ready":
        raise SystemExit(f"{contestant} on {wire.protocol} did not start")
    producer = _child(contestant, "produce", count, config)
    begun = _answer(producer)
    ended = _answer(consumer)
    return {
        "rate": count / (ended["at"] - begun["at"]),
        "publish_us": 1e6 * begun["cpu"] / count,
        "consume_us": 1e6 * ended["cpu"] / count,
        "client_us": 1e6 * (begun["cpu"] + ended["cpu"]) / count,
    }


def _child(contestant: str, role: str, count: int, config: dict[str, Any]) -> Any:
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.wire.child", contestant, role, str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(config) + "\n")
    child.stdin.close()
    child.stdin = None
    return child


def _answer(child: Any) -> Result:
    out, _ = child.communicate(timeout=TIMEOUT)
    if child.returncode:
        raise SystemExit(f"a contestant failed with exit code {child.returncode}")
    answer: Result = json.loads(out.splitlines()[-1])
    return answer


def measure(wire: Wire, rounds: int, count: int) -> dict[str, list[Result]]:
    """Run all contestants, the order reversed every other round, on a broker of their own."""
    results: dict[str, list[Result]] = {name: [] for name in wire.contestants}
    with wire.server() as server:
        for turn in range(rounds):
            for name in wire.contestants if turn % 2 == 0 else wire.contestants[::-1]:
                results[name].append(run(wire, name, server, count))
                print(
                    f"{wire.protocol} {name}: {results[name][-1]['rate']:,.0f}/s", file=sys.stderr
                )
    return results


def show(measured: dict[str, dict[str, list[Result]]]) -> None:
    """Print the figures, then the budgets."""
    table = Table("wire", "contestant", "messages/s", "us CPU publish", "us CPU consume")
    for protocol, results in measured.items():
        for name, runs in results.items():
            cells = [
                median(each[key] for each in runs) for key in ("rate", "publish_us", "consume_us")
            ]
            table.add_row(protocol, name, *(f"{cell:,.0f}" for cell in cells))
    console = Console()
    console.print(table)
    verdicts = Table("budget", "what", "threshold", "median", "pairs", "")
    for budget in BUDGETS:
        verdict = budget.judge(measured.get(budget.workload, {}))
        if verdict is not None:
            spread = f"{min(verdict.ratios):.2f} to {max(verdict.ratios):.2f}"
            verdicts.add_row(
                budget.number, budget.what, f"{budget.direction} {budget.threshold}",
                f"{verdict.ratio:.2f}", spread, "met" if verdict.met else "MISSED",
            )  # fmt: skip
    console.print(verdicts)


def _only(wire: Wire, names: list[str] | None) -> Wire:
    if names is None:
        return wire
    return wire._replace(contestants=tuple(name for name in wire.contestants if name in names))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__)
    parser.add_argument("--only", help="protocols, separated by commas")
    parser.add_argument("--pairs", type=int, default=5, help="rounds per broker (default 5)")
    parser.add_argument("--contestants", help="of these, separated by commas")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the message counts")
    args = parser.parse_args(argv)
    only = args.only.split(",") if args.only else [wire.protocol for wire in WIRES]
    chosen = args.contestants.split(",") if args.contestants else None
    show(
        {
            wire.protocol: measure(_only(wire, chosen), args.pairs, int(wire.count * args.scale))
            for wire in WIRES
            if wire.protocol in only
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
