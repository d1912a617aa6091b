"""``praval certs`` as its users run it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from praval.certs import Authority
from praval.cli.app import app

ROOT = Path(__file__).resolve().parent.parent.parent
PRAVAL = [sys.executable, "-c", "from praval.cli import main; main()"]


def praval(*arguments: str, code: int = 0, **environment: str) -> str:
    """Run `praval certs ...` in this folder; returns all it said, which holds no key."""
    result = CliRunner(env=environment).invoke(app, ["certs", *arguments])
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None)
    assert "PRIVATE" not in result.output
    for key in Path().rglob("*-key.pem"):
        assert key.read_text().splitlines()[1] not in result.output
    return result.output


def on_terminal(*arguments: str, typed: list[str | signal.Signals]) -> tuple[int, str]:
    """Run `praval certs ...` on a terminal; answer each of its questions, or send a signal."""
    leader, follower = pty.openpty()
    running = subprocess.Popen(
        [*PRAVAL, "certs", *arguments],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    try:
        said = [_until_question(leader)]
        for answer in typed:
            if isinstance(answer, str):
                os.write(leader, answer.encode() + b"\n")
            else:
                running.send_signal(answer)
            said.append(_until_question(leader))
        return running.wait(10), "".join(said)
    finally:
        os.close(leader)
        running.kill()
        running.wait()


def _until_question(leader: int) -> str:
    said = b""
    while not said.endswith(b": "):
        assert select.select([leader], [], [], 30)[0], said
        try:
            said += os.read(leader, 1000)
        except OSError:  # the other side has ended
            break
    return said.decode()


# -- the way of a certificate ------------------------------------------------------------------


def test_a_set_is_made_shown_and_revoked() -> None:
    """From nothing to a revoked server, in the folder certs/ of where one is."""
    said = praval("init", "--name", "Team CA")
    assert "made Team CA, until 20" in said
    assert "certs/ca-key.pem  its key: copy it nowhere" in said
    said = praval("issue", "rabbitmq", "--host", "localhost", "--host", "127.0.0.1")
    assert "issued rabbitmq (server) for localhost, 127.0.0.1, until 20" in said
    praval("issue", "praval", "--client", "--days", "90")
    praval("issue", "node", "--client", "--server", "--host", "node")
    authority = Authority.open("certs")
    assert [each.kind for each in authority.issued()] == ["server", "client", "both"]
    assert praval("revoke", "rabbitmq").startswith("revoked rabbitmq (server) for localhost, 127")
    rows = [re.split(r" {2,}", line.strip()) for line in praval("show").splitlines()]
    serials = [f"{each.serial:040x}"[:8] for each in authority.issued()]
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert rows == [
        ["Team CA in certs, ends in 3650 days"],
        ["name", "kind", "hosts", "serial", "expires", "state"],
        [
            "rabbitmq",
            "server",
            "localhost, 127.0.0.1",
            serials[0],
            "in 365 days",
            f"revoked {today}",
        ],
        ["praval", "client", serials[1], "in 90 days", "valid"],
        ["node", "both", "node", serials[2], "in 365 days", "valid"],
    ]


def test_a_serial_number_can_be_given_as_any_command_shows_it() -> None:
    """The beginning that the table shows, the whole, and OpenSSL's way of writing."""
    praval("init")
    for name in ("a", "b", "c"):
        praval("issue", name, "--client")
    one, two, three = (f"{each.serial:040x}" for each in Authority.open("certs").issued())
    colons = ":".join(re.findall("..", three.upper()))
    for name, digits in (("a", one[:8]), ("b", two), ("c", colons)):
        assert f"revoked {name} (client)" in praval("revoke", digits)
    assert "neither the name" in praval("revoke", one[:7], code=2)
    assert "neither the name" in praval("revoke", "0" * 40, code=2)


def test_show_tells_all_of_one_name() -> None:
    """Where the files are, the whole serial number, and the certificates before it."""
    praval("init")
    praval("issue", "broker", "--host", "localhost")
    praval("issue", "broker", "--host", "localhost", "--force")
    said = praval("show", "broker")
    older, newer = Authority.open("certs").issued()
    assert f"{older.serial:040x}" in said
    assert f"{newer.serial:040x}" in said
    assert said.count("valid, replaced") == 1
    assert said.count("certs/broker-key.pem") == 1
    assert "There are: broker" in praval("show", "brocker", code=2)


def test_show_tells_what_is_going_to_expire() -> None:
    """Certificates and CA within 30 days, the list within 7; not what is of no use any more."""
    authority = Authority.create("certs", days=20)
    past = datetime.now(UTC) - timedelta(days=3)
    authority.issue("soon", kind="client", days=5)
    authority.issue("replaced", kind="client", days=6)
    authority.issue("replaced", kind="client", days=19, force=True)
    authority.issue("gone", kind="client", not_before=past, days=1)
    authority.issue("lost", kind="client", days=7)
    authority.revoke("lost")
    authority.refresh_crl(days=1.5)
    lines = praval("show").splitlines()
    remarks = [line for line in lines if line.endswith((".", "refresh"))]
    assert remarks == [
        "soon expires in 5 days: issue it again (--force).",
        "replaced expires in 19 days: issue it again (--force).",
        "The CA ends in 20 days: make a new one in another folder.",
        "The revocation list ends in 36 h, after which whoever checks it refuses everybody: "
        "praval certs refresh",
    ]
    (gone,) = (line for line in lines if line.startswith("gone"))
    assert re.search(r"2 days ago +expired", gone)
    assert "signed certs/crl.pem, until 20" in praval("refresh")
    assert "revocation list" not in praval("show")


