"""Fill the templates of one server: docker/<server>/* -> a folder that the server reads.

The templates hold `${NAME}`; a name without a value is an error. `deploy.sh` fills them for the
containers, the test suite for the servers it starts, so both run the same configuration.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import string
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent

SAFE = re.compile(r"[A-Za-z0-9_-]+")
"""What a user name or password may consist of: nothing that any of the formats would quote."""


def render(server: str, target: Path, values: Mapping[str, str]) -> None:
    """Write the filled templates of `server` into the folder `target`, which must exist.

    `USER` and `PASSWORD` are among the values; the hashes that some servers want are added.
    The files may be read by their owner and group only. Raises `KeyError` for a placeholder
    without a value, `ValueError` for a user name or password with other than safe characters.
    """
    for name in ("USER", "PASSWORD"):
        if not SAFE.fullmatch(values[name]):
            raise ValueError(f"{name} may hold letters, digits, '_' and '-' only.")
    filled = {**values, **hashes(values["PASSWORD"])}
    for template in sorted((HERE / server).iterdir()):
        text = string.Template(template.read_text()).substitute(filled)
        path = target / template.name
        path.touch(mode=0o640)
        path.write_text(text)


def hashes(password: str) -> dict[str, str]:
    """Return the password in the forms in which the servers keep it."""
    word = password.encode()
    salt4, salt12, rounds = secrets.token_bytes(4), secrets.token_bytes(12), 101
    pbkdf2 = hashlib.pbkdf2_hmac("sha512", word, salt12, rounds)
    return {
        "RABBITMQ_HASH": _base64(salt4 + hashlib.sha256(salt4 + word).digest()),
        "MOSQUITTO_HASH": f"$7${rounds}${_base64(salt12)}${_base64(pbkdf2)}",
        "SHA256": hashlib.sha256(word).hexdigest(),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
