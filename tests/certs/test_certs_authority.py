"""Issuing and revoking: what is asked for, what is refused, and why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from praval.certs import Authority
from praval.errors import CertificateError, CertificateFolderError, PravalError

HOSTS = ["localhost"]


def refuses(call: Callable[[], object], why: str) -> None:
    """Check that the call is refused for that reason."""
    with pytest.raises(CertificateError, match=why) as caught:
        call()
    assert not isinstance(caught.value, CertificateFolderError)


def crl_of(authority: Authority) -> x509.CertificateRevocationList:
    """Read the revocation list."""
    return x509.load_pem_x509_crl(authority.crl.read_bytes())


def crl_number(authority: Authority) -> int:
    """Read the number of the revocation list."""
    return crl_of(authority).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


# -- issuing -----------------------------------------------------------------------------------


def test_what_is_issued_is_what_is_told(authority: Authority) -> None:
    """The index tells of a certificate what is in it."""
    issued = authority.issue("broker", hosts=["LOCALHOST", "127.0.0.1", "localhost"], kind="both")
    assert authority.issued() == [issued]
    assert (issued.name, issued.kind, issued.hosts) == (
        "broker",
        "both",
        ("localhost", "127.0.0.1"),
    )
    assert (issued.state, issued.replaced) == ("valid", False)
    text = issued.cert.read_bytes()
    assert text.count(b"BEGIN CERTIFICATE") == 1  # the leaf, and nothing else
    cert = x509.load_pem_x509_certificate(text)
    assert cert.serial_number == issued.serial
    assert (cert.not_valid_before_utc, cert.not_valid_after_utc) == (
        issued.not_before, issued.not_after,
    )  # fmt: skip
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_a_certificate_is_valid_at_once_for_as_long_as_asked(authority: Authority) -> None:
    """It began five minutes ago, for hosts whose clocks are behind, and ends as asked."""
    before = datetime.now(UTC)
    issued = authority.issue("broker", hosts=HOSTS, days=2)
    after = datetime.now(UTC)
    before -= timedelta(seconds=1)  # certificates hold whole seconds
    assert before <= issued.not_before + timedelta(minutes=5) <= after
    assert before <= issued.not_after - timedelta(days=2) <= after


def test_a_certificate_that_has_expired_can_be_issued(authority: Authority) -> None:
    """For tests: it began in the past, exactly then, and its days are over."""
    start = datetime(2020, 1, 1, 12, tzinfo=UTC)
    issued = authority.issue("broker", hosts=HOSTS, not_before=start, days=1)
    assert (issued.state, issued.not_before) == ("expired", start)
    assert issued.not_after == start + timedelta(days=1)


def test_a_name_is_free_again_when_its_certificate_has_expired_or_is_revoked(
    authority: Authority,
) -> None:
    """A valid one is replaced by force only, and all stay known."""
    past = datetime.now(UTC) - timedelta(days=3)
    authority.issue("broker", hosts=HOSTS, not_before=past, days=1)
    second = authority.issue("broker", hosts=HOSTS)
    refuses(lambda: authority.issue("broker", hosts=HOSTS), "valid until .*--force")
    assert second.cert.exists()
    authority.revoke("broker")
    authority.issue("broker", hosts=HOSTS)
    newest = authority.issue("broker", hosts=HOSTS, force=True)
    states = [(each.state, each.replaced) for each in authority.issued()]
    assert states == [
        ("revoked", True), ("revoked", True), ("valid", True), ("valid", False),
    ]  # fmt: skip
    assert authority.get("broker") == newest


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "/etc/x", "-x", ".x", "a b", "a\n", "a\0", "ä", "x" * 65,
     "ca", "CA", "crl", "index", "x-key", "x-truststore"],
)  # fmt: skip
def test_a_name_that_no_file_should_have_is_refused(authority: Authority, name: str) -> None:
    """Separators, leading dots and dashes, the authority's own files, other names' files."""
    refuses(lambda: authority.issue(name, hosts=HOSTS), "cannot name a certificate")
    assert authority.issued() == []


def test_names_that_some_disks_do_not_tell_apart_are_refused(authority: Authority) -> None:
    """Or the second would take the first one's files, on a disk that ignores case."""
    authority.issue("broker", hosts=HOSTS)
    refuses(lambda: authority.issue("Broker", hosts=HOSTS), "nothing but case")


def test_the_name_of_the_authority_is_no_name_for_a_leaf(tmp_path: Path) -> None:
    """A certificate whose subject is its issuer would be taken for self-signed."""
    authority = Authority.create(tmp_path / "certs", "broker")
    refuses(lambda: authority.issue("broker", hosts=HOSTS), "is the name of the CA")


