"""config.json: every key is known, every value is checked, one error names both."""

import json
import os
import re
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microsandbox.errors import InvalidConfigError, NotSupportedYetError
from microsandbox.store.config import AuthEntry, Config, RegistryHost
from microsandbox.store.config_file import HOST, MAX_BYTES, SCHEMA, NotYet, accepted_keys, load_config

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "configuration.md"


@pytest.fixture
def load(tmp_path):
    def load(content):
        path = tmp_path / "config.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_config(path)

    return load


def nested(key, value):
    """A document with one key."""
    for name in reversed(key.split(".")):
        value = {name.replace(HOST, "localhost:5000"): value}
    return value


def test_no_file_means_defaults(tmp_path, load):
    assert load_config(tmp_path / "none.json") == load("{}") == Config()


def test_every_value_is_taken(load):
    config = load(
        json.dumps(
            {
                "home": "/h",
                "log_level": "debug",
                "database": {"max_connections": 2, "connect_timeout_secs": 1.5, "busy_timeout_secs": 9},
                "paths": {"msb": "/m", "cache": "/c", "sandboxes": "~/s"},
                "sandbox_defaults": {
                    "cpus": 2,
                    "memory_mib": 256,
                    "oci": {"upper_size_mib": 64},
                    "shell": "/bin/bash",
                    "workdir": "/srv",
                    "metrics_sample_interval_ms": 0,
                    "disable_metrics_sample": True,
                },
                "registries": {
                    "insecure": True,
                    "ca_certs": "/a.pem",
                    "hosts": {"ghcr.io": {"ca_certs": "/b.pem"}},
                },
                "metrics": {"capacity": 5},
            }
        )
    )
    defaults, paths, database = config.sandbox_defaults, config.paths, config.database
    assert (config.home, config.log_level, config.metrics_capacity) == (Path("/h"), "debug", 5)
    assert (database.max_connections, database.connect_timeout_secs, database.busy_timeout_secs) == (
        2,
        1.5,
        9,
    )
    assert (paths.msb, paths.cache, paths.sandboxes) == (Path("/m"), Path("/c"), Path.home() / "s")
    assert (defaults.cpus, defaults.memory_mib, defaults.upper_size_mib) == (2, 256, 64)
    assert (defaults.shell, defaults.workdir) == ("/bin/bash", "/srv")
    assert (defaults.metrics_sample_interval_ms, defaults.disable_metrics_sample) == (0, True)
    assert (config.registries.insecure, config.registries.ca_certs) == (True, Path("/a.pem"))
    assert config.registries.host("ghcr.io") == RegistryHost(ca_certs=Path("/b.pem"))
    assert config.registries.host("quay.io") == RegistryHost()


@pytest.mark.parametrize("key", list(accepted_keys()))
def test_null_is_as_if_the_key_were_not_there(load, key):
    if not key.startswith(("registries.hosts", "registries.auth")):
        assert load(json.dumps(nested(key, None))) == Config()


def test_metrics_capacity_0_is_the_default(load):
    assert load('{"metrics": {"capacity": 0}}').metrics_capacity == 1024


# what is wrong


