"""Make what the containers need: certificates, passwords, configuration, environment.

    python configure.py [--host NAME ...]    once; refuses when there is a configuration
    python configure.py renew                new certificates, the current revocation list

The configuration files of a server are the templates in the folder of its name, with `${NAME}`
for what differs between hosts. The test suite starts its servers with the same templates.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import secrets
import shutil
import string
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from praval.certs import Authority
from praval.errors import PravalError

HERE = Path(__file__).resolve().parent

USER = "praval"
CLIENT = "app"
"""The name in the app's certificate, under which it can log in where certificates do."""

COMMON = {
    "ADDRESS": "0.0.0.0",
    "ETC": "/etc/praval",
    "USER": USER,
    "CERTIFICATE_USER": CLIENT,
    "PERSISTENCE": "true",
}
SERVERS: Mapping[str, Mapping[str, str]] = {
    "rabbitmq": {
        "PORT": "5671",
        "STOMP_PORT": "61614",
        "REQUIRE_CLIENT_CERTIFICATE": "false",
    },
    "mosquitto": {"PORT": "8883", "MUTUAL_PORT": "8884", "DATA": "/mosquitto/data"},
    "activemq": {"PORT": "61614", "MUTUAL_PORT": "61615", "DATA": "/data"},
    "redis": {
        "PORT": "6380",
        "DATA": "/data",
        "CLIENT_CERTIFICATES": "optional",
        "PERSISTENCE": "yes",
    },
    "postgres": {
        "PORT": "5432",
        "KEYS": "/run/keys",
        "SOCKETS": "/run/postgresql",
        "DATABASE": "praval",
    },
    "qdrant": {"PORT": "6333", "GRPC_PORT": "6334", "DATA": "/qdrant/storage"},
}
"""What the templates get for a container; all of the ports speak TLS."""

CRL_DAYS = 365
SAFE = re.compile(r"[A-Za-z0-9_-]+")
"""What a user name or password may consist of: nothing that any of the formats would quote."""


def render(server: str, target: Path, values: Mapping[str, str]) -> None:
    """Fill the templates of a server and write them into the folder `target`, which must exist.

    `USER` and `PASSWORD` are among the values; the hashes that some servers want are added. The
    files may be read by their owner and group only. Raises `KeyError` for a placeholder without
    a value, `ValueError` for a user name or password with other than safe characters.
    """
    for name in ("USER", "PASSWORD"):
        if not SAFE.fullmatch(values[name]):
            raise ValueError(f"{name} may hold letters, digits, '_' and '-' only.")
    filled = {**values, **hashes(values["PASSWORD"])}
    for template in sorted((HERE / server).iterdir()):
        text = string.Template(template.read_text()).substitute(filled)
        write(target / template.name, text)


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


def install(files: Mapping[str, Path], target: Path) -> None:
    """Copy certificates, keys and revocation lists to where a server reads them."""
    for name, source in files.items():
        write(target / name, source.read_bytes())


def index_crl(target: Path) -> None:
    """Put crl.pem where Erlang looks for it: under OpenSSL's hash of its issuer's name."""
    crl = target / "crl.pem"
    command = ["openssl", "crl", "-hash", "-noout", "-in", str(crl)]
    name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    (target / "crl").mkdir(mode=0o750, exist_ok=True)
    install({f"crl/{name}.r0": crl}, target)


def write(path: Path, content: str | bytes, mode: int = 0o640) -> None:
    """Write a file that never had a wider mode than it is to have."""
    content = content.encode() if isinstance(content, str) else content
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content)


# -- the configuration of all containers -----------------------------------------------------