@pytest.mark.parametrize(
    "host",
    ["", " ", "localhost:5671", "amqps://localhost", "a..b", ".a", "a.", "-a", "a-", "*", "*.org",
     "a.*.org", "x" * 64, "a." * 127 + "org", "127.0.0.300", "10.0.0.0/8", "[::1]", "fe80::1%eth0",
     "bücher.example", "a b", "a\n", "a,b", "DNS:a"],
)  # fmt: skip
def test_a_host_that_is_none_is_refused(authority: Authority, host: str) -> None:
    """Ports, schemes, masks, broken addresses, and names that are not in ASCII."""
    refuses(lambda: authority.issue("broker", hosts=["localhost", host]), "is no host")
    assert authority.issued() == []


def test_a_server_needs_a_host_and_a_client_none(authority: Authority) -> None:
    """Nobody looks at the common name of a server any more."""
    refuses(lambda: authority.issue("broker"), "name the hosts")
    refuses(lambda: authority.issue("broker", kind="both"), "name the hosts")
    refuses(lambda: authority.issue("broker", hosts="localhost"), "must be a list")
    assert authority.issue("praval", kind="client").hosts == ()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "peer"}, "kind is 'peer'"),
    ({"days": 0}, "days is 0"),
    ({"days": -1}, "days is -1"),
    ({"days": float("nan")}, "days is nan"),
    ({"days": float("inf")}, "days is inf"),
    ({"days": 4000}, "The CA's certificate ends on"),
    ({"not_before": datetime(2026, 1, 1)}, "no time zone"),
    ({"not_before": datetime(1949, 1, 1, tzinfo=UTC)}, "no certificate can begin then"),
    ({"not_before": datetime(9999, 1, 1, tzinfo=UTC)}, "no certificate can begin then"),
]


@pytest.mark.parametrize(("wanted", "why"), WRONG, ids=[why for _, why in WRONG])
def test_times_and_kinds_that_cannot_be_are_refused(
    authority: Authority, wanted: dict[str, Any], why: str
) -> None:
    """Nothing is written for what cannot be issued."""
    before = sorted(authority.folder.iterdir())
    refuses(lambda: authority.issue("broker", hosts=HOSTS, **wanted), why)
    assert sorted(authority.folder.iterdir()) == before


# -- the authority -----------------------------------------------------------------------------


def test_an_authority_has_a_name_and_an_end(tmp_path: Path) -> None:
    """Both are in its certificate."""
    authority = Authority.create(tmp_path / "certs", "Überseehafen, CN=x", days=10)
    assert authority.name == "Überseehafen, CN=x"
    assert timedelta(days=9) < authority.expires - datetime.now(UTC) <= timedelta(days=10)
    assert repr(authority) == f"<Authority in {tmp_path / 'certs'}>"


@pytest.mark.parametrize(
    ("wanted", "why"),
    [({"name": ""}, "cannot name an authority"), ({"name": " "}, "cannot name an authority"),
     ({"name": "a\nb"}, "cannot name an authority"), ({"name": "ä" * 33}, "cannot name an"),
     ({"days": 0}, "days is 0"), ({"days": 40_000}, "days is 40000"),
     ({"passphrase": ""}, "passphrase must have"), ({"passphrase": "x" * 1024}, "passphrase must")],
)  # fmt: skip
def test_an_authority_that_cannot_be_leaves_no_folder(
    tmp_path: Path, wanted: dict[str, Any], why: str
) -> None:
    """What is asked for is checked before anything is made."""
    refuses(lambda: Authority.create(tmp_path / "certs", **wanted), why)
    assert not (tmp_path / "certs").exists()


def test_an_encrypted_key_signs_with_its_passphrase_only(tmp_path: Path) -> None:
    """Reading needs none; the passphrase is in no message and no repr."""
    authority = Authority.create(tmp_path / "certs", passphrase="correct horse")
    assert authority.needs_passphrase
    assert b"ENCRYPTED" in authority.ca_key.read_bytes()
    authority.issue("broker", hosts=HOSTS)
    for wrong, why in (
        (None, "is encrypted: it needs its passphrase"), ("", "needs its passphrase"),
        ("wrong battery", "the passphrase is wrong"),
    ):  # fmt: skip
        other = Authority.open(tmp_path / "certs", passphrase=wrong)
        assert [each.name for each in other.issued()] == ["broker"]
        with pytest.raises(CertificateError, match=why) as caught:
            other.revoke("broker")
        assert not wrong or wrong not in str(caught.value)
        assert other.get("broker").state == "valid"
    opened = Authority.open(tmp_path / "certs", passphrase="correct horse")
    assert "correct" not in repr(vars(opened)["_folder"]) + repr(opened)
    opened.revoke("broker")