@pytest.mark.parametrize("key", list(accepted_keys()))
def test_every_key_checks_its_value(load, key):
    """No key takes a list; the error names the file, the key and what was found."""
    known = SCHEMA
    for name in key.split("."):
        known = known[name]
    error = NotSupportedYetError if isinstance(known, NotYet) else InvalidConfigError
    with pytest.raises(error) as caught:
        load(json.dumps(nested(key, [])))
    assert f"config.json: {key.replace(HOST, 'localhost:5000')}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "the file must be an object, got a list"),
        ("{", "is not valid JSON: Expecting property name enclosed in double quotes (line 1, column 2)"),
        (
            '{\n  "home": "/a",\n  oops\n}',
            "is not valid JSON: Expecting property name enclosed in double quotes (line 3, column 3)",
        ),
        ("", "is not valid JSON: Expecting value (line 1, column 1)"),
        (b'{"home": "\xff"}', "is not UTF-8 (byte 10)"),
        ('{"metrics": {"capacity": NaN}}', "is not valid JSON: NaN is no JSON number"),
        ("[" * 100_000, "is not valid: it is nested too deeply"),
        (f'{{"metrics": {{"capacity": {"9" * 5000}}}}}', "is not valid JSON: "),
        ("{" + " " * MAX_BYTES + "}", "is larger than 1048576 bytes"),
        ('{"log_level": "info", "log_level": "warn"}', "log_level is there twice; keep one"),
        ('{"paths": {"cache": "/a", "cache": null}}', "paths.cache is there twice; keep one"),
        ('{"paths": {}, "paths": {}}', "paths is there twice; keep one"),
        ('{"cpus": 1}', 'unknown key cpus (did you mean "sandbox_defaults.cpus"?)'),
        (
            '{"sandbox_defaults": {"memory": 1}}',
            'unknown key sandbox_defaults.memory (did you mean "sandbox_defaults.memory_mib"?)',
        ),
        (
            '{"sandbox_defaults.cpus": 2}',
            "unknown key sandbox_defaults.cpus (a dot stands for an object within an object)",
        ),
        ('{"sandbox_default": {}}', 'unknown key sandbox_default (did you mean "sandbox_defaults"?)'),
        (
            '{"registries": {"hosts": {"h.io": {"insecur": true}}}}',
            'unknown key registries.hosts.h.io.insecur (did you mean "registries.hosts.h.io.insecure"?)',
        ),
        ('{"a\\u001b[31m": 1}', "unknown key a\N{REPLACEMENT CHARACTER}[31m"),
        (
            '{"sandbox_defaults": {"cpus": "2"}}',
            'sandbox_defaults.cpus must be a whole number from 1 to 255, got "2"',
        ),
        (
            '{"sandbox_defaults": {"cpus": true}}',
            "sandbox_defaults.cpus must be a whole number from 1 to 255, got true",
        ),
        (
            '{"sandbox_defaults": {"cpus": 0}}',
            "sandbox_defaults.cpus must be a whole number from 1 to 255, got 0",
        ),
        (
            '{"sandbox_defaults": {"memory_mib": 1e3}}',
            "sandbox_defaults.memory_mib must be a whole number from 1 to 4294967295, got 1000.0",
        ),
        ('{"sandbox_defaults": 3}', "sandbox_defaults must be an object, got 3"),
        (
            '{"metrics": {"capacity": 65537}}',
            "metrics.capacity must be a whole number from 0 to 65536, got 65537",
        ),
        (
            '{"sandbox_defaults": {"disable_metrics_sample": 1}}',
            "sandbox_defaults.disable_metrics_sample must be true or false, got 1",
        ),
        (
            '{"database": {"busy_timeout_secs": 0}}',
            "database.busy_timeout_secs must be a number of seconds above 0, up to 86400, got 0",
        ),
        (
            '{"database": {"busy_timeout_secs": 1e999}}',
            "database.busy_timeout_secs must be a number of seconds above 0",
        ),
        (
            f'{{"database": {{"connect_timeout_secs": 1{"0" * 400}}}}}',
            "database.connect_timeout_secs must be a number of seconds above 0",
        ),
        ('{"log_level": "loud"}', 'log_level must be error, warn, info, debug or trace, got "loud"'),
        ('{"home": "state"}', 'home must be an absolute path, or one that begins with ~/, got "state"'),
        ('{"home": "~nobody-at-all/x"}', "home must be an absolute path"),
        ('{"paths": {"cache": "/a\\u0000b"}}', "paths.cache must be an absolute path"),
        (
            '{"sandbox_defaults": {"shell": ""}}',
            'sandbox_defaults.shell must be a program\'s name or path, without white space, got ""',
        ),
        (
            '{"sandbox_defaults": {"shell": "\\ud800"}}',
            "sandbox_defaults.shell must be a program's name or path, without white space",
        ),
        (
            '{"registries": {"hosts": {"https://ghcr.io": {}}}}',
            "registries.hosts.https://ghcr.io: a registry is named HOST or HOST:PORT",
        ),
        (
            '{"registries": {"hosts": {"docker.io": {}, "index.docker.io": {}}}}',
            "registries.hosts.index.docker.io: there are two entries for docker.io",
        ),
    ],
)
def test_what_is_wrong_is_named(load, text, complaint):
    with pytest.raises(InvalidConfigError) as caught:
        load(text)
    assert re.search(f"/config.json:? {re.escape(complaint)}", str(caught.value)), str(caught.value)


def test_a_long_wrong_value_is_cut(load):
    with pytest.raises(InvalidConfigError) as caught:
        load(json.dumps({"log_level": "x" * 10_000}))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "key",
    ["database.url", "paths.libkrunfw", "paths.volumes", "paths.snapshots", "paths.logs", "paths.secrets"],
)
def test_keys_of_features_that_are_not_there_say_so(load, key):
    with pytest.raises(NotSupportedYetError, match=f"{key}.*not supported yet by this release"):
        load(json.dumps(nested(key, "/somewhere")))


_names = st.sampled_from(sorted({part for key in accepted_keys() for part in key.split(".")})) | st.text()
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_documents = st.recursive(
    _scalars, lambda inner: st.lists(inner) | st.dictionaries(_names, inner), max_leaves=20
)


