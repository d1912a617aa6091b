"""One side of one run: ``python -m benchmarks.wire.child CONTESTANT consume|produce COUNT``.

Reads the broker's address as JSON from standard input. Prints ``ready`` (consume), and at the end
one JSON object: the monotonic time at the begin or the end, and the CPU seconds between.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time

from benchmarks.wire.contestants import CONTESTANTS


def main() -> None:
    name, role, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = json.loads(sys.stdin.readline())
    contestant = CONTESTANTS[name]()
    logging.disable(logging.ERROR)
    marks: list[float] = []
    cpu: list[float] = []

    def mark() -> None:
        marks.append(time.monotonic())
        cpu.append(time.process_time())
        if role == "consume":
            print("ready", flush=True)

    run = contestant.consume if role == "consume" else contestant.produce
    asyncio.run(run(config, count, mark))
    at = time.monotonic() if role == "consume" else marks[0]
    print(json.dumps({"at": at, "cpu": time.process_time() - cpu[0]}), flush=True)


main()