def test_a_passphrase_that_is_not_needed_is_not_used(authority: Authority) -> None:
    """The environment may hold one for another authority."""
    opened = Authority.open(authority.folder, passphrase="of another")
    assert not opened.needs_passphrase
    opened.issue("broker", hosts=HOSTS)


# -- revoking ----------------------------------------------------------------------------------


def test_a_name_is_revoked_with_all_its_certificates_a_serial_alone(authority: Authority) -> None:
    """Whoever says the name means that nobody is to be believed under it."""
    old = authority.issue("broker", hosts=HOSTS)
    authority.issue("broker", hosts=HOSTS, force=True)
    authority.issue("other", hosts=HOSTS)
    assert [each.serial for each in authority.revoke(old.serial)] == [old.serial]
    assert [each.state for each in authority.issued()] == ["revoked", "valid", "valid"]
    (newer,) = authority.revoke("broker")
    assert newer.state == "revoked"
    assert [each.state for each in authority.issued()] == ["revoked", "revoked", "valid"]
    assert {each.serial_number for each in crl_of(authority)} == {old.serial, newer.serial}


def test_what_is_unknown_or_revoked_already_is_not_revoked(authority: Authority) -> None:
    """The list is not signed again for nothing."""
    authority.issue("broker", hosts=HOSTS)
    authority.revoke("broker")
    number = crl_number(authority)
    refuses(lambda: authority.revoke("broker"), "revoked already")
    refuses(lambda: authority.revoke("brocker"), "No certificate was issued for 'brocker'")
    refuses(lambda: authority.revoke(0xABC), "serial number abc")
    refuses(lambda: authority.get("brocker"), "'brocker'. There are: broker")
    assert crl_number(authority) == number


def test_the_number_of_the_list_grows_and_the_list_stays(authority: Authority) -> None:
    """A peer can tell the newer list, and what was revoked remains so."""
    issued = authority.issue("broker", hosts=HOSTS)
    assert crl_number(authority) == 1
    authority.revoke("broker")
    assert crl_number(authority) == 2
    authority.refresh_crl(days=3)
    assert crl_number(authority) == 3
    crl = crl_of(authority)
    assert [each.serial_number for each in crl] == [issued.serial]
    assert crl.next_update_utc == authority.crl_expires
    ca = x509.load_pem_x509_certificate(authority.ca_cert.read_bytes())
    signer = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert signer.key_identifier == own.digest
    assert timedelta(days=2) < authority.crl_expires - datetime.now(UTC) <= timedelta(days=3)
    refuses(lambda: authority.refresh_crl(days=0), "days is 0")


# -- stores ------------------------------------------------------------------------------------


def test_a_pkcs12_file_holds_what_was_issued(authority: Authority) -> None:
    """Key, certificate and CA, under the name."""
    issued = authority.issue("activemq", hosts=HOSTS)
    loaded = pkcs12.load_pkcs12(issued.pkcs12("s3cret-word"), b"s3cret-word")
    assert loaded.cert is not None
    assert loaded.key is not None
    assert loaded.cert.friendly_name == b"activemq"
    assert loaded.cert.certificate.serial_number == issued.serial
    assert loaded.key.public_key() == loaded.cert.certificate.public_key()
    (ca,) = loaded.additional_certs
    ca.certificate.verify_directly_issued_by(ca.certificate)
    loaded.cert.certificate.verify_directly_issued_by(ca.certificate)


# -- loading -----------------------------------------------------------------------------------


def test_the_command_line_loads_cryptography_when_it_is_needed_only() -> None:
    """`praval demo` does not pay for certificates."""
    code = "import sys, praval.cli.app; assert 'cryptography' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    """For the library as an error of ours, for the command as exit code 2."""
    hide = "import sys; sys.modules['cryptography'] = None\n"
    for code, expected in (
        ("import praval.certs", 1),
        ("from praval.cli.app import app; app(['certs', 'init'])", 2),
    ):
        done = subprocess.run(
            [sys.executable, "-c", hide + code], capture_output=True, text=True, check=False
        )
        assert done.returncode == expected
        assert 'pip install "praval-asyncio[certs]"' in done.stderr
    assert issubclass(CertificateError, PravalError)
    assert "Traceback" not in done.stderr
