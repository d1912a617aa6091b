"""Settings: environment, ``.env``, ``configure``, and who keeps which."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from praval import Reef, Settings, Spore, agent, configure
from praval.errors import ConfigurationError, UnknownNameError
from praval.settings import (
    ENVIRONMENT,
    NOT_BUILT,
    current_settings,
    from_environment,
    merge,
    reset_settings,
)

VARIABLES: dict[str, tuple[str, str, Any]] = {
    "PRAVAL_DEFAULT_PROVIDER": ("openai", "default_provider", "openai"),
    "PRAVAL_DEFAULT_MODEL": ("gpt-4-turbo", "default_model", "gpt-4-turbo"),
    "PRAVAL_LOG_LEVEL": ("info", "log_level", "INFO"),
    "PRAVAL_MAX_THREADS": ("12", "max_threads", 12),
    "PRAVAL_DATA_DIR": ("/var/lib/x", "data_dir", "/var/lib/x"),
    "PRAVAL_DEBUG": ("true", "debug", True),
    "PRAVAL_KEYS_STORE": ("rediss://h/", "secure_spores.keys_path", "rediss://h/"),
    "PRAVAL_ENABLE_SECURE_SPORES": ("true", "secure_spores.enabled", True),
    "PRAVAL_TRANSPORT": ("amqps://host/", "transport", "amqps://host/"),
    "PRAVAL_TLS_CERT_DIR": ("/certs", "transport_security.certificate_path", "/certs"),
    "PRAVAL_REEF_CAPACITY": ("2000", "reef_config.channel_capacity", 2000),
    "PRAVAL_MESSAGE_TTL": ("7200", "reef_config.message_ttl", 7200.0),
    "PRAVAL_CLEANUP_INTERVAL": ("60.5", "reef_config.cleanup_interval", 60.5),
    "PRAVAL_ENABLE_CACHING": ("true", "performance.enable_caching", True),
    "PRAVAL_CACHE_TTL": ("1800", "performance.cache_ttl", 1800.0),
    "PRAVAL_CACHE": ("sqlite", "performance.cache", "sqlite"),
    "PRAVAL_MAX_RETRIES": ("0", "performance.max_retries", 0),
    "PRAVAL_REQUEST_TIMEOUT": ("60", "performance.timeout", 60.0),
    "QDRANT_URL": ("http://localhost:6333", "memory_config.qdrant_url", "http://localhost:6333"),
    "QDRANT_API_KEY": ("key", "memory_config.qdrant_api_key", "key"),
    "PRAVAL_COLLECTION_NAME": ("memories", "memory_config.collection_name", "memories"),
    "SHORT_TERM_MAX_ENTRIES": ("5000", "memory_config.short_term_max_entries", 5000),
    "SHORT_TERM_RETENTION_HOURS": ("48", "memory_config.short_term_retention_hours", 48.0),
}
"""Variable -> its text, the setting it means, and the value that setting then has."""


def at(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, with its level put back afterwards."""
    found = logging.getLogger("praval")
    level = found.level
    yield found
    found.setLevel(level)


# -- environment -----------------------------------------------------------------------------


def test_the_table_below_knows_every_variable() -> None:
    """Whoever adds a variable adds it to these tests."""
    assert {name: path for name, (_, path, _) in VARIABLES.items()} == dict(ENVIRONMENT)


FEATURE_MISSING = {
    "QDRANT_URL", "QDRANT_API_KEY", "PRAVAL_COLLECTION_NAME", "SHORT_TERM_MAX_ENTRIES",
    "SHORT_TERM_RETENTION_HOURS",
}  # fmt: skip
"""Variables that are read, checked and kept, but that nothing uses yet."""


@pytest.mark.parametrize("variable", VARIABLES)
def test_each_variable_of_the_guide_has_its_effect(variable: str) -> None:
    """It changes the setting it names and no other; blanks around the value do not matter.

    If nothing uses the setting yet, one warning says so; for the others there is none.
    """
    text, path, value = VARIABLES[variable]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = from_environment({variable: f" {text} "})
    assert [warning.category for warning in caught] == (
        [FutureWarning] if variable in FEATURE_MISSING else []
    )
    for warning in caught:
        assert str(warning.message).startswith(f"{variable} is accepted, but")
        assert warning.filename == __file__
    assert at(settings, path) == value
    assert type(at(settings, path)) is type(value)
    others = [other for _, other, _ in VARIABLES.values() if other != path]
    assert [at(settings, other) for other in others] == [at(Settings(), each) for each in others]


