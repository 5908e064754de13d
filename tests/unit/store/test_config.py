"""config.json: every key is known, every value is checked, one error names both."""

import pytest

from microsandbox.errors import InvalidConfigError
from microsandbox.store.config import Config, load_config
from microsandbox.store.home import Home, validate_name


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "config.json"
        path.write_text(text)
        return load_config(path)

    return load


def test_no_file_means_defaults(tmp_path):
    assert load_config(tmp_path / "none.json") == Config()


def test_values_are_taken(load):
    config = load(
        '{"sandbox_defaults": {"cpus": 2, "memory_mib": 256, "oci": {"upper_size_mib": 64}},'
        ' "paths": {"cache": "/c"}, "registries": {"hosts": {"localhost:5000": {"insecure": true}}},'
        ' "log_level": "debug"}'
    )
    defaults = config.sandbox_defaults
    assert (defaults.cpus, defaults.memory_mib, defaults.upper_size_mib) == (2, 256, 64)
    assert str(config.paths.cache) == "/c"
    assert config.registries["localhost:5000"].insecure
    assert config.log_level == "debug"


def test_metrics(load):
    defaults = load("{}").sandbox_defaults
    assert (defaults.metrics_sample_interval_ms, defaults.disable_metrics_sample) == (1000, False)
    text = '{"sandbox_defaults": {"metrics_sample_interval_ms": 0, "disable_metrics_sample": true}}'
    defaults = load(text).sandbox_defaults
    assert (defaults.metrics_sample_interval_ms, defaults.disable_metrics_sample) == (0, True)
    for capacity, slots in (("null", 1024), (0, 1024), (5, 5)):
        assert load(f'{{"metrics": {{"capacity": {capacity}}}}}').metrics_capacity == slots


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "the file must be an object"),
        ("{", "is not valid JSON"),
        ('{"cpus": 1}', "unknown key cpus"),
        ('{"sandbox_defaults": {"memory": 1}}', "unknown key sandbox_defaults.memory"),
        (
            '{"sandbox_defaults": {"cpus": "2"}}',
            'sandbox_defaults.cpus must be a positive whole number, got "2"',
        ),
        ('{"sandbox_defaults": {"cpus": true}}', "sandbox_defaults.cpus must be a positive whole number"),
        ('{"sandbox_defaults": {"cpus": 0}}', "sandbox_defaults.cpus must be a positive whole number"),
        ('{"sandbox_defaults": 3}', "sandbox_defaults must be an object"),
        ('{"metrics": {"capacity": 65537}}', "metrics.capacity must be a number from 0 to 65536"),
        ('{"metrics": {"capacity": -1}}', "metrics.capacity must be a number from 0 to 65536, got -1"),
        (
            '{"sandbox_defaults": {"metrics_sample_interval_ms": 0.5}}',
            "sandbox_defaults.metrics_sample_interval_ms must be milliseconds, or 0 for none, got 0.5",
        ),
        (
            '{"sandbox_defaults": {"disable_metrics_sample": 1}}',
            "sandbox_defaults.disable_metrics_sample must be true or false, got 1",
        ),
        ('{"log_level": "loud"}', "log_level must be one of error, warn, info, debug, trace"),
        (
            '{"registries": {"hosts": {"h": {"insecure": "yes"}}}}',
            "registries.hosts.h.insecure must be true or false",
        ),
    ],
)
def test_what_is_wrong_is_named(load, text, complaint):
    with pytest.raises(InvalidConfigError) as caught:
        load(text)
    assert complaint in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "sandbox name is required"),
        ("é" * 65, "sandbox name is too long: 130 bytes (max 128)"),
        ("..", "must be usable as a file name"),
        ("a/b", "must be usable as a file name"),
        ("a\0b", "must be usable as a file name"),
    ],
)
def test_names_that_cannot_be_one_path_component_are_refused(name, complaint):
    with pytest.raises(InvalidConfigError) as caught:
        validate_name(name)
    assert complaint in str(caught.value)


def test_socket_paths_fall_back_and_then_explain(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / ("x" * 100)))
    with pytest.raises(InvalidConfigError, match="set MSB_HOME or paths.sandboxes to a shorter directory"):
        Home.open().sandbox("name")
