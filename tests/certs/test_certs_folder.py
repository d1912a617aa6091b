"""The authority's folder: modes, crashes, full disks, two processes at once, damage."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from praval.certs import Authority, folder
from praval.errors import CertificateError, CertificateFolderError

CALLS = ("open", "fsync", "rename", "unlink")
"""What a change does to the disk, by functions of `os`."""

# A copy of the folder for each call that the change makes; a child is killed at that call.
CRASHING = """
import os, shutil, signal, sys
from pathlib import Path
from praval.certs import Authority

calls, change, start, target = sys.argv[1].split(), sys.argv[2], Path(sys.argv[3]), sys.argv[4]

def crash_at(step):
    made = 0
    for name in calls:
        def dying(*arguments, real=getattr(os, name), **options):
            nonlocal made
            made += 1
            if made == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        setattr(os, name, dying)

step, killed = 0, True
while killed:
    step += 1
    here = Path(target, f"{step:03d}")
    if start.exists():
        shutil.copytree(start, here)
    child = os.fork()
    if not child:
        crash_at(step)
        exec(change)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""


def crashed(change: str, start: Path, target: Path) -> list[Path]:
    """Make a change as often as it makes calls, killed at another call each time.

    Returns the folders as they were left; the last one saw no crash.
    """
    command = [sys.executable, "-c", CRASHING, " ".join(CALLS), change, str(start), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    left = [target / f"{step:03d}" for step in range(1, len(list(target.iterdir())) + 1)]
    assert len(left) > 10
    return left


def whole(authority: Authority) -> None:
    """Check that files and index tell the same, and nothing else is there."""
    issued = authority.issued()
    expected = {"ca.pem", "ca-key.pem", "crl.pem", "index.json", ".gitignore"}
    for each in issued:
        expected |= {each.cert.name, each.key.name}
        if not each.replaced:
            cert = x509.load_pem_x509_certificate(each.cert.read_bytes())
            key = load_pem_private_key(each.key.read_bytes(), None)
            assert cert.serial_number == each.serial
            assert cert.public_key() == key.public_key()
    assert set(os.listdir(authority.folder)) == expected
    for path in authority.folder.glob("*-key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    crl = x509.load_pem_x509_crl(authority.crl.read_bytes())
    assert {each.serial_number for each in crl} == {
        each.serial for each in issued if each.state == "revoked"
    }


# -- modes -------------------------------------------------------------------------------------


def test_only_the_owner_can_enter_the_folder_and_read_keys(
    authority: Authority,
) -> None:
    """0700 and 0600, whatever the umask allows; certificates are no secret."""
    before = os.umask(0)
    try:
        made = Authority.create(authority.folder.parent / "open")
        issued = made.issue("broker", hosts=["localhost"])
        stores = made.java_stores("broker", "s3cret-word")
    finally:
        os.umask(before)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (made.folder, made.ca_key, issued.key, *stores, made.ca_cert, issued.cert)
    }
    assert modes == {
        "open": 0o700, "ca-key.pem": 0o600, "broker-key.pem": 0o600, "broker.p12": 0o600,
        "broker-truststore.p12": 0o600, "ca.pem": 0o644, "broker.pem": 0o644,
    }  # fmt: skip


def test_a_folder_as_git_checks_it_out_is_taken_and_closed(tmp_path: Path) -> None:
    """Where nothing but README.md and .gitignore lies, nobody else's files are shut away."""
    place = tmp_path / "certs"
    place.mkdir(mode=0o755)
    (place / "README.md").write_text("what this is for")
    (place / ".gitignore").write_text("*")
    Authority.create(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert (place / ".gitignore").read_text() == "*"


def test_a_new_folder_keeps_itself_out_of_git(authority: Authority) -> None:
    """A key must not be committed by accident, wherever the folder is."""
    assert "*" in (authority.folder / ".gitignore").read_text().splitlines()


def test_a_folder_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Keys do not go where others may enter, and a folder with files is not closed for them."""
    place = tmp_path / "shared"
    place.mkdir(mode=0o755)
    (place / "somebody's").write_text("file")
    with pytest.raises(CertificateError, match="chmod 700"):
        Authority.create(place)
    assert os.listdir(place) == ["somebody's"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o755


def test_an_opened_folder_or_key_is_refused_for_signing(authority: Authority) -> None:
    """Somebody may have read the key meanwhile: the message says what to do."""
    authority.folder.chmod(0o750)
    with pytest.raises(CertificateError, match=r"Others may enter .*chmod 700"):
        authority.issue("broker", hosts=["localhost"])
    authority.folder.chmod(0o700)
    authority.ca_key.chmod(0o640)
    with pytest.raises(CertificateError, match=r"ca-key\.pem .*open to others .*chmod 600"):
        authority.refresh_crl()
    authority.ca_key.chmod(0o600)
    authority.refresh_crl()
    whole(authority)


def test_files_that_are_not_the_authoritys_are_never_replaced(authority: Authority) -> None:
    """A key that somebody put there stays, even where only a dangling link has the name."""
    (authority.folder / "mine-key.pem").write_text("precious")
    (authority.folder / "linked.pem").symlink_to("/nonexistent/target")
    for name in ("mine", "linked"):
        with pytest.raises(CertificateError, match="in the way"):
            authority.issue(name, hosts=["localhost"])
    assert (authority.folder / "mine-key.pem").read_text() == "precious"
    assert authority.issued() == []


# -- crashes -----------------------------------------------------------------------------------


def test_a_crash_while_the_authority_is_made_leaves_none_or_all_of_it(tmp_path: Path) -> None:
    """Killed at any call to the disk: there is none, and one can be made, or it works."""
    (tmp_path / "left").mkdir()
    none = 0
    for place in crashed("Authority.create(here)", tmp_path / "nothing", tmp_path / "left"):
        try:
            authority = Authority.open(place)
        except CertificateError as error:
            assert "praval certs init" in str(error)  # noqa: PT017 - not all of them raise
            authority = Authority.create(place)
            none += 1
        authority.issue("broker", hosts=["localhost"])
        whole(authority)
    assert none > 5


@pytest.mark.parametrize("force", [False, True])
def test_a_crash_while_issuing_leaves_the_old_or_the_new(
    authority: Authority, tmp_path: Path, force: bool
) -> None:
    """Killed at any call, key, certificate and index belong together afterwards."""
    if force:
        authority.issue("broker", hosts=["localhost"])
    (tmp_path / "left").mkdir()
    change = f"Authority.open(here).issue('broker', hosts=['localhost'], force={force})"
    counts = []
    for place in crashed(change, authority.folder, tmp_path / "left"):
        left = Authority.open(place)
        counts.append(len(left.issued()))
        whole(left)
        left.issue("broker", hosts=["localhost"], force=True)
        whole(left)
    assert counts == sorted(counts)
    assert set(counts) == {force, force + 1}


def test_a_crash_while_revoking_leaves_index_and_list_agreed(
    authority: Authority, tmp_path: Path
) -> None:
    """What the index calls revoked is on the list, and nothing else."""
    authority.issue("broker", hosts=["localhost"])
    (tmp_path / "left").mkdir()
    states = set()
    for place in crashed(
        "Authority.open(here).revoke('broker')", authority.folder, tmp_path / "left"
    ):
        left = Authority.open(place)
        states.add(left.get("broker").state)
        whole(left)
    assert states == {"valid", "revoked"}


@pytest.mark.parametrize("call", CALLS[:3])
def test_a_full_disk_is_reported_and_leaves_nothing_half_done(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whichever call fails, the change is made or not, and the next one works."""
    real: Callable[..., object] = getattr(os, call)
    failures = 0
    for step in range(1, 100):
        made = 0

        def failing(*arguments: object, **options: object) -> object:
            nonlocal made
            made += 1
            if made == step:  # noqa: B023 - called within this turn only
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            try:
                authority.issue(f"n{step}", hosts=["localhost"])
            except CertificateFolderError as error:
                failures += 1
                assert "No space left on device" in str(error)  # noqa: PT017 - the last step passes
            else:
                break
        whole(authority)
    assert failures > 2
    assert authority.get(f"n{step}").state == "valid"


# -- several at once ---------------------------------------------------------------------------


def test_authorities_on_one_folder_take_turns(authority: Authority) -> None:
    """What several issue at the same time is all in the index, and one name is issued once."""

    def issue(number: int) -> int:
        mine = Authority.open(authority.folder)
        mine.issue(f"n{number}", kind="client")
        mine.refresh_crl()
        try:
            mine.issue("same", kind="client")
        except CertificateError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(issue, range(8))) == 1
    assert {each.name for each in authority.issued()} == {"same", *(f"n{n}" for n in range(8))}
    crl = x509.load_pem_x509_crl(authority.crl.read_bytes())
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 9
    whole(authority)


def test_a_folder_that_stays_busy_is_given_up(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the folder for long stops nobody for ever; reading needs no turn."""
    monkeypatch.setattr(folder, "LOCK_PATIENCE", 0.05)
    held = os.open(authority.folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CertificateFolderError, match="Another process"):
            authority.issue("broker", hosts=["localhost"])
        assert authority.issued() == []
    finally:
        os.close(held)
    authority.issue("broker", hosts=["localhost"])


# -- what is not as it should be ---------------------------------------------------------------


def test_a_folder_without_an_authority_is_told_from_a_broken_one(tmp_path: Path) -> None:
    """Nothing there, or a file: make one; an index that cannot be read: not touched."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty"):
        with pytest.raises(
            CertificateError, match=r"no certificate authority in .*praval certs init"
        ):
            Authority.open(tmp_path / name)
    assert not (tmp_path / "missing").exists()
    for name in ("file", "file/below"):
        with pytest.raises(CertificateFolderError, match="cannot be used"):
            Authority.create(tmp_path / name)


@pytest.mark.parametrize("index", [b"", b"{", b"[]", b'{"version": 2}', b'{"colour": "red"}'])
def test_an_index_that_cannot_be_read_is_reported(authority: Authority, index: bytes) -> None:
    """Damaged, or of a newer version: nothing is issued over it, and nothing is lost."""
    (authority.folder / "index.json").write_bytes(index)
    with pytest.raises(CertificateFolderError, match=r"index\.json is damaged, or of another"):
        Authority.open(authority.folder)
    with pytest.raises(CertificateFolderError, match="damaged"):
        authority.issue("broker", hosts=["localhost"])
    with pytest.raises(CertificateError, match="already"):
        Authority.create(authority.folder)
    assert (authority.folder / "index.json").read_bytes() == index


def test_a_key_that_is_gone_damaged_or_of_another_authority_signs_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    """The message names the file and never quotes it."""
    key = authority.ca_key.read_text()
    secret = key.splitlines()[1]
    other = Authority.create(tmp_path / "other")
    for content, why in (
        (None, "cannot be read: .*No such file"),
        (key[:60], "cannot be read: it is damaged"),
        (other.ca_key.read_text(), r"is not the key of .*ca\.pem"),
        ((tmp_path / "rsa.pem"), "is none of Praval's"),
    ):
        authority.ca_key.unlink(missing_ok=True)
        if isinstance(content, Path):
            command = ["openssl", "genrsa", "-out", authority.ca_key, "2048"]
            subprocess.run(command, check=True, capture_output=True)
        elif content is not None:
            authority.ca_key.write_text(content)
            authority.ca_key.chmod(0o600)
        with pytest.raises(CertificateError, match=why) as caught:
            authority.issue("broker", hosts=["localhost"])
        assert secret not in str(caught.value)
        assert authority.issued() == []


def test_an_authority_is_never_made_over_another(authority: Authority) -> None:
    """Everything it signed would be worth nothing."""
    before = authority.ca_cert.read_bytes()
    for remove in ((), ("index.json",)):
        for name in remove:
            (authority.folder / name).unlink()
        with pytest.raises(CertificateError, match="already"):
            Authority.create(authority.folder)
    assert authority.ca_cert.read_bytes() == before


def test_a_folder_can_be_moved(authority: Authority, tmp_path: Path) -> None:
    """Nothing in it knows where it is."""
    authority.issue("broker", hosts=["localhost"])
    shutil.move(authority.folder, tmp_path / "elsewhere")
    moved = Authority.open(tmp_path / "elsewhere")
    assert moved.get("broker").cert == tmp_path / "elsewhere" / "broker.pem"
    whole(moved)
