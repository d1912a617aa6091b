"""The compose file, the Dockerfiles and the scripts: what is known of them without Docker."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.servers.process import ROOT, configuration

DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "docker-compose.yml"
BIN = Path(sys.executable).parent

STACK: dict[str, Any] = YAML(typ="safe").load(COMPOSE.read_text())
SERVICES: dict[str, dict[str, Any]] = STACK["services"]
TLS_PORTS = {
    server: {value for name, value in values.items() if name.endswith("PORT")}
    for server, values in configuration.SERVERS.items()
}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each service of the compose file."""
    return {"name": request.param, **SERVICES[request.param]}


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the compose file ------------------------------------------------------------------------


def test_the_compose_file_follows_the_compose_specification() -> None:
    """By the schema that Docker publishes."""
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_every_server_and_the_app_are_in_the_stack() -> None:
    """What is configured is what is started."""
    assert set(SERVICES) == {*configuration.SERVERS, "app"}


def test_no_published_port_speaks_plaintext(service: dict[str, Any]) -> None:
    """Each is one that the server's configuration gives to TLS, and opens to this host only."""
    for port in service.get("ports", ()):
        bind, published, target = port.rsplit(":", 2)
        assert bind == "${PRAVAL_BIND:-127.0.0.1}"
        assert published == target
        assert target in TLS_PORTS[service["name"]]


def test_no_two_services_publish_the_same_port() -> None:
    """They are on one host."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == len(set(ports)) > 6


def test_no_password_is_in_the_compose_file(service: dict[str, Any]) -> None:
    """Not as a value, and not as a default: only names of files, and what the caller has set."""
    for name, value in service.get("environment", {}).items():
        if re.search(r"PASS|SECRET|KEY|TOKEN", name):
            assert value is None or name.endswith("_FILE")
    defaults = re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE.read_text())
    assert set(defaults) == {
        ("PRAVAL_BIND", "127.0.0.1"),
        ("PRAVAL_APP", "./app"),
        ("PRAVAL_REEF", "team:reef"),
    }


def test_a_container_has_no_more_rights_than_it_needs(service: dict[str, Any]) -> None:
    """No root, no capabilities, a file system that it cannot change, and limits."""
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    if service["name"] == "qdrant":
        assert service["image"].endswith("-unprivileged")
    else:
        user = service.get("user") or user_of(dockerfile(service))
        assert int(user.split(":")[0]) > 0


def test_a_container_is_started_again_and_knows_whether_it_is_well(service: dict[str, Any]) -> None:
    """A health check for each; what depends on another waits for its health."""
    assert service["restart"] == "unless-stopped"
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    if service["name"] != "app":  # tried, like the others', in test_health.py
        assert command == ["sh", "/etc/praval/health.sh"]
    for condition in service.get("depends_on", {}).values():
        assert condition == {"condition": "service_healthy"}


def test_data_is_in_named_volumes(service: dict[str, Any]) -> None:
    """One for each, and what is mounted from the host cannot be written to."""
    binds = [volume for volume in service["volumes"] if volume.startswith((".", "$"))]
    named = [volume for volume in service["volumes"] if volume not in binds]
    assert [volume.split(":")[0] for volume in named] == [service["name"]]
    assert service["name"] in STACK["volumes"]
    assert all(volume.endswith(":ro") for volume in binds)


def test_data_is_kept_where_the_server_writes_it(service: dict[str, Any]) -> None:
    """The folder in the configuration is the one that is mounted."""
    data = configuration.SERVERS.get(service["name"], {}).get("DATA")
    if data is not None:
        assert f"{service['name']}:{data}" in service["volumes"]


def test_images_have_a_version(service: dict[str, Any]) -> None:
    """Of those that are not built here."""
    if "build" not in service:
        assert re.search(r":v?\d", service["image"])


# -- the images that are built ---------------------------------------------------------------


def dockerfile(service: dict[str, Any]) -> Path:
    build = service["build"]
    return (DOCKER / build["context"] / build["dockerfile"]).resolve()


def user_of(path: Path) -> str:
    return re.findall(r"^USER (\S+)", path.read_text(), re.MULTILINE)[-1]


DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "activemq.Dockerfile"]


def test_the_dockerfiles_are_those_that_are_built() -> None:
    """None is left over, and none is missing."""
    built = {dockerfile(service) for service in SERVICES.values() if "build" in service}
    assert built == set(DOCKERFILES)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_dockerfiles_pass_the_linter(path: Path) -> None:
    """hadolint, with no rule switched off."""
    run(BIN / "hadolint", path)


def test_the_image_is_built_of_what_it_copies(tmp_path: Path) -> None:
    """The ignore file lets through all that is copied, and that is enough to make the wheel."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if re.match(r"COPY (?!--)", line)]
    sources = [source for copied in copies for source in copied]
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line[1:] for line in ignore if line.startswith("!")] == sources
    for source in sources:
        run("cp", "-r", ROOT / source, tmp_path / source)
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", tmp_path / "wheels", tmp_path,
    )  # fmt: skip
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert fnmatch(wheel.name, "praval_asyncio-*-py3-none-any.whl")


def test_the_team_that_runs_by_default_is_a_reef() -> None:
    """The module that is mounted at /app, and the name in it that the command gives."""
    script = """
        import asyncio
        from team import reef

        async def main():
            async with reef:
                answer = await reef.request("greeter", {"type": "greeting", "name": "you"})
                print(answer.knowledge["text"])

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script)],
        cwd=DOCKER / "app",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "Hello, you.\n", done.stderr


# -- scripts ---------------------------------------------------------------------------------


SCRIPTS = sorted([DOCKER / "deploy.sh", *(ROOT / "scripts").glob("*.sh")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_pass_the_linter(path: Path) -> None:
    """Shellcheck, from its warnings up."""
    run(BIN / "shellcheck", "--severity=warning", path)
