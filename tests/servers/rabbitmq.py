"""RabbitMQ: AMQP and STOMP over TLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from praval.certs import Issued
from tests.servers.machine import find, free_port
from tests.servers.pki import PKI
from tests.servers.process import Server, configuration
from tests.servers.wire import amqp_login, stomp_login


class RabbitMQ(Server):
    """A RabbitMQ node: `port` speaks AMQP, `stomp_port` STOMP.

    Its queues are on its disk with `durable` or without. A client certificate may be shown at
    `port` (login by `?auth=EXTERNAL` as `mutual_user`) and has to be at `mutual_port`. RabbitMQ
    has one set of TLS options for all its listeners, so `mutual_port` belongs to a second node,
    started on first use (4 s).
    """

    kind = "rabbitmq"
    scheme = "amqps"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        durable: bool = False,
        pki: PKI | None = None,
        require_client_certificate: bool = False,
    ) -> None:
        super().__init__(folder, durable=durable, pki=pki)
        self.stomp_port = free_port()
        self._require = require_client_certificate
        self._epmd_port = free_port()
        self._mutual: RabbitMQ | None = None

    @property
    def stomp_url(self) -> str:
        return f"stomp+ssl://{self.user}:{self.password}@{self.host}:{self.stomp_port}/"

    @property
    def mutual_port(self) -> int:
        return self.mutual_node().port

    def mutual_node(self) -> RabbitMQ:
        """Return the node that requires client certificates, with the same password."""
        if self._require:
            return self
        if self._mutual is None:
            node = RabbitMQ(pki=self.pki, require_client_certificate=True)
            node.password = self.password
            node.start()
            self._mutual = node
        return self._mutual

    def close(self) -> None:
        if self._mutual is not None:
            self._mutual.close()
        super().close()

    def values(self) -> Mapping[str, str]:
        return {
            "STOMP_PORT": str(self.stomp_port),
            "REQUIRE_CLIENT_CERTIFICATE": str(self._require).lower(),
        }

    def prepare(self) -> None:
        configuration.index_crl(self.etc_dir)
        self.own()

    def command(self) -> list[str]:
        # the one in /usr/sbin is a wrapper that changes to the user rabbitmq
        return [find(self.kind, "rabbitmq-server", "/usr/lib/rabbitmq/bin")]

    def environment(self) -> Mapping[str, str]:
        folder, etc = str(self.folder), str(self.etc_dir)
        quiet = "-dist_listen false -start_epmd false"
        return {
            "RUNNING_UNDER_SYSTEMD": "true",  # the script execs erl: the pid is the server's
            "RABBITMQ_BASE": folder,
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": f"{etc}/rabbitmq",
            "RABBITMQ_CONFIG_FILES": f"{folder}/none",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{etc}/advanced.config",
            "RABBITMQ_NODENAME": "t@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.data_dir),
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{etc}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/gen",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
            "ERL_FLAGS": quiet,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-sname t@localhost {quiet} -erl_epmd_port {self._epmd_port} -setcookie private"
            ),
        }

    def login(
        self,
        port: int | None = None,
        *,
        user: str | None = None,
        password: str | None = None,
        client: Issued | None = None,
    ) -> None:
        """Log in; with a client's certificate by that, otherwise by the password."""
        if self._require and port is None:
            client = client or self.pki.client
        name, word = user or self.user, password or self.password
        mechanism, response = "PLAIN", f"\0{name}\0{word}"
        if client is not None:
            mechanism, response = "EXTERNAL", ""
        with self.connect(port, client=client) as connection:
            amqp_login(connection, mechanism, response)
        if port is None:
            with self.connect(self.stomp_port, client=client) as connection:
                stomp_login(connection, name, word)