def test_an_empty_variable_is_as_good_as_none() -> None:
    """A line without a value in a compose file changes nothing."""
    assert from_environment(dict.fromkeys(VARIABLES, "  ")) == Settings()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PRAVAL_MAX_THREADS", "0"), ("PRAVAL_MAX_THREADS", "ten"), ("PRAVAL_MAX_THREADS", "1.5"),
        ("PRAVAL_MESSAGE_TTL", "-1"), ("PRAVAL_MESSAGE_TTL", "nan"), ("PRAVAL_MESSAGE_TTL", "0"),
        ("PRAVAL_REQUEST_TIMEOUT", "nan"), ("PRAVAL_LOG_LEVEL", "loud"), ("PRAVAL_DEBUG", "maybe"),
        ("PRAVAL_REEF_CAPACITY", "-5"), ("PRAVAL_MAX_RETRIES", "-1"), ("PRAVAL_CACHE_TTL", "x"),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_variable(variable: str, text: str) -> None:
    """The error says which variable is wrong, although several are set."""
    with pytest.raises(ConfigurationError, match=f"in {variable}: .*Expected|Invalid"):
        from_environment({"PRAVAL_DEFAULT_MODEL": "fine", variable: text})


def test_a_misspelt_variable_is_pointed_out() -> None:
    """A variable that looks like one of ours is warned about, with the near name."""
    with pytest.warns(UserWarning, match='PRAVAL_MAX_THREAD.*Did you mean "PRAVAL_MAX_THREADS"'):
        settings = from_environment({"PRAVAL_MAX_THREAD": "4"})
    assert settings == Settings()


def test_a_variable_of_somebody_else_is_left_alone() -> None:
    """Neither other programs' variables nor far-off names make noise."""
    assert from_environment({"PRAVAL_XYZZY": "1", "MAX_THREADS": "x", "PATH": "/"}) == Settings()


def test_a_missing_feature_is_warned_about_once_per_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither later uses nor ``configure()`` repeat it; reading the environment again does."""
    monkeypatch.setenv("SHORT_TERM_MAX_ENTRIES", "7")
    with pytest.warns(FutureWarning, match="SHORT_TERM_MAX_ENTRIES is accepted"):
        current_settings()
    current_settings()  # a warning would be an error here
    assert configure(max_threads=3).memory_config.short_term_max_entries == 7
    reset_settings()
    with pytest.warns(FutureWarning, match="SHORT_TERM_MAX_ENTRIES is accepted"):
        current_settings()


@pytest.mark.parametrize(
    ("environ", "level"),
    [
        ({"PRAVAL_DEBUG": "true"}, logging.DEBUG),
        ({"PRAVAL_DEBUG": "1", "PRAVAL_LOG_LEVEL": "error"}, logging.ERROR),
        ({"PRAVAL_DEBUG": "false"}, logging.CRITICAL),
        ({}, logging.CRITICAL),
    ],
    ids=repr,
)
def test_debug_is_a_log_level_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, logger: logging.Logger, environ: dict[str, str], level: int
) -> None:
    """``PRAVAL_DEBUG`` logs at DEBUG; without it, the application's level is left alone."""
    logger.setLevel(logging.CRITICAL)
    for variable, text in environ.items():
        monkeypatch.setenv(variable, text)
    current_settings()
    assert logger.level == level


def test_the_hard_capacity_is_not_below_the_capacity() -> None:
    """Whichever of the two comes last is refused, with both numbers, and changes nothing."""
    before = configure({"reef_config": {"channel_capacity": 5, "hard_capacity": 5}})
    with pytest.raises(ConfigurationError, match=r"hard_capacity \(4\) is below .*\(5\)"):
        configure({"reef_config": {"hard_capacity": 4}})
    with pytest.raises(ConfigurationError, match=r"hard_capacity \(5\) is below .*\(6\)"):
        configure({"reef_config": {"channel_capacity": 6}})
    assert current_settings() is before


