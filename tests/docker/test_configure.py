"""docker/configure.py and deploy.sh: what they make, once, and never overwrite."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from praval.certs import Authority
from tests.servers.process import ROOT, configuration

BIN = Path(sys.executable).parent
SERVERS = list(configuration.SERVERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a configuration was made; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("docker")
    configuration.configure(folder, ["broker.example"])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def passwords(folder: Path) -> dict[str, str]:
    """The passwords in the app's environment, by the variable that holds them."""
    lines = (folder / "generated" / "app.env").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines)
    found = {name: value for name, value in pairs.items() if re.search("PASSWORD|KEY", name)}
    found["RABBITMQ"] = re.findall(r"//praval:(.+)@", pairs["PRAVAL_TRANSPORT"])[0]
    return found


# -- what is made ----------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS)
def test_every_file_of_a_server_is_there_and_filled(made: Path, server: str) -> None:
    """All of its templates, and its certificates; nothing is left to be filled in."""
    found = files(made / "generated" / server)
    templates = {path.name for path in (ROOT / "docker" / server).iterdir()}
    certificates = {"ca.pem", "crl.pem", "server.pem", "server-key.pem"}
    if server == "activemq":
        certificates |= {"keystore.p12", "truststore.p12"}
    assert {name for name in found if "/" not in name} == templates | certificates
    for name in templates:
        assert b"${" not in found[name]


@pytest.mark.parametrize("server", SERVERS)
def test_a_configuration_names_only_files_that_are_mounted(made: Path, server: str) -> None:
    """Whatever it names below /etc/praval is in its folder."""
    folder = made / "generated" / server
    for name, content in files(folder).items():
        for path in re.findall(rb"/etc/praval/([\w./-]+)", content):
            assert (folder / path.decode()).exists(), f"{name} names {path.decode()}"


def test_nobody_else_can_read_what_is_made(made: Path) -> None:
    """Containers read their own folder through the group; the rest is its owner's alone."""
    generated = made / "generated"
    for path in generated.rglob("*"):
        if path.parent != generated / "ca" and path != generated / "ca":
            assert mode(path) & 0o007 == 0, path
    assert mode(generated) & 0o007 == 0
    assert mode(generated / "ca") == 0o700
    for private in (generated / "app.env", generated / "ca" / "ca-key.pem", made / ".env"):
        assert mode(private) == 0o600


def test_no_container_gets_the_key_of_the_authority(made: Path) -> None:
    """It stays in a folder that nothing mounts."""
    key = (made / "generated" / "ca" / "ca-key.pem").read_bytes()
    others = {k: v for k, v in files(made / "generated").items() if not k.startswith("ca/")}
    assert all(key not in content for content in others.values())


def test_every_server_has_a_password_of_its_own(made: Path, tmp_path: Path) -> None:
    """Random, long, new each time, and in no other server's folder."""
    configuration.configure(tmp_path)
    words = [*passwords(made).values(), *passwords(tmp_path).values()]
    assert len(words) == len(set(words)) == 2 * len(SERVERS)
    assert all(len(word) >= 32 for word in words)
    for word in passwords(made).values():
        holders = {
            name.split("/")[0]
            for name, content in files(made / "generated").items()
            if word.encode() in content
        }
        assert len(holders - {"app.env"}) == 1


def test_a_certificate_is_for_the_names_of_its_server(made: Path) -> None:
    """The service's, the host's as they were given, and localhost for the health check."""
    authority = Authority.open(made / "generated" / "ca")
    for server in SERVERS:
        assert set(authority.get(server).hosts) == {
            server,
            "localhost",
            "127.0.0.1",
            "broker.example",
        }


@pytest.mark.parametrize("server", SERVERS)
def test_the_app_trusts_each_server(made: Path, server: str) -> None:
    """A handshake with the files that each side has, under the service's name."""
    folder = made / "generated"
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / server / "ca.pem")
    theirs.load_cert_chain(folder / server / "server.pem", folder / server / "server-key.pem")
    theirs.load_verify_locations(folder / server / "crl.pem")
    theirs.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    theirs.verify_mode = ssl.CERT_REQUIRED
    ours = ssl.create_default_context(cafile=folder / "app" / "ca.pem")
    ours.load_cert_chain(folder / "app" / "client.pem", folder / "app" / "client-key.pem")
    assert shake_hands(ours, theirs, server) == {
        "commonName": configuration.CLIENT,
    }


