"""The health checks of the containers, run against the servers that the tests start."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.servers import PKI, RabbitMQ, Redis, Server, free_port
from tests.servers.plugin import SHARED, FreshServer
from tests.servers.process import ROOT, configuration


def health(folder: Path) -> int:
    """Run the script as the container's health check does; return its exit code."""
    return subprocess.run(
        ["sh", folder / "health.sh"], capture_output=True, check=False, timeout=30
    ).returncode


@pytest.mark.parametrize("name", SHARED)
def test_a_server_that_answers_is_healthy(name: str, request: pytest.FixtureRequest) -> None:
    """With a login over TLS."""
    server: Server = request.getfixturevalue(name)
    assert health(server.etc_dir) == 0


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("change", ["another authority", "another password", "another port"])
def test_a_server_is_not_healthy_unless_all_is_right(
    name: str, change: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """One whose certificate is not trusted, that refuses the login, or that does not answer."""
    server: Server = request.getfixturevalue(name)
    etc = str(server.etc_dir)
    for path in server.etc_dir.iterdir():
        if path.suffix == ".sh" or path.name in ("mosquitto_sub", "ca.pem"):
            text = path.read_text().replace(etc, str(tmp_path))
            if change == "another password":
                text = text.replace(server.password, server.password[::-1])
            if change == "another port":
                closed = str(free_port())
                text = text.replace(str(server.port), closed)
                text = text.replace(str(getattr(server, "stomp_port", server.port)), closed)
            if change == "another authority" and path.name == "ca.pem":
                text = server.pki.foreign_ca.read_text()
            (tmp_path / path.name).write_text(text)
    assert health(tmp_path) != 0


def test_a_server_that_is_down_is_not_healthy(fresh_server: FreshServer) -> None:
    """And is again when it is back."""
    server = fresh_server(Redis)
    server.stop()
    assert health(server.etc_dir) != 0
    server.start()
    assert health(server.etc_dir) == 0


def test_the_apps_health_check_asks_its_broker(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """By the environment and the files that its container has."""
    certificates = {
        "ca.pem": rabbitmq.pki.ca,
        "crl.pem": rabbitmq.pki.crl,
        "client.pem": rabbitmq.pki.client.cert,
        "client-key.pem": rabbitmq.pki.client.key,
    }
    configuration.install(certificates, tmp_path)
    stack = YAML(typ="safe").load(ROOT / "docker" / "docker-compose.yml")
    _, program, *arguments = stack["services"]["app"]["healthcheck"]["test"]
    environment = configuration.app(dict.fromkeys(configuration.SERVERS, rabbitmq.password))
    assert set(environment) >= {"PRAVAL_TRANSPORT", "PRAVAL_TLS_CERT_DIR"}
    for url, code in ((rabbitmq.url, 0), (rabbitmq.url_for(free_port()), 1)):
        done = subprocess.run(
            [Path(sys.executable).parent / program, *arguments],
            env={"PRAVAL_TRANSPORT": url, "PRAVAL_TLS_CERT_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == code, done.stdout + done.stderr


class Qdrant(http.server.BaseHTTPRequestHandler):
    """Answers the one request that Qdrant's health check makes, as Qdrant does."""

    def do_GET(self) -> None:
        ready = self.path == "/readyz" and self.server.ready  # type: ignore[attr-defined]
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b"all shards are ready")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def qdrant(pki: PKI) -> Iterator[http.server.HTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Qdrant)
    server.socket = pki.server_context().wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_qdrants_health_check_asks_whether_it_is_ready(
    qdrant: http.server.HTTPServer, pki: PKI, tmp_path: Path
) -> None:
    """There is no Qdrant here: something else answers as it would."""
    values = {"PORT": str(qdrant.server_port), "ETC": str(tmp_path), "GRPC_PORT": "1"}
    words = {"USER": "praval", "PASSWORD": "key", "DATA": "/data", "ADDRESS": "127.0.0.1"}
    configuration.render("qdrant", tmp_path, {**values, **words})
    (tmp_path / "ca.pem").write_bytes(pki.ca.read_bytes())
    qdrant.ready = True  # type: ignore[attr-defined]
    assert health(tmp_path) == 0
    qdrant.ready = False  # type: ignore[attr-defined]
    assert health(tmp_path) != 0
    qdrant.ready = True  # type: ignore[attr-defined]
    (tmp_path / "ca.pem").write_bytes(pki.foreign_ca.read_bytes())
    assert health(tmp_path) != 0