def test_the_process_environment_is_read_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once read, it is kept until the settings are reset."""
    monkeypatch.setenv("PRAVAL_MAX_THREADS", "3")
    assert current_settings().max_threads == 3
    monkeypatch.setenv("PRAVAL_MAX_THREADS", "4")
    assert current_settings().max_threads == 3
    reset_settings()
    assert current_settings().max_threads == 4


def test_a_dotenv_file_is_under_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """``.env`` in the working directory counts where the environment is silent."""
    Path(".env").write_text(
        "# ours\nPRAVAL_MAX_THREADS=3\nPRAVAL_LOG_LEVEL='warning'  # quoted\nPRAVAL_DEBUG\n"
        "export PRAVAL_REEF_CAPACITY=7\nOPENAI_API_KEY=secret\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PRAVAL_MAX_THREADS", "5")
    settings = from_environment()
    assert (settings.max_threads, settings.log_level) == (5, "WARNING")
    assert settings.reef_config.channel_capacity == 7
    assert settings.debug is False
    assert "secret" not in repr(settings)


def test_a_bad_value_in_a_dotenv_file_is_an_error_too() -> None:
    """It names the variable, as in the environment."""
    Path(".env").write_text("PRAVAL_MAX_THREADS=many\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="PRAVAL_MAX_THREADS"):
        current_settings()


# -- configure -------------------------------------------------------------------------------


def test_what_the_guide_configures_is_accepted(logger: logging.Logger) -> None:
    """Every key of the guide's example has its effect or, if its feature is missing, a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = configure({
            "default_provider": "openai", "default_model": "gpt-4-turbo",
            "max_concurrent_agents": 20, "log_level": "DEBUG",
            "reef_config": {
                "channel_capacity": 5000, "message_ttl": 7200, "cleanup_interval": 3600,
                "enable_persistence": True,
            },
            "performance": {
                "enable_caching": True, "cache_ttl": 1800, "max_retries": 5, "timeout": 60,
                "batch_size": 10,
            },
            "security": {
                "enable_content_filtering": True, "max_message_size": 10000,
                "rate_limit_requests": 100,
            },
        })  # fmt: skip
    assert settings is current_settings()
    assert settings.reef_config.channel_capacity == 5000
    assert settings.performance.timeout == 60.0
    assert settings.security.max_message_size == 10_000
    assert logger.level == logging.DEBUG
    assert {warning.category for warning in caught} == {FutureWarning}
    named = {str(warning.message).split("'")[1] for warning in caught}
    assert named == {
        "performance.batch_size",
        "security.enable_content_filtering", "security.rate_limit_requests",
    }  # fmt: skip
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("path", [key for key in NOT_BUILT if "." not in key])
def test_a_section_whose_feature_is_missing_warns(path: str) -> None:
    """It is accepted whatever is in it, and changes nothing that works."""
    value = {"collection_name": "x"} if path == "memory_config" else {"anything": True}
    with pytest.warns(FutureWarning, match=f"'{path}' is accepted, but .* no effect"):
        settings = configure({path: value})
    assert settings.reef_config == Settings().reef_config


SECURE_PRAVAL_CONFIG: dict[str, Any] = {
    "secure_spores": {
        "enabled": True, "key_rotation_interval": 86400, "signature_algorithm": "ed25519",
        "encryption_algorithm": "curve25519_xsalsa20_poly1305", "key_backup_enabled": True,
        "key_backup_path": "/secure/backup/keys",
    },
    "transport_security": {
        "enforce_tls": True, "min_tls_version": "1.3", "verify_certificates": True,
        "certificate_path": "/app/certs", "mutual_tls": True, "crl_check": True,
    },
    "message_security": {
        "max_message_size": 10485760, "message_retention": 604800, "replay_protection": True,
        "rate_limiting": {"messages_per_minute": 1000, "burst_size": 100},
    },
    "audit": {
        "enabled": True, "log_all_messages": True, "log_path": "/app/logs/audit",
        "retention_days": 2555, "encryption_at_rest": True,
    },
    "monitoring": {
        "metrics_enabled": True, "health_check_interval": 30, "performance_monitoring": True,
        "security_alerts": True,
    },
}  # fmt: skip
"""That of the guide, "Production Security Configuration"."""