def shake_hands(ours: ssl.SSLContext, theirs: ssl.SSLContext, name: str) -> dict[str, str]:
    """Complete a handshake in memory; return the subject that the server saw."""
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(here, there, server_hostname=name)
    server = theirs.wrap_bio(there, here, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert not waiting
    certificate = server.getpeercert()
    assert certificate is not None
    return {key: value for ((key, value),) in certificate["subject"]}  # type: ignore[misc]


def test_the_app_learns_where_the_servers_are(made: Path) -> None:
    """Under the services' names, at ports with TLS, as the user that the servers know."""
    text = (made / "generated" / "app.env").read_text()
    assert re.search(r"^PRAVAL_TRANSPORT=amqps://praval:\w+@rabbitmq:5671/$", text, re.MULTILINE)
    assert "QDRANT_URL=https://qdrant:6333\n" in text
    assert "PRAVAL_TLS_CERT_DIR=/etc/praval\n" in text


@pytest.mark.parametrize("server", SERVERS)
def test_the_health_checks_pass_the_linter(made: Path, server: str) -> None:
    """Shellcheck, with what is filled in."""
    script = made / "generated" / server / "health.sh"
    done = subprocess.run(
        [BIN / "shellcheck", "--severity=warning", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# -- what is not overwritten -----------------------------------------------------------------


@pytest.mark.parametrize("there", ["generated", ".env"])
def test_a_configuration_is_never_overwritten(tmp_path: Path, there: str) -> None:
    """Neither all of it nor the half that somebody left."""
    (tmp_path / there).write_text("mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        configuration.configure(tmp_path)
    assert files(tmp_path) == {there: b"mine"}


def test_a_configuration_that_failed_half_way_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next try begins anew."""
    monkeypatch.setenv("PATH", "/nonexistent")  # no openssl
    with pytest.raises(FileNotFoundError):
        configuration.configure(tmp_path)
    assert not (tmp_path / "generated").exists()
    monkeypatch.undo()
    configuration.configure(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"generated", ".env", "home"}


def test_a_placeholder_without_a_value_is_an_error(tmp_path: Path) -> None:
    """And so is a password that a format would have to quote."""
    values = {"USER": "praval", "PASSWORD": "secret"}
    with pytest.raises(KeyError):
        configuration.render("redis", tmp_path, values)
    with pytest.raises(ValueError, match="letters"):
        configuration.render("redis", tmp_path, {**values, "PASSWORD": "it's"})


def test_renewing_replaces_certificates_and_keeps_the_rest(made: Path, tmp_path: Path) -> None:
    """Passwords and names stay, and a revoked client is on the list that servers read."""
    shutil.copytree(made, tmp_path / "docker")
    folder = tmp_path / "docker"
    before = files(folder / "generated")
    authority = Authority.open(folder / "generated" / "ca")
    authority.revoke(configuration.CLIENT)
    configuration.renew(folder)
    after = files(folder / "generated")
    changed = {name for name in after if after[name] != before.get(name) and name[:3] != "ca/"}
    expected = {f"{server}/{name}" for server in SERVERS for name in ("server.pem", "crl.pem")}
    expected |= {f"{server}/server-key.pem" for server in SERVERS}
    expected |= {"activemq/keystore.p12", "activemq/truststore.p12"}
    expected |= {f"app/{name}" for name in ("client.pem", "client-key.pem", "crl.pem")}
    expected |= {name for name in after if name.startswith("rabbitmq/crl/")}
    assert changed == expected
    assert set(after) - set(before) == set()
    (indexed,) = (name for name in after if name.startswith("rabbitmq/crl/"))
    assert after[indexed] == after["rabbitmq/crl.pem"] == authority.crl.read_bytes()
    assert "broker.example" in authority.get("redis").hosts


def test_git_ignores_what_is_made(tmp_path: Path) -> None:
    """No key and no password is ever offered to a commit."""
    shutil.copyfile(ROOT / "docker" / ".gitignore", tmp_path / ".gitignore")
    configuration.configure(tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert status.stdout == "?? .gitignore\n"


# -- deploy.sh -------------------------------------------------------------------------------

ENGINE = """\
#!/bin/sh
# Says what an engine would be told, and runs what is to run in a container here.
echo "docker $*" >>"$CALLS"
case "$1 ${2:-}" in
"info "*) echo "[name=seccomp]" ;;
"run "*)
    while [ "$1" != python ]; do shift; done
    shift 2
    exec "$PYTHON" configure.py "$@" ;;
esac
"""


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A copy of docker/ and, first on PATH, a `docker` that notes how it was called."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker", ignore=shutil.ignore_patterns("gen*"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(ENGINE)
    (tmp_path / "bin" / "docker").chmod(0o755)
    return tmp_path


def deploy(stack: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", stack / "docker" / "deploy.sh", *arguments],
        cwd=stack,
        env={
            "PATH": f"{stack / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "CALLS": str(stack / "calls"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def calls(stack: Path) -> list[str]:
    """How `docker` was called since this was asked last, the first two questions left out."""
    noted = (stack / "calls").read_text().splitlines()
    (stack / "calls").unlink()
    assert noted[0] == "docker compose version"
    assert noted[1].startswith("docker info")
    return noted[2:]


def test_deploying_configures_once_and_starts_the_services(stack: Path) -> None:
    """The second time it keeps what there is, and starts it."""
    done = deploy(stack, "rabbitmq", "app", PRAVAL_HOSTS="one.example two.example")
    assert done.returncode == 0, done.stderr
    build, configure, up, shown = calls(stack)
    assert build == "docker build --tag praval-app --file Dockerfile .."
    owner = f"{os.getuid()}:{os.getgid()}"
    assert f"--network none --user {owner} --volume {stack}/docker:/docker praval-app" in configure
    assert configure.endswith("--host one.example --host two.example")
    assert up == "docker compose up --detach --build --wait rabbitmq app"
    assert shown == "docker compose ps"
    hosts = Authority.open(stack / "docker" / "generated" / "ca").get("redis").hosts
    assert {"one.example", "two.example"} <= set(hosts)

    made = files(stack / "docker" / "generated")
    assert deploy(stack).returncode == 0
    assert calls(stack) == ["docker compose up --detach --build --wait", "docker compose ps"]
    assert files(stack / "docker" / "generated") == made


def test_deploying_says_no_secret(stack: Path) -> None:
    """Not on the terminal, and not in the command line of a container."""
    done = deploy(stack)
    said = done.stdout + done.stderr + (stack / "calls").read_text()
    assert not [word for word in passwords(stack / "docker").values() if word in said]


def test_renewing_needs_something_to_renew(stack: Path) -> None:
    """Afterwards the services are started again, to read it."""
    done = deploy(stack, "renew")
    assert done.returncode == 1
    assert "nothing" in done.stderr or "no configuration to renew" in done.stderr
    calls(stack)
    deploy(stack)
    calls(stack)
    before = files(stack / "docker" / "generated")
    assert deploy(stack, "renew").returncode == 0
    assert calls(stack)[-1] == "docker compose restart"
    after = files(stack / "docker" / "generated")
    assert after["redis/server.pem"] != before["redis/server.pem"]
    assert after["app.env"] == before["app.env"]


def test_without_an_engine_nothing_is_made(stack: Path) -> None:
    """It says what is missing."""
    (stack / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    done = deploy(stack)
    assert done.returncode == 1
    assert "compose plugin is needed" in done.stderr
    assert not (stack / "docker" / "generated").exists()


def test_what_fails_in_configuring_starts_nothing(stack: Path) -> None:
    """A configuration that cannot be made is no reason to start without one."""
    (stack / "docker" / ".env").write_text("mine")
    done = deploy(stack)
    assert done.returncode == 1
    assert "not overwritten" in done.stderr
    assert not [call for call in calls(stack) if " up " in call]