def configure(folder: Path, hosts: Iterable[str] = ()) -> None:
    """Write `folder/generated` and `folder/.env`; refuse if there is one of them.

    `hosts` are the names under which the servers are reached from other machines.
    """
    generated, environment = folder / "generated", folder / ".env"
    for path in (generated, environment):
        if path.exists():
            raise FileExistsError(
                f"There is {path} already, and it is not overwritten: the servers keep passwords "
                "in their volumes. To begin anew, delete both it and the volumes."
            )
    draft = folder / "generated.draft"  # so that what failed half-way is no configuration
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o750)
    authority = Authority.create(draft / "ca")
    store_password = secrets.token_hex(24)
    write(draft / "ca" / "store-password", store_password, 0o600)
    passwords = {server: secrets.token_hex(24) for server in SERVERS}
    for server, values in SERVERS.items():
        (draft / server).mkdir(mode=0o750)
        words = {"PASSWORD": passwords[server], "STORE_PASSWORD": store_password}
        render(server, draft / server, {**COMMON, **words, **values})
    (draft / "app").mkdir(mode=0o750)
    certify(draft, authority, hosts)
    write(draft / "app.env", "".join(f"{k}={v}\n" for k, v in app(passwords).items()), 0o600)
    draft.rename(generated)
    write(environment, f"PRAVAL_GID={os.getgid()}\nPRAVAL_BIND=127.0.0.1\n", 0o600)


def certify(folder: Path, authority: Authority, hosts: Iterable[str], force: bool = False) -> None:
    """Issue all certificates and put them, with the revocation list, where they are read."""
    authority.refresh_crl(CRL_DAYS)
    store_password = (folder / "ca" / "store-password").read_text()
    common = {"ca.pem": authority.ca_cert, "crl.pem": authority.crl}
    for server in SERVERS:
        names = dict.fromkeys((server, "localhost", "127.0.0.1", *hosts))
        issued = authority.issue(server, hosts=names, force=force)
        files = {**common, "server.pem": issued.cert, "server-key.pem": issued.key}
        if server == "activemq":
            stores = authority.java_stores(server, store_password)
            files |= dict(zip(("keystore.p12", "truststore.p12"), stores, strict=True))
        install(files, folder / server)
    index_crl(folder / "rabbitmq")
    client = authority.issue(CLIENT, kind="client", force=force)
    install({**common, "client.pem": client.cert, "client-key.pem": client.key}, folder / "app")


def renew(folder: Path) -> None:
    """Replace all certificates and the revocation list of a configuration; keep the passwords."""
    generated = folder / "generated"
    authority = Authority.open(generated / "ca")
    known = authority.get("rabbitmq").hosts
    certify(generated, authority, [name for name in known if name != "rabbitmq"], force=True)


def app(passwords: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the app: where the servers are, and the passwords."""
    rabbitmq = f"amqps://{USER}:{passwords['rabbitmq']}@rabbitmq:{SERVERS['rabbitmq']['PORT']}/"
    return {
        "PRAVAL_TRANSPORT": rabbitmq,
        "PRAVAL_TLS_CERT_DIR": COMMON["ETC"],
        "MQTT_PASSWORD": passwords["mosquitto"],
        "ACTIVEMQ_PASSWORD": passwords["activemq"],
        "REDIS_HOST": "redis",
        "REDIS_PORT": SERVERS["redis"]["PORT"],
        "REDIS_PASSWORD": passwords["redis"],
        "POSTGRES_HOST": "postgres",
        "POSTGRES_DB": SERVERS["postgres"]["DATABASE"],
        "POSTGRES_USER": USER,
        "POSTGRES_PASSWORD": passwords["postgres"],
        "QDRANT_URL": f"https://qdrant:{SERVERS['qdrant']['PORT']}",
        "QDRANT_API_KEY": passwords["qdrant"],
    }


def main() -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", nargs="?", choices=["renew"], help="instead of making it")
    parser.add_argument("--host", action="append", default=[], help="a name of this machine")
    arguments = parser.parse_args()
    try:
        if arguments.command == "renew":
            renew(HERE)
        else:
            configure(HERE, arguments.host)
    except (OSError, PravalError, subprocess.CalledProcessError) as error:
        print(f"configure.py: {error}", file=sys.stderr)
        return 1
    return 0


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    sys.exit(main())