def test_the_secure_configuration_of_the_guide_is_accepted() -> None:
    """Each key has its effect; of metrics, which do not exist yet, it is said so."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = configure(SECURE_PRAVAL_CONFIG)
    named = {str(warning.message).split("'")[1] for warning in caught}
    missing = ("metrics_enabled", "health_check_interval", "performance_monitoring")
    assert named == {f"monitoring.{key}" for key in missing}
    assert settings.secure_spores.enabled
    assert settings.secure_spores.key_backup_path == "/secure/backup/keys"
    assert settings.transport_security.min_tls_version == "1.3"
    assert settings.security.max_message_size == 10_485_760
    assert (settings.security.messages_per_minute, settings.security.burst_size) == (1000.0, 100)
    assert settings.reef_config.message_retention == 604_800.0
    assert settings.audit.encryption_at_rest
    assert settings.audit.log_path == "/app/logs/audit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secure_spores": {"signature_algorithm": "rsa"}}, "signature_algorithm"),
        ({"secure_spores": {"encryption_algorithm": "aes"}}, "encryption_algorithm"),
        ({"secure_spores": {"key_rotation_interval": 0}}, "key_rotation_interval"),
        ({"message_security": {"replay_protection": False}}, "cannot be turned off"),
        ({"message_security": {"max_mesage_size": 1}}, 'Did you mean "max_message_size"'),
        ({"message_security": {"rate_limiting": {"burst": 1}}}, "rate_limiting.burst_size"),
        ({"message_security": {"rate_limiting": 5}}, "must be a mapping"),
        ({"message_security": 5}, "must be a mapping"),
        ({"message_security": {"max_message_size": 0}}, "max_message_size"),
        ({"audit": {"enable": True}}, 'Did you mean "enabled"'),
        ({"audit": {"retention_days": -1}}, "retention_days"),
        ({"audit": {"retention_days": 1e9}}, "retention_days"),
    ],
)
def test_what_a_key_of_security_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    """Nobody believes to be protected by a key that does nothing."""
    with pytest.raises(ConfigurationError, match=message):
        configure(changes)


def test_configure_merges() -> None:
    """A later call keeps what an earlier one set, in nested sections too."""
    configure({"reef_config": {"channel_capacity": 5}, "max_threads": 3})
    configure({"reef_config": {"drain_timeout": 1}}, default_model="m")
    settings = current_settings()
    assert settings.reef_config.channel_capacity == 5
    assert settings.reef_config.drain_timeout == 1.0
    assert (settings.max_threads, settings.default_model) == (3, "m")


def test_configure_is_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code has the last word; what it does not name stays as the environment says."""
    monkeypatch.setenv("PRAVAL_MAX_THREADS", "3")
    monkeypatch.setenv("PRAVAL_REEF_CAPACITY", "30")
    configure(max_threads=4)
    assert current_settings().max_threads == 4
    assert current_settings().reef_config.channel_capacity == 30


@pytest.mark.parametrize(
    "bad",
    [
        {"max_threads": 0}, {"max_threads": "4"}, {"max_threads": True}, {"max_threads": None},
        {"performance": {"timeout": math.nan}}, {"performance": {"timeout": -1}},
        {"performance": {"timeout": "5"}}, {"reef_config": {"message_ttl": math.nan}},
        {"reef_config": {"overflow": "explode"}}, {"reef_config": 5}, {"reef_config": None},
        {"log_level": "debug"}, {"security": {"max_message_size": 0}}, {"no_such_key": 1},
        {"reef_config": {"no_such_key": 1}}, {1: 2},
    ],
)  # fmt: skip
def test_a_bad_change_changes_nothing(bad: dict[Any, Any]) -> None:
    """All or nothing: what stood beside the bad key is not applied either."""
    before = configure(max_threads=7)
    with pytest.raises(ConfigurationError, match=r".{20,}"):
        configure({"default_model": "new", **bad})
    assert current_settings() is before


