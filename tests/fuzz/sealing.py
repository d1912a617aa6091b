"""Mutated envelopes, cards and key files: each is refused by a typed error, or nothing is.

    python -m tests.fuzz.sealing [--count 2000000] [--seed 1] [--seconds 0] [--processes 2]

Case n of a seed is the same on every machine and in any number of processes. What is wrong: an
exception that is no ``SealError``, and bytes that are accepted though nobody signed or locked them
like that. Ends with the counts, and with exit code 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import msgspec

from praval.core import signed
from praval.core.certificates import sign_status
from praval.core.directory import Directory
from praval.core.envelope import LABEL
from praval.core.envelope_body import decode_body
from praval.core.key_box import CHEAP, BoxKey, unlock
from praval.core.key_types import SigningKey
from praval.core.keys import Keyring
from praval.errors import SealError
from tests.sealing.actors import EVERYWHERE, NOW, Dice, a_root, acquaint, host, note

BLOCK = 500
"""Cases that share one source of randomness."""
EVERY = 100_000
"""Cases between two lines of progress."""


class Wrong(NamedTuple):
    """A case that ended as none may."""

    kind: str
    block: int
    case: int
    what: str
    data: bytes


class Target(NamedTuple):
    """What is mutated, and who reads it."""

    share: int
    corpus: list[bytes]
    read: Callable[[bytes], object]
    sign: Callable[[bytes], bytes] | None
    """Makes good again what was mutated, so that the checks behind the signature are reached."""


class World:
    """Two hosts, their envelopes, cards and key files; made once per process."""

    def __init__(self) -> None:
        root = a_root()
        alice, bob = host("alice"), host("bob", "carol", "dave")
        acquaint(alice, bob)
        keys = alice.get("alice")
        messages = [
            note(to="bob"), note(), note(knowledge=b'{"k":"' + b"x" * 300 + b'"}'),
            note(to="bob", spore_type=3, reply_to=b"r" * 16, kind="t", knowledge=b'{"type":"t"}'),
        ]  # fmt: skip
        self.envelopes = [alice.seal(each, now=NOW).envelopes[0] for each in messages]

        def sign(data: bytes) -> bytes:
            digest = blake2b(data[:-64], person=b"psv1.sign").digest()
            return data[:-64] + keys.signers[0].key.sign(LABEL, digest)

        def open_it(data: bytes) -> None:
            opened = bob.open("bob", data, now=NOW, filters=EVERYWHERE)
            decode_body(opened.message.body)

        identities = [SigningKey(keys.identity.reveal()), bob.get("bob").identity]
        cards = [keys.card, *(bob.card(name) for name in bob.names)]
        cards.append(sign_status(root, number=1, issued=NOW, expires=NOW + 9, serials=(4, 5)))
        cards.extend(keys.certificates)

        def sign_card(data: bytes) -> bytes:
            try:
                found = signed.read_signed(data)
            except SealError:
                return data
            payload = bytes(found.payload)
            label = f"praval.{found.kind}.v1".encode()
            signature = identities[0].sign(label, payload)
            return msgspec.json.encode(signed.Signed(found.kind, found.payload, signature))

        def hear(data: bytes) -> None:
            directory = Directory([root.verify_key])
            errors = []
            for read in (directory.hear_card, directory.hear_status):
                try:
                    read(data, NOW)
                except SealError as error:
                    errors.append(error)
            if len(errors) == 2:
                raise errors[0]

        box_key = BoxKey.fresh("horse", random=Dice("box"), cost=CHEAP)
        secret = host("bob").dump()
        boxes = [box_key.lock(each, Dice("nonce")) for each in (secret, b"", b"{}", secret[:200])]

        def restore(data: bytes) -> None:
            Keyring(random=Dice("fuzz")).restore(unlock(data, "horse", CHEAP)[0], now=NOW)

        self.targets = {
            "envelope": Target(6, self.envelopes, open_it, None),
            "signed envelope": Target(1, self.envelopes, open_it, sign),
            "card": Target(3, cards, hear, None),
            "signed card": Target(1, cards, hear, sign_card),
            "key file": Target(2, boxes, restore, None),
            "keyring": Target(1, [secret], restore, lambda data: box_key.lock(data, Dice("n"))),
        }
        self.order = [name for name, target in self.targets.items() for _ in range(target.share)]


INTERESTING = [b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff",
               b"\0\0\4\0", b"PSV1", b"PVK1", b"null", b"NaN", b"1e9", b"-1", b'""', b"{}", b"[]",
               b'"kind":"card",', b"\\u0000", b"\xed\xa0\x80", b"9007199254740992", b"true",
               b'{"a":' * 40, b"[" * 300]  # fmt: skip


def mutated(data: bytes, other: bytes, dice: random.Random) -> bytes:
    """Change some bytes in one to three ways."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.randrange(len(out) + 1)
        way = dice.randrange(9)
        if way <= 1 and at < len(out):
            out[at] ^= 1 << dice.randrange(8)
        elif way == 2 and at < len(out):
            out[at] = dice.randrange(256)
        elif way == 3:
            token = dice.choice(INTERESTING)
            out[at : at + len(token)] = token
        elif way == 4:
            out[at:at] = dice.choice(INTERESTING)
        elif way == 5:
            del out[at : at + dice.choice((1, 2, 4, 8, 64))]
        elif way == 6:
            del out[at:]
        elif way == 7:
            out[at:] = other[dice.choice((at, dice.randrange(len(other) + 1))) :]
        else:
            size = dice.choice((1, 8, 16, 64))
            start = dice.randrange(len(out) + 1)
            out[at : at + size] = out[start : start + size]
    return bytes(out)


