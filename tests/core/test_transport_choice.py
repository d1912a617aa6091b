"""The section ``transport_security``: what it makes of a URL or a config, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from praval.core.transport_choice import Choice, Target, choose
from praval.errors import ConfigurationError
from praval.settings import TransportSecuritySettings

STRICT = TransportSecuritySettings(enforce_tls=True)


def config_of(target: Target, security: TransportSecuritySettings) -> dict[str, Any]:
    choice = choose(target, security)
    assert isinstance(choice, Choice)
    return choice._config


@pytest.mark.parametrize("scheme", ["amqp", "mqtt", "stomp", "redis"])
@pytest.mark.parametrize("as_url", [True, False])
def test_with_enforce_tls_no_plaintext_is_allowed(scheme: str, as_url: bool) -> None:
    """Whatever the URL or the config says of plaintext."""
    url = f"{scheme}://broker"
    plain: Target = (
        f"{url}?allow_plaintext=true" if as_url else {"url": url, "allow_plaintext": True}
    )
    with pytest.raises(ConfigurationError, match="enforce_tls is on"):
        choose(plain, STRICT)
    assert isinstance(choose(plain, TransportSecuritySettings()), Choice)


@pytest.mark.parametrize("url", ["amqps://b", "mqtts://b", "stomp+ssl://b", "rediss://b"])
def test_each_key_becomes_what_a_transport_honours(url: str, tmp_path: Path) -> None:
    """With the files that ``praval certs`` writes."""
    for name in ("ca.pem", "client.pem", "client-key.pem", "crl.pem"):
        (tmp_path / name).touch()
    security = TransportSecuritySettings(
        enforce_tls=True,
        min_tls_version="1.3",
        certificate_path=str(tmp_path),
        mutual_tls=True,
        crl_check=True,
    )
    config = config_of(url, security)
    assert (
        config.items()
        >= {
            "verify_certs": True,
            "ssl_version": "TLSv1.3",
            "require_client_cert": True,
            "crl_check": True,
            "ca_cert": str(tmp_path / "ca.pem"),
            "client_cert": str(tmp_path / "client.pem"),
            "client_key": str(tmp_path / "client-key.pem"),
            "crl": str(tmp_path / "crl.pem"),
        }.items()
    )
    assert config_of({"url": url, "ca_cert": "own.pem"}, security)["ca_cert"] == "own.pem"


def test_a_folder_without_an_authority_is_refused(tmp_path: Path) -> None:
    """Else the system's authorities would be believed."""
    security = TransportSecuritySettings(certificate_path=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"there is no ca\.pem"):
        choose("amqps://broker", security)