@pytest.mark.parametrize("changes", [[], [("max_threads", 3)], "max_threads", 5])
def test_configure_takes_a_mapping(changes: Any) -> None:
    """Anything else is refused in words."""
    with pytest.raises(ConfigurationError, match=f"a mapping, not {type(changes).__name__}"):
        configure(changes)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"max_thread": 3}, 'Did you mean "max_threads"'),
        ({"reef_conf": {}}, 'Did you mean "reef_config"'),
        ({"reef_config": {"chanel_capacity": 3}}, 'reef_config.*Did you mean "channel_capacity"'),
        ({"secure_spore": {}}, 'Did you mean "secure_spores"'),
        ({"xyzzy": 1}, "Known: .*max_threads"),
    ],
)
def test_an_unknown_key_suggests_the_near_name(changes: dict[str, Any], hint: str) -> None:
    """A typing error is found by whoever made it."""
    with pytest.raises(UnknownNameError, match=hint):
        configure(changes)


def test_a_warning_that_is_an_error_changes_nothing() -> None:
    """Under ``-W error`` the missing feature's warning refuses the whole change."""
    before = current_settings()
    with pytest.raises(FutureWarning):
        configure({"max_threads": 3, "monitoring": {"metrics_enabled": True}})
    assert current_settings() is before


def test_no_change_of_several_threads_is_lost() -> None:
    """Changes that meet are merged one after the other."""
    start = threading.Barrier(4)
    keys = ["channel_capacity", "max_hops", "max_tree", "dead_letters"]

    def change(key: str) -> None:
        start.wait()
        for number in range(1, 101):
            configure({"reef_config": {key: number}})

    threads = [threading.Thread(target=change, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    limits = current_settings().reef_config
    assert [getattr(limits, key) for key in keys] == [100] * 4


# -- who keeps which -------------------------------------------------------------------------


async def test_a_reef_keeps_its_settings() -> None:
    """``configure`` counts for Reefs built later, never for one that exists."""
    configure({"security": {"max_message_size": 100}})
    reef = Reef()
    configure({"security": {"max_message_size": 20}})
    later = Reef()
    data = {"text": "x" * 50}
    async with reef, later:
        await reef.broadcast(data)
        with pytest.raises(ValueError, match="limit is 20"):
            await later.broadcast(data)
    assert reef.settings.security.max_message_size == 100


async def test_a_reef_takes_settings_of_its_own() -> None:
    """``settings=`` is used as it is; the process's settings do not matter."""
    heard: list[Spore] = []

    @agent("a")
    async def handler(spore: Spore) -> None:
        heard.append(spore)

    own = merge(Settings(), {"reef_config": {"message_ttl": None}})
    configure({"reef_config": {"message_ttl": 5}})
    async with Reef(handler, settings=own) as reef, Reef(handler) as other:
        await reef.broadcast({})
        await other.broadcast({})
        await reef.wait_idle(5)
        await other.wait_idle(5)
    assert heard[0].expires_at is None
    assert heard[1].expires_at == pytest.approx(heard[1].created_at + 5)


def test_a_reef_takes_its_transport_from_the_settings() -> None:
    """A setting that cannot be used is refused when the Reef is made, not when it is needed."""
    with pytest.raises(ConfigurationError, match="begins with one of"):
        Reef(settings=Settings(transport="telnet://host/"))
    assert Reef(settings=Settings(transport="amqps://host/")).bridge is None  # not entered yet


def test_settings_are_frozen() -> None:
    """Nobody changes them in place, sections included."""
    settings = current_settings()
    with pytest.raises(AttributeError):
        settings.max_threads = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        settings.reef_config.max_hops = 3  # type: ignore[misc]


def test_secrets_do_not_show() -> None:
    """Neither the key of the memory server nor a password in a transport's URL is in a repr."""
    with pytest.warns(FutureWarning, match="QDRANT_API_KEY") as caught:
        settings = from_environment(
            {
                "QDRANT_API_KEY": "hunter2",
                "PRAVAL_TRANSPORT": "amqps://user:hunter2@host/vhost",
                "PRAVAL_KEYS_STORE": "rediss://user:hunter2@host/",
            }
        )
    assert "hunter2" not in str([warning.message for warning in caught])
    assert settings.transport == "amqps://user:hunter2@host/vhost"
    assert "hunter2" not in repr(settings) + repr(settings.memory_config) + str(settings)
    assert "host/vhost" in repr(settings)


def test_the_data_directory_is_expanded() -> None:
    """``~`` is the user's home."""
    assert Settings(data_dir="~/x").data_path == Path.home() / "x"