def test_show_of_an_authority_without_certificates() -> None:
    """It says so, instead of a table of nothing."""
    praval("init", "--dir", "elsewhere")
    assert "Nothing was issued yet." in praval("show", "--dir", "elsewhere")


def test_stores_for_java_are_written_with_the_password_of_the_environment() -> None:
    """On the command line it could be seen by everybody on the host."""
    praval("init")
    praval("issue", "activemq", "--host", "localhost")
    said = praval("java", "activemq", PRAVAL_STORE_PASSWORD="s3cret-word")
    assert said.splitlines() == [
        "wrote certs/activemq.p12", "wrote certs/activemq-truststore.p12",
    ]  # fmt: skip
    assert "Set PRAVAL_STORE_PASSWORD" in praval("java", "activemq", code=2)
    assert "No certificate was issued" in praval("java", "artemis", code=2)


# -- the passphrase ----------------------------------------------------------------------------


def test_the_passphrase_comes_from_the_environment() -> None:
    """Without it, and without a terminal, nothing is signed; looking needs none."""
    assert "its key, encrypted" in praval("init", PRAVAL_CA_PASSPHRASE="correct horse")
    praval("issue", "praval", "--client", PRAVAL_CA_PASSPHRASE="correct horse")
    for command in (["issue", "x", "--client"], ["revoke", "praval"], ["refresh"]):
        assert "Set PRAVAL_CA_PASSPHRASE" in praval(*command, code=2)
        said = praval(*command, code=2, PRAVAL_CA_PASSPHRASE="wrong battery")
        assert "the passphrase is wrong" in said
        assert "battery" not in said
    assert "valid" in praval("show")


def test_the_passphrase_is_asked_for_on_a_terminal_and_not_shown() -> None:
    """Twice when it is set, once when it is used."""
    code, said = on_terminal("init", "--passphrase", typed=["correct horse", "correct horse"])
    assert (code, "horse" in said) == (0, False), said
    assert Authority.open("certs").needs_passphrase
    code, said = on_terminal("issue", "praval", "--client", typed=["correct horse"])
    assert (code, "horse" in said) == (0, False), said
    code, said = on_terminal("refresh", typed=["wrong"])
    assert (code, "the passphrase is wrong" in said) == (2, True), said


def test_two_passphrases_that_differ_make_no_authority() -> None:
    """A slip of the hand would lock the authority for ever."""
    code, said = on_terminal("init", "--passphrase", typed=["correct horse", "corect horse"])
    assert (code, "The two differ" in said) == (2, True), said
    assert not Path("certs").exists()


def test_an_interrupt_at_the_question_ends_the_command() -> None:
    """With the exit code of an interrupted command, and nothing made."""
    code, said = on_terminal("init", "--passphrase", typed=[signal.SIGINT])
    assert (code, "Traceback" in said) == (130, False), said
    assert not Path("certs").exists()


# -- exit codes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["issue", "x", "--client"], "praval certs init --dir certs"),
        (["show"], "praval certs init --dir certs"),
        (["revoke", "x"], "praval certs init --dir certs"),
        (["init", "--days", "0"], "days is 0"),
        (["init", "--days", "many"], "Invalid value for '--days'"),
        (["init", "--nonsense"], "No such option"),
        (["issue"], "Missing argument"),
    ],
)
def test_what_is_impossible_ends_with_2(command: list[str], why: str) -> None:
    """Nothing is made, and the message says what to do."""
    assert why in praval(*command, code=2)
    assert not Path("certs").exists()


def test_what_fails_on_the_way_ends_with_1() -> None:
    """A disk, not a wish, is the reason."""
    praval("init")
    Path("certs/index.json").write_text("{")
    assert "is damaged" in praval("issue", "x", "--client", code=1)


def test_the_command_runs_as_a_process() -> None:
    """The console script reaches the group, and errors go to stderr alone."""
    done = subprocess.run([*PRAVAL, "certs", "show"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("praval certs: There is no certificate authority in certs.")


# -- what is delivered -------------------------------------------------------------------------


def test_the_commands_of_the_readme_make_a_set(tmp_path: Path) -> None:
    """certs/README.md is right: a certificate for each server, a client, stores for Java."""
    text = (ROOT / "certs" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    command = tmp_path / "praval"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{PRAVAL[2]}' \"$@\"\n")
    command.chmod(0o700)
    done = subprocess.run(
        ["sh", "-e"], input="\n".join(blocks), text=True, capture_output=True, check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    authority = Authority.open("certs")
    assert {each.state for each in authority.issued()} == {"valid"}
    servers = {path.name for path in (ROOT / "docker").iterdir() if path.is_dir()}
    names = {each.name for each in authority.issued()}
    assert servers & {"rabbitmq", "mosquitto", "activemq", "redis", "postgres", "qdrant"} <= names
    assert "praval" in names
    assert (authority.folder / "activemq-truststore.p12").exists()


def test_a_source_distribution_holds_no_key(tmp_path: Path) -> None:
    """What lies in certs/ of a developer does not travel with the sources."""
    tree = tmp_path / "tree"
    for name in ("pyproject.toml", ".gitignore", "README.md", "LICENSE", "certs/README.md",
                 "certs/.gitignore", "praval/__init__.py"):  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    certs = tree / "certs"
    certs.chmod(0o700)
    praval("init", "--dir", str(certs))
    praval("issue", "praval", "--client", "--dir", str(certs))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {name for name in names if name.startswith("certs/")} == {"certs/README.md"} | (
        {"certs/.gitignore"} & names
    )
    assert "praval/__init__.py" in names
