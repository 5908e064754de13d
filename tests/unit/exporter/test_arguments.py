"""The command line of msb-metrics: what it means, and what is refused in which words."""

import sys

import pytest

from microsandbox.exporter import diagnostics, program
from microsandbox.exporter.arguments import ArgumentsError, Delivery, Mode, parse


def test_the_defaults():
    settings = parse(["stdout"])
    assert settings.delivery == Delivery(1.0, 10.0, 60, 30.0)
    assert (settings.mode, settings.max_sample_age, settings.labels) == (Mode.STDOUT, 30.0, True)
    assert (settings.log_level, settings.log_format, settings.home) == ("info", "text", None)
    assert parse(["prometheus"]).listen == ("127.0.0.1", 9464)


def test_options_stand_before_or_after_the_mode():
    words = ["--log-level", "debug", "--exclude-label-key", "a", "otel", "--endpoint", "https://c:4317",
             "--exclude-label-key", "b", "--header", "X-Token=s=t", "--resource", "service.name=x",
             "--collect-interval", "500ms", "--flush-interval", "2m", "--emit-pid"]  # fmt: skip
    settings = parse(words)
    assert settings.log_level == "debug" and settings.excluded_labels == {"a", "b"}
    assert (settings.delivery.collect_interval, settings.delivery.flush_interval) == (0.5, 120.0)
    otel = settings.otel
    assert (otel.headers, otel.resource) == ((("x-token", "s=t"),), (("service.name", "x"),))
    assert (otel.pid, otel.run_id, otel.http, otel.gzip) == (True, False, False, False)


OTEL = ["otel", "--endpoint", "http://c"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "the following arguments are required: mode"),
        (["statsd"], "mode: invalid choice: 'statsd' (choose from 'stdout', 'otel', 'prometheus')"),
        (["stdout", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["stdout", "--collect-interval", "0"], "metrics collect_interval must be greater than zero"),
        (["stdout", "--flush-interval", "0s"], "metrics flush_interval must be greater than zero"),
        (["stdout", "--max-buffered", "0"], "metrics max_buffered_collections must be greater than zero"),
        (["stdout", "--export-timeout", "0ms"], "metrics export_timeout must be greater than zero"),
        (["stdout", "--max-buffered", "-1"], '--max-buffered: invalid number "-1" (expected 1 to 100000)'),
        (
            ["stdout", "--max-buffered", "1e3"],
            '--max-buffered: invalid number "1e3" (expected 1 to 100000)',
        ),
        (
            ["stdout", "--max-sample-age", "soon"],
            '--max-sample-age: invalid duration "soon" (expected e.g. 30s, 5m, 1h30m)',
        ),
        (["stdout", "--endpoint", "http://c"], "--endpoint is an option of otel, not of stdout"),
        (["stdout", "--listen", "127.0.0.1:1"], "--listen is an option of prometheus, not of stdout"),
        (
            ["prometheus", "--flush-interval", "1s"],
            "--flush-interval is an option of stdout and otel, not of prometheus",
        ),
        (
            ["prometheus", "--listen", "9464"],
            '--listen: invalid address "9464" (expected HOST:PORT, e.g. 127.0.0.1:9464)',
        ),
        (["otel"], "otel needs --endpoint URL, the address of an OTLP collector"),
        (
            ["otel", "--endpoint", "c:4317"],
            '--endpoint: invalid endpoint "c:4317" (expected e.g. http://127.0.0.1:4317)',
        ),
        (
            ["otel", "--endpoint", "http://me:secret@c"],
            "--endpoint: an endpoint has no user and password; --header authorization=... has",
        ),
        (
            [*OTEL, "--protocol", "http", "--compression", "gzip"],
            "--compression gzip cannot be used with --protocol http; use --protocol grpc",
        ),
        (
            [*OTEL, "--protocol", "http", "--ca-cert", "ca.pem"],
            "--ca-cert cannot be used with --protocol http; use --protocol grpc",
        ),
        ([*OTEL, "--ca-cert", "x"], "--ca-cert needs an https:// endpoint: http:// is not encrypted"),
        ([*OTEL, "--resource", "x"], '--resource: expected KEY=VALUE, got "x"'),
        ([*OTEL, "--header", "secret"], "--header: expected KEY=VALUE"),
        ([*OTEL, "--header", "a b=secret"], '--header: "a b" cannot be the name of a header'),
        (
            [*OTEL, "--header", "a=x\ny"],
            "--header: the value of a has characters that a header cannot have",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(words, text):
    with pytest.raises(ArgumentsError) as caught:
        parse(words)
    assert str(caught.value) == text


def test_a_wrong_command_line_is_exit_code_2(capsys):
    assert program.main(["otel"]) == 2
    assert capsys.readouterr().err.startswith("error: otel needs --endpoint URL")


@pytest.mark.parametrize(
    ("rust_log", "level"),
    [
        (None, "info"),
        ("", "info"),
        ("debug", "debug"),
        ("WARN", "warn"),
        ("hyper=trace", "info"),
        ("hyper=trace,microsandbox_metrics=error", "error"),
        ("off", "off"),
        ("nonsense", "info"),
    ],
)
def test_rust_log_goes_before_the_option(rust_log, level):
    assert diagnostics.wanted_level("info", rust_log) == level


def test_a_bug_is_one_line_and_not_the_group_that_it_came_in(monkeypatch, capsys, tmp_path):
    def broken(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    monkeypatch.setattr(program.Collector, "collect", broken)
    assert program.main(["stdout"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: ZeroDivisionError: oh"


def test_without_the_extra_one_sentence_names_it(monkeypatch, capsys, tmp_path):
    for name in ("microsandbox.exporter.otel", "opentelemetry.sdk.metrics.export"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    assert program.main(OTEL) == 1
    assert "install it with: pip install 'microsandbox[otel]'" in capsys.readouterr().err
