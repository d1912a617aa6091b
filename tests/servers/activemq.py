"""ActiveMQ Classic: STOMP over TLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from praval.certs import Issued
from tests.servers.machine import find, free_port, require
from tests.servers.pki import PKI
from tests.servers.process import Server
from tests.servers.wire import stomp_login

JARS = """
    activemq-broker activemq-client activemq-console activemq-openwire-legacy activemq-stomp
    activemq-spring activemq-jaas activemq-kahadb-store activemq-protobuf hawtbuf
    geronimo-jms_1.1_spec geronimo-j2ee-management-1.1-spec slf4j-api slf4j-log4j12 log4j-1.2
    commons-logging spring3-beans spring3-core spring3-context spring3-expression spring3-aop
    xbean-spring
"""

LOGGING = """\
log4j.rootLogger=INFO, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %-5p %c - %m%n
"""


class ActiveMQ(Server):
    """An ActiveMQ Classic broker: `port` takes passwords, `mutual_port` a certificate as well."""

    kind = "activemq"
    scheme = "stomp+ssl"

    def __init__(
        self, folder: Path | None = None, *, durable: bool = False, pki: PKI | None = None
    ) -> None:
        super().__init__(folder, durable=durable, pki=pki)
        self.mutual_port = free_port()

    @property
    def stomp_port(self) -> int:
        return self.port

    def values(self) -> Mapping[str, str]:
        return {
            "MUTUAL_PORT": str(self.mutual_port),
            "PERSISTENCE": str(self.durable).lower(),
        }

    def prepare(self) -> None:
        # Debian's build logs through log4j 1.2, the container's through a newer one
        (self.etc_dir / "log4j.properties").write_text(LOGGING)
        self.own()

    def command(self) -> list[str]:
        jars = [require(self.kind, f"/usr/share/java/{jar}.jar") for jar in JARS.split()]
        return [
            find(self.kind, "java"),
            "-Xms64m",
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xshare:auto",
            f"-Djava.io.tmpdir={self.folder}/tmp",
            f"-Dlog4j.configuration=file:{self.etc_dir}/log4j.properties",
            "-cp",
            ":".join(jars),
            "org.apache.activemq.console.Main",
            "start",
            f"xbean:file:{self.etc_dir}/activemq.xml",
        ]

    def login(
        self, port: int | None = None, *, password: str | None = None, client: Issued | None = None
    ) -> None:
        with self.connect(port, client=client) as connection:
            stomp_login(connection, self.user, password or self.password)
