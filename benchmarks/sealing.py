"""Budget 11: seal and open against the primitives that cannot be avoided.

    python -m benchmarks.sealing [--rounds 40] [--check]

Unavoidable for one recipient: a fresh key pair, one exchange, one wrap, one encryption, one hash of
the whole, one signature; and the reverse. Both are measured in turn, round by round; the median of
the ratios counts. Exit code 1 with ``--check`` if a budget is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from hashlib import blake2b
from time import perf_counter

from nacl import bindings

from praval.core.envelope import Recipient, Sender, seal
from praval.core.envelope_body import encode_body
from praval.core.envelope_format import Message
from praval.core.key_types import PrivateKey, PublicKey
from praval.core.keys import Keyring

NOW = 1_800_000_000_000
BUDGETS = {"seal": 1.30, "open": 1.30, "recipient": 1.25}
GOAL = 1.15
KEY, NONCE = os.urandom(32), os.urandom(24)


def ratio(ours: Callable[[], object], floor: Callable[[], object], rounds: int) -> list[float]:
    """Return median microseconds of both, and the median ratio of neighbouring rounds."""
    calls, pairs = max(int(0.004 / timed(floor, 20)), 1), []
    for number in range(rounds):
        order = (ours, floor) if number % 2 else (floor, ours)
        times = {call: timed(call, calls) for call in order}
        pairs.append((times[ours], times[floor]))
    return [
        statistics.median(a for a, _ in pairs) * 1e6,
        statistics.median(b for _, b in pairs) * 1e6,
        statistics.median(a / b for a, b in pairs),
    ]


def timed(call: Callable[[], object], calls: int) -> float:
    begun = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - begun) / calls


def keyring() -> Keyring:
    keys = Keyring()
    keys.add("alice", now=NOW)
    keys.add("bob", now=NOW)
    return keys


def whole(size: int, rounds: int) -> dict[str, list[float]]:
    keys = keyring()
    body = encode_body(None, b'{"k":"' + b"x" * (size - 8) + b'"}')
    message = Message(b"i" * 16, NOW, NOW + 1000, "alice", "desk.bob", body, "bob")
    (data,) = keys.seal(message, now=NOW).envelopes
    secret, public = os.urandom(32), bytes(PrivateKey(os.urandom(32)).public)
    verify, sign = bindings.crypto_sign_seed_keypair(os.urandom(32))
    digest = os.urandom(83)
    signature, wrapped, box = (
        bindings.crypto_sign(digest, sign),
        bindings.crypto_secretbox(KEY, NONCE, KEY),
        bindings.crypto_secretbox(body, NONCE, KEY),
    )

    def seal_floor() -> None:
        bindings.crypto_scalarmult_base(secret)
        bindings.crypto_scalarmult(secret, public)
        bindings.crypto_secretbox(KEY, NONCE, KEY)
        bindings.crypto_secretbox(body, NONCE, KEY)
        blake2b(data).digest()
        bindings.crypto_sign(digest, sign)

    def open_floor() -> None:
        blake2b(data).digest()
        bindings.crypto_sign_open(signature, verify)
        bindings.crypto_scalarmult(secret, public)
        bindings.crypto_secretbox_open(wrapped, NONCE, KEY)
        bindings.crypto_secretbox_open(box, NONCE, KEY)

    def open_it() -> None:
        keys.open("bob", data, now=NOW, filters=("desk.bob",))

    return {
        "seal": ratio(lambda: keys.seal(message, now=NOW), seal_floor, rounds),
        "open": ratio(open_it, open_floor, rounds),
    }


def further_recipient(rounds: int, more: int = 32) -> list[float]:
    """Seal to 1 + more and to 1: the difference per recipient, against one exchange and a wrap."""
    keys = keyring()
    alice = keys.get("alice")
    sender = Sender(alice.agent_id, alice.signers[0].key)
    publics = [bytes(PrivateKey(os.urandom(32)).public) for _ in range(more + 1)]
    many = [Recipient(os.urandom(16), PublicKey(each), NOW + 10**9, 10**9) for each in publics]
    message = Message(b"i" * 16, NOW, NOW + 1000, "alice", "desk.main", b"x" * 64)
    secret = os.urandom(32)

    def floor() -> None:
        for public in publics[1:]:
            bindings.crypto_scalarmult(secret, public)
            bindings.crypto_secretbox(KEY, NONCE, KEY)

    def to_one() -> None:
        seal(message, sender, many[:1], now=NOW, random=os.urandom)

    def to_all() -> None:
        seal(message, sender, many, now=NOW, random=os.urandom)

    found = []
    for _ in range(rounds):
        one, everyone, primitives = timed(to_one, 10), timed(to_all, 3), timed(floor, 3)
        found.append(((everyone - one) / more, primitives / more))
    return [
        statistics.median(a for a, _ in found) * 1e6,
        statistics.median(b for _, b in found) * 1e6,
        statistics.median(a / b for a, b in found),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rows = {
        f"{name} {size // 1024} KiB": (BUDGETS[name], values)
        for size in (1024, 102_400)
        for name, values in whole(size, options.rounds).items()
    }
    rows["a further recipient"] = (BUDGETS["recipient"], further_recipient(options.rounds))
    print(f"{'':<22}{'ours':>11}{'floor':>11}{'ratio':>8}{'budget':>8}")
    missed = False
    for name, (budget, (ours, floor, found)) in rows.items():
        missed |= found > budget
        verdict = "MISSED" if found > budget else "goal" if found <= GOAL else "met"
        print(f"{name:<22}{ours:>8.1f} us{floor:>8.1f} us{found:>8.2f}{budget:>8.2f}  {verdict}")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
