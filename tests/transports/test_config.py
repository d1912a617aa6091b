"""The configuration that all brokers share: read whole, refused by name, silent about secrets."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from praval.core.transport import read_url
from praval.errors import ConfigurationError, UnknownNameError
from praval_transports.config import BrokerConfig, read_config
from praval_transports.local import LocalTransport

SECRET = "s3cr3t"


def read(config: Any, refused: Mapping[str, str] | None = None) -> BrokerConfig:
    return read_config(
        BrokerConfig, config, protocol="amqp", ports=(5671, 5672), refused=refused or {}
    )


# -- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {  # amqp_config of the guide
            "url": "amqps://production:password@rabbitmq.company.com:5671/praval",
            "ca_cert": "/etc/ssl/certs/company-ca.pem",
            "client_cert": "/etc/ssl/certs/praval-client.pem",
            "client_key": "/etc/ssl/private/praval-key.pem",
        },
        {  # tls_config, mutual_tls_config
            "ca_cert": "/etc/ssl/certs/company-ca.pem",
            "client_cert": "/etc/ssl/certs/praval-client.pem",
            "client_key": "/etc/ssl/private/praval-key.pem",
            "verify_certs": True,
            "check_hostname": True,
            "ssl_version": "TLSv1.3",
            "require_client_cert": True,
            "crl_check": True,
        },
        {  # high_performance_config
            "connection_pool_size": 20,
            "prefetch_count": 1000,
            "compression": "gzip",
            "keepalive": 30,
            "tcp_nodelay": True,
            "buffer_size": 65536,
        },
        {  # broker_cluster_config
            "brokers": [
                "broker1.company.com:5671",
                "broker2.company.com:5671",
                "broker3.company.com:5671",
            ],
            "load_balancing": "round_robin",
            "failover_timeout": 30,
            "reconnect_delay": 5,
        },
    ],
)
def test_the_guides_configurations_are_read_as_printed(config: dict[str, Any]) -> None:
    """And what they say is what is used."""
    found = read(config)
    for key, value in config.items():
        assert getattr(found, key) == (tuple(value) if isinstance(value, list) else value)
    assert found.encrypted


@pytest.mark.parametrize("key", BrokerConfig.__struct_fields__)
def test_a_key_that_lacks_a_letter_is_refused_with_the_near_name(key: str) -> None:
    """Whichever it is; and all known keys are listed."""
    with pytest.raises(UnknownNameError, match=r'Did you mean "\w+"') as caught:
        read({key[:-1]: None})
    assert "prefetch_count" in str(caught.value)


def test_a_refused_key_is_refused_by_name_and_not_proposed() -> None:
    """With the reason; None is no wish for it."""
    refused = {"buffer_size": "its client has no way to set it."}
    with pytest.raises(ConfigurationError, match="'buffer_size': its client has no way"):
        read({"buffer_size": 1}, refused)
    assert read({"buffer_size": None}, refused).buffer_size is None
    with pytest.raises(UnknownNameError) as caught:
        read({"bufer_size": 1}, refused)
    assert "buffer_size" not in str(caught.value)


async def test_each_transport_says_which_keys_it_refuses() -> None:
    """The local one has no network; what is refused is refused before anything is opened."""
    for key in LocalTransport.refused:
        value = {"brokers": ["a:1"], "client_cert": "x", "client_key": "x"}.get(key, 7)
        with pytest.raises(ConfigurationError, match=f"cannot honour '{key}': there is no network"):
            await LocalTransport().initialize({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("port", "amqps"),
        ("prefetch_count", 0),
        ("prefetch_count", 1.5),
        ("connection_pool_size", 0),
        ("reconnect_delay", 0),
        ("connect_timeout", -1),
        ("retry_delay", -0.1),
        ("keepalive", 0),
        ("buffer_size", 0),
        ("compression", "zip"),
        ("load_balancing", "roundrobin"),
        ("ssl_version", "TLSv1.1"),
        ("verify_certs", "no"),
        ("brokers", "localhost:5671"),
        ("dead_letter_topic", "a.*"),
        ("dead_letter_topic", ""),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=key):
        read({key: value})


def test_values_may_be_text_as_in_an_environment() -> None:
    """Numbers and truth are read from strings."""
    found = read({"port": "5671", "verify_certs": "false", "publish_timeout": "2.5"})
    assert (found.port, found.verify_certs, found.publish_timeout) == (5671, False, 2.5)


@pytest.mark.parametrize("config", [None, f"amqps://me:{SECRET}@host", ["host"], 7])
def test_a_config_is_a_mapping(config: Any) -> None:
    with pytest.raises(ConfigurationError, match="mapping") as caught:
        read(config)
    assert SECRET not in str(caught.value)


# -- URLs and addresses ----------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)


@given(user=words, password=words)
def test_any_user_and_password_can_be_in_a_url(user: str, password: str) -> None:
    """Percent-encoded, as everywhere."""
    from urllib.parse import quote

    found = read({"url": f"amqps://{quote(user, safe='')}:{quote(password, safe='')}@host/x"})
    assert (found.username, found.password) == (user, password)


@pytest.mark.parametrize(
    ("config", "address"),
    [
        ({}, "localhost:5671"),
        ({"url": "amqps://broker"}, "broker:5671"),
        ({"url": "amqps://broker:7000/vhost"}, "broker:7000"),
        ({"url": "amqps://[::1]:7000"}, "[::1]:7000"),
        ({"url": "amqps://[::1]"}, "[::1]:5671"),
        ({"url": "amqp://broker", "allow_plaintext": True}, "broker:5672"),
        ({"url": "amqps://broker:7000", "host": "other"}, "other:7000"),
        ({"url": "amqps://broker:7000", "port": 8000}, "broker:8000"),
        ({"host": "broker"}, "broker:5671"),
    ],
)
def test_a_broker_is_found_by_url_or_keys(config: dict[str, Any], address: str) -> None:
    """Each protocol has its usual ports, with TLS and without."""
    assert list(map(str, read(config).addresses)) == [address]


def test_keys_say_it_louder_than_the_url() -> None:
    """A key that is None says nothing."""
    url = f"amqps://me:{SECRET}@broker?prefetch_count=7&keepalive=9"
    found = read({"url": url, "username": "you", "password": None, "keepalive": 11})
    assert (found.username, found.password) == ("you", SECRET)
    assert (found.prefetch_count, found.keepalive) == (7, 11)


def test_the_query_of_a_url_holds_keys_like_any_other() -> None:
    """Known, refused, or suggested; in a config as for `Reef(transport=...)`."""
    with pytest.raises(UnknownNameError, match='Did you mean "prefetch_count"'):
        read({"url": "amqps://broker?prefetch_cuont=7"})
    with pytest.raises(ConfigurationError, match="cannot honour 'keepalive'"):
        read({"url": "amqps://broker?keepalive=7"}, {"keepalive": "no."})
    assert read_url("amqps://me@broker/x?keepalive=7") == (
        "amqp", {"url": "amqps://me@broker/x", "keepalive": "7"}
    )  # fmt: skip


def test_several_brokers_have_ports_of_their_own_or_the_usual_one() -> None:
    found = read({"brokers": ["one:7000", "two", "[::1]:7001", "[::1]"]})
    assert list(map(str, found.addresses)) == [
        "one:7000", "two:5671", "[::1]:7001", "[::1]:5671"
    ]  # fmt: skip


@pytest.mark.parametrize("broker", ["", "a/b", "a:b", "a?b", "::1", "a:99999", "[::1"])
def test_a_broker_that_is_no_address_is_refused(broker: str) -> None:
    with pytest.raises(ConfigurationError, match="brokers"):
        read({"brokers": ["fine:1", broker]})


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mqtts://broker", "begins with amqps:// or amqp://, not with 'mqtts'"),
        ("broker:5671", "begins with amqps:// or amqp://"),
        ("", "begins with amqps:// or amqp://"),
        (7, "must be a string"),
    ],
)
def test_a_url_of_something_else_is_refused(url: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        read({"url": url})


@pytest.mark.parametrize("url", ["amqp://broker", "amqp://me:pw@broker:5672/x"])
def test_plaintext_is_refused_unless_allowed_in_so_many_words(url: str) -> None:
    with pytest.raises(ConfigurationError, match="allow_plaintext"):
        read({"url": url})
    assert read({"url": url, "allow_plaintext": True}).encrypted is False
    assert read({"url": f"{url}?allow_plaintext=true"}).encrypted is False


# -- secrets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"url": f"amqps://me:{SECRET}/x@broker"},  # not percent-encoded, so read as a port
        {"url": f"amqps://me:{SECRET}?x@broker"},
        {"url": f"amqps://me:{SECRET}#x@broker"},
        {"url": f"amqps://me:{SECRET}[x@broker"},
        {"url": f"amqps://me:{SECRET}@broker:99999"},
        {"url": f"amqp://me:{SECRET}@broker"},
        {"url": f"mqtts://me:{SECRET}@broker"},
        {"brokers": [f"me:{SECRET}@broker:5671"]},
        {"brokers": [f":{SECRET}@broker:5671"]},
        {"password": [SECRET]},
        {"password": SECRET, "port": SECRET},
        {"password": SECRET, "pasword": SECRET},
    ],
)
def test_no_refusal_shows_a_password(config: dict[str, Any]) -> None:
    """However the config is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        read(config)
    seen: BaseException | None = caught.value
    assert seen is not None
    assert SECRET not in str(seen)
    assert seen.__suppress_context__ or seen.__context__ is None


@pytest.mark.parametrize(
    "config",
    [
        {"url": f"amqps://me:{SECRET}@broker:7000/x"},
        {"username": "me", "password": SECRET, "host": "broker", "port": 7000},
    ],
)
def test_no_way_to_show_a_config_shows_a_password(config: dict[str, Any]) -> None:
    """Neither its repr, nor what rich prints of it."""
    found = read(config)
    console = Console(file=io.StringIO(), width=500)
    console.print(found)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "broker:7000" in printed
    assert repr(found) == str(found) == "<BrokerConfig broker:7000>"
    for shown in (repr(found), f"{found}", printed, repr([found]), repr({"config": found})):
        assert SECRET not in shown
    assert msgspec.structs.asdict(found)["password"] == SECRET