@settings(deadline=None, max_examples=300)
@given(content=st.binary() | _documents.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_in_the_file_is_a_configuration_or_one_error(content):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.json"
        path.write_bytes(content)
        try:
            found = load_config(path)
        except (InvalidConfigError, NotSupportedYetError) as error:
            found = str(error)
        assert isinstance(found, Config) or (str(path) in found and len(found) < 1000 and found.isprintable())


# registries


def test_hosts_are_found_by_the_name_that_references_have(load):
    hosts = {"registry-1.docker.io": {"insecure": True}, "GHCR.io": {"insecure": True}}
    registries = load(json.dumps({"registries": {"hosts": hosts}})).registries
    assert registries.host("docker.io").insecure and registries.host("ghcr.io").insecure


@pytest.mark.parametrize("place", ["hosts", "auth"])
def test_both_places_of_credentials_are_read(load, place):
    auth = {"username": "me", "password_env": "TOKEN"}
    document = {"hosts": {"h.io": {"auth": auth}}, "auth": {"h.io": auth}}
    registries = load(json.dumps({"registries": {place: document[place]}})).registries
    key = {"hosts": "registries.hosts.h.io.auth", "auth": "registries.auth.h.io"}[place]
    assert registries.host("h.io").auth == AuthEntry(key, "me", password_env="TOKEN")


def test_the_older_place_adds_to_an_entry_but_not_to_its_credentials(load):
    auth = {"username": "me", "store": "keyring"}
    registries = {"hosts": {"h.io": {"insecure": True}}, "auth": {"h.io": auth}}
    host = load(json.dumps({"registries": registries})).registries.host("h.io")
    assert (host.insecure, host.auth.store) == (True, "keyring")
    registries["hosts"]["h.io"]["auth"] = auth
    with pytest.raises(InvalidConfigError, match="auth.h.io: registries.hosts.h.io.auth is there, too"):
        load(json.dumps({"registries": registries}))


@pytest.mark.parametrize(
    ("auth", "complaint"),
    [
        ({"username": "me"}, "registry auth for h.io: entry has no credential source"),
        (
            {"username": "me", "store": "keyring", "secret_name": "s"},
            "registry auth for h.io: entry defines multiple credential sources",
        ),
        ({"password_env": "TOKEN"}, "registries.hosts.h.io.auth.username is missing"),
        (
            {"username": "me", "store": "file"},
            "registries.hosts.h.io.auth.store must be keyring, got a text$",
        ),
        ({"username": "me", "password": "x"}, "unknown key registries.hosts.h.io.auth.password"),
    ],
)
def test_credentials_have_one_source(load, auth, complaint):
    with pytest.raises(InvalidConfigError, match=complaint):
        load(json.dumps({"registries": {"hosts": {"h.io": {"auth": auth}}}}))


@pytest.mark.parametrize(
    ("registries", "complaint"),
    [
        (
            {"hosts": {"h.io": {"auth": "hunter2"}}},
            "registries.hosts.h.io.auth must be an object, got a text",
        ),
        ({"hosts": {"h.io": "hunter2"}}, "registries.hosts.h.io must be an object, got a text"),
        ({"auth": {"h.io": "hunter2"}}, "registries.auth.h.io must be an object, got a text"),
        ({"auth": "hunter2"}, "registries.auth must be an object, got a text"),
        ({"auth": {"h.io": {"store": "hunter2"}}}, "registries.auth.h.io.store must be keyring, got a text"),
        (
            {"auth": {"h.io": {"username": ["hunter2"]}}},
            "username must be a text that is not empty, got a list",
        ),
        ({"auth": {"h.io": {"username": 123456}}}, "username must be a text that is not empty, got a number"),
        ({"auth": {"h.io": {"password_env": True}}}, "must be a text that is not empty, got true or false"),
    ],
)
def test_what_may_be_a_password_is_not_shown(load, registries, complaint):
    with pytest.raises(InvalidConfigError) as caught:
        load(json.dumps({"registries": registries}))
    assert str(caught.value).endswith(complaint)
    assert "hunter2" not in str(caught.value) and "123456" not in str(caught.value)


# the file itself


def test_what_is_no_file_is_refused_at_once(tmp_path):
    path = tmp_path / "config.json"
    os.mkfifo(path)
    started = time.monotonic()
    with pytest.raises(InvalidConfigError, match="config.json is not a regular file"):
        load_config(path)
    assert time.monotonic() - started < 1
    path.unlink()
    path.mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InvalidConfigError, match="config.json cannot be read: Is a directory"):
        load_config(path)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_refused_with_what_mends_it(load, tmp_path, mode):
    load("{}")
    path = tmp_path / "config.json"
    path.chmod(mode)
    with pytest.raises(InvalidConfigError) as caught:
        load_config(path)
    assert str(caught.value).endswith(f"{path} can be written by other users; run: chmod go-w {path}")
    path.chmod(path.stat().st_mode & ~0o022)
    assert load_config(path) == Config()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(load, tmp_path):
    load("{}")
    os.chown(tmp_path / "config.json", 12345, -1)
    with pytest.raises(InvalidConfigError, match="belongs to user 12345, neither to you .user 0. nor"):
        load_config(tmp_path / "config.json")


# the documentation


def test_the_documentation_has_every_key_and_no_other():
    section = DOCUMENTATION.read_text().partition("## Keys")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert sorted(documented) == sorted(accepted_keys())
