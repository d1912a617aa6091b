"""PostgreSQL over TLS."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from praval.certs import Issued
from tests.servers.machine import ServerError, find, identity
from tests.servers.process import Server


class PostgreSQL(Server):
    """A PostgreSQL server with the database `database`; `user` logs in by password.

    The same port serves `mutual_user`, who logs in by client certificate. Without `durable` it
    does not wait for the disk: what it committed survives its own death, not the machine's.
    """

    kind = "postgres"
    scheme = "postgresql"
    stop_signal = signal.SIGINT  # the fast shutdown
    database = "postgres"

    @property
    def mutual_port(self) -> int:
        return self.port

    def url_for(self, port: int) -> str:
        return super().url_for(port) + self.database

    def values(self) -> Mapping[str, str]:
        return {
            "KEYS": str(self.etc_dir),
            "SOCKETS": str(self.folder),
            "DATABASE": self.database,
        }

    def prepare(self) -> None:
        # what the container's entry point does
        self._run(
            "initdb", "-D", str(self.data_dir), "-U", self.user,
            "--pwfile", str(self.etc_dir / "password"),
            "-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8",
        )  # fmt: skip
        roles = (self.etc_dir / "roles.sql").read_text()
        self._run("postgres", "--single", "-D", str(self.data_dir), "postgres", given=roles)

    def command(self) -> list[str]:
        speed = [] if self.durable else ["-c", "fsync=off", "-c", "full_page_writes=off"]
        return [
            self._program("postgres"),
            "-D", str(self.data_dir),
            "-c", f"config_file={self.etc_dir}/postgresql.conf",
            "-c", "shared_buffers=16MB",
            *speed,
        ]  # fmt: skip

    def login(
        self, port: int | None = None, *, password: str | None = None, client: Issued | None = None
    ) -> None:
        self.psql("select 1", port, password=password, client=client)

    def psql(
        self,
        sql: str,
        port: int | None = None,
        *,
        password: str | None = None,
        client: Issued | None = None,
        tls: str = "verify-full",
    ) -> str:
        """Return what PostgreSQL's own client prints; with a certificate, as `mutual_user`.

        Raises `ConnectionError` with what it said when it fails.
        """
        environment = {
            "PGHOST": self.host,
            "PGPORT": str(port or self.port),
            "PGUSER": self.user if client is None else self.mutual_user,
            "PGPASSWORD": password or self.password,
            "PGDATABASE": self.database,
            "PGSSLMODE": tls,
            "PGSSLROOTCERT": str(self.pki.ca),
            "PGSSLCERT": str(client.cert if client else self.folder / "none"),
            "PGSSLKEY": str(client.key if client else self.folder / "none"),
            "PGCONNECT_TIMEOUT": "5",
        }
        done = subprocess.run(
            [self._program("psql"), "--no-psqlrc", "--tuples-only", "--no-align", "--command", sql],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ConnectionError(done.stderr.strip())
        return done.stdout.strip()

    def _program(self, name: str) -> str:
        versions = sorted(
            Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
        )
        return find(self.kind, name, *(str(folder) for folder in reversed(versions)))

    def _run(self, name: str, *arguments: str, given: str | None = None) -> None:
        done = subprocess.run(
            [self._program(name), *arguments],
            input=given,
            cwd=self.folder,
            env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            **identity(),
        )
        if done.returncode != 0:
            raise ServerError(f"{name} failed:\n{done.stdout}\n{done.stderr}")