_world: World | None = None


def run_block(seed: int, block: int) -> tuple[Counter[str], list[Wrong]]:
    """Run the cases of one block."""
    global _world  # noqa: PLW0603 - one per process: making it takes longer than a block
    world = _world = _world or World()
    dice = random.Random(f"{seed}/{block}")
    counts: Counter[str] = Counter()
    wrong: list[Wrong] = []
    for case in range(BLOCK):
        kind = dice.choice(world.order)
        target = world.targets[kind]
        data = dice.choice(target.corpus)
        while data in target.corpus:
            data = mutated(data, dice.choice(target.corpus), dice)
        if target.sign is not None:
            data = target.sign(data)
        try:
            target.read(data)
        except SealError as error:
            counts[f"{kind}: {error.code.value}"] += 1
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            wrong.append(Wrong(kind, block, case, repr(error), data))
        else:
            counts[f"{kind}: accepted"] += 1
            if target.sign is None:
                wrong.append(Wrong(kind, block, case, "accepted", data))
    return counts, wrong


def _run(task: tuple[int, int]) -> tuple[Counter[str], list[Wrong]]:
    return run_block(*task)


def fuzz(
    count: int,
    *,
    seed: int = 1,
    seconds: float = 0,
    processes: int = 1,
    say: Callable[[str], object] = lambda line: None,
) -> tuple[Counter[str], list[Wrong]]:
    """Run that many cases, or as many as there is time for (0: no limit)."""
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    wrong: list[Wrong] = []
    tasks = ((seed, block) for block in range(-(-count // BLOCK)))
    for number, (found, bad) in enumerate(_results(tasks, processes), 1):
        counts += found
        wrong += bad
        done = number * BLOCK
        took = time.monotonic() - begun
        if done % EVERY == 0:
            say(f"{done:,} cases, {done / took:,.0f} a second, {len(wrong)} wrong")
        if seconds and took > seconds:
            break
    return counts, wrong


def _results(
    tasks: Iterator[tuple[int, int]], processes: int
) -> Iterable[tuple[Counter[str], list[Wrong]]]:
    if processes == 1:
        yield from map(_run, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        # in portions, so that a run that is bounded in time does not queue all blocks first
        while portion := list(islice(tasks, 16 * processes)):
            yield from pool.imap(_run, portion, chunksize=4)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    begun = time.monotonic()
    counts, wrong = fuzz(**vars(options), say=lambda line: print(line, flush=True))
    took, total = time.monotonic() - begun, counts.total()
    for name, number in sorted(counts.items()):
        print(f"  {number:>10,}  {name}")
    print(f"{total + len(wrong):,} cases of seed {options.seed} in {took:,.0f} s")
    for each in wrong[:20]:
        print(f"WRONG: {each.kind}, block {each.block}, case {each.case}: {each.what}")
        print(f"  {each.data.hex()}")
    print(f"{len(wrong)} wrong")
    return 1 if wrong or total < min(options.count, BLOCK) else 0


if __name__ == "__main__":
    sys.exit(main())
