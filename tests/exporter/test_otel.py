"""OTLP, as real collectors get it: values, transport, and what happens while they are away."""

import signal
import threading

import grpc
import pytest

from tests.exporter.conftest import Collector, free_port, serving
from tests.measured import Measured

QUICK = ("--collect-interval", "200ms", "--flush-interval", "200ms")
SANDBOX = {
    "microsandbox.cpu.utilization": ("1", 1.5),
    "microsandbox.memory.usage": ("By", 14 << 20),
    "microsandbox.memory.limit": ("By", 256 << 20),
    "microsandbox.disk.bytes_read": ("By", 512),
    "microsandbox.disk.bytes_written": ("By", 6 << 20),
    "microsandbox.network.bytes_received": ("By", 8),
    "microsandbox.network.bytes_sent": ("By", 0),
    "microsandbox.uptime": ("s", 125.0),
}
FRACTIONS = {"microsandbox.cpu.utilization", "microsandbox.uptime"}
COUNTERS = {
    f"microsandbox.collector.{name}" for name in ("exports.success", "exports.failure", "collections.dropped")
}


def otel(port, *words, scheme="http"):
    return ("otel", "--endpoint", f"{scheme}://127.0.0.1:{port}", *QUICK, *words)


def attributes(pairs):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def counter(metrics, name):
    [point] = metrics[f"microsandbox.collector.{name}"].sum.data_points
    return point.as_int


@pytest.mark.parametrize("transport", [("grpc", "none"), ("grpc", "gzip"), ("http", "none")])
def test_a_real_collector_gets_the_values(context, program, real_collector, transport):
    Measured(context, labels={"team": "core"}).sample()
    protocol, compression = transport
    running = program(
        *otel(getattr(real_collector, protocol), "--protocol", protocol, "--compression", compression)
    )
    printed = real_collector.wait_for("microsandbox.collector.last_success_timestamp")
    assert running.stop() == (0, "", "")
    for name, (_, value) in SANDBOX.items():
        part = printed[printed.index(f"Name: {name}\n") :]
        assert "-> DataType: Gauge" in part[: part.index("Value:")]
        assert float(part[part.index("Value:") + 6 :].split(None, 1)[0]) == value
        for line in ("sandbox.name: Str(box)", "sandbox.id: Int(1)", "team: Str(core)"):
            assert line in part[: part.index("Value:")]


def test_a_request(context, program, collector):
    Measured(context, labels={"b": "2", "a": "1", "sandbox.name": "not this", "secret": "x"}).sample()
    running = program(
        *otel(collector.port, "--exclude-label-key", "secret", "--resource", "deployment=test"),
        HOSTNAME="host7",
    )
    request, metadata = collector.next()
    assert running.stop()[0] == 0
    assert metadata["user-agent"].startswith("OTel-OTLP-Exporter-Python")
    [resource] = request.resource_metrics
    assert attributes(resource.resource.attributes) == {
        "service.name": "microsandbox",
        "service.instance.id": "host7",
        "deployment": "test",
    }
    [scope] = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("microsandbox-metrics-collector", "0.5.6")
    metrics = {metric.name: metric for metric in scope.metrics}
    assert metrics.keys() == SANDBOX.keys() | COUNTERS
    for name, (unit, value) in SANDBOX.items():
        [point] = metrics[name].gauge.data_points
        assert metrics[name].unit == unit
        assert point.WhichOneof("value") == ("as_double" if name in FRACTIONS else "as_int")
        assert (point.as_double if name in FRACTIONS else point.as_int) == value
        assert [pair.key for pair in point.attributes] == ["sandbox.name", "sandbox.id", "a", "b"]
        assert attributes(point.attributes) == {"sandbox.name": "box", "sandbox.id": 1, "a": "1", "b": "2"}
    for name in COUNTERS:
        total = metrics[name].sum
        assert total.is_monotonic and total.aggregation_temporality == 2 and metrics[name].unit == "1"


def test_run_and_pid_are_attributes_when_asked_for_and_labels_are_left_away(context, program, collector):
    box = Measured(context, labels={"a": "1"}).sample()
    program(*otel(collector.port, "--emit-run-id", "--emit-pid", "--no-labels"))
    [point] = collector.sandboxes()["microsandbox.uptime"].gauge.data_points
    assert attributes(point.attributes) == {
        "sandbox.name": "box",
        "sandbox.id": 1,
        "sandbox.run_id": box.row.run_id,
        "sandbox.pid": box.entry.process.pid,
    }


def test_headers(context, program, collector):
    program(*otel(collector.port, "--header", "X-Scope=a=b", "--header", "authorization=Bearer t"))
    metadata = collector.next()[1]
    assert (metadata["x-scope"], metadata["authorization"]) == ("a=b", "Bearer t")


def test_headers_may_be_in_the_environment(context, program, collector):
    program(*otel(collector.port), OTEL_EXPORTER_OTLP_HEADERS="X-Scope=env%2C1 , b=two words,")
    metadata = collector.next()[1]
    assert (metadata["x-scope"], metadata["b"]) == ("env,1", "two words")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_METRICS_HEADERS"])
@pytest.mark.parametrize(
    "bad",
    [
        "hunter2",
        "authorization: Bearer hunter2",
        "a=hunter2;b=2",
        "a=hunter2%0ab",
        "a=hunter2%C3%A9",
        "hunter2!=a",
    ],
)
def test_malformed_headers_in_the_environment_are_refused_unprinted(context, program, protocol, name, bad):
    running = program(
        *otel(1, "--protocol", protocol, "--log-level", "debug"), **{name: f"x-scope=env,,{bad}"}
    )
    code, out, err = running.wait(10)
    assert (code, out) == (1, "") and "hunter2" not in err
    assert f"{name}: expected KEY=VALUE,... with printable ASCII; number 3 is something else" in err


def test_malformed_headers_in_the_environment_do_not_matter_where_an_option_goes_before_them(
    context, program, collector
):
    words = otel(collector.port, "--header", "x-scope=a", "--log-level", "debug")
    running = program(*words, OTEL_EXPORTER_OTLP_HEADERS="hunter2")
    assert collector.next()[1]["x-scope"] == "a"
    code, _, err = running.stop()
    assert code == 0 and "hunter2" not in err


def test_what_is_too_large_for_otlp_is_the_largest_it_has(context, program, collector):
    Measured(context).sample(net_tx=(1 << 64) - 1)
    program(*otel(collector.port))
    [point] = collector.sandboxes()["microsandbox.network.bytes_sent"].gauge.data_points
    assert point.as_int == (1 << 63) - 1


@pytest.fixture
def encrypted(authority):
    pair = (authority / "server.key").read_bytes(), (authority / "server.pem").read_bytes()
    collector = Collector()
    with serving(collector, credentials=grpc.ssl_server_credentials([pair])) as collector.port:
        yield collector


def test_tls_with_a_certificate_of_ones_own(context, program, encrypted, authority):
    running = program(*otel(encrypted.port, "--ca-cert", str(authority / "ca.pem"), scheme="https"))
    assert encrypted.next()[0].resource_metrics
    assert running.stop()[0] == 0


def test_a_collector_that_nobody_vouches_for_gets_nothing(context, program, encrypted):
    running = program(*otel(encrypted.port, "--export-timeout", "1s", scheme="https"))
    assert "certificate" in running.process.stderr.readline().lower()
    assert running.stop()[0] == 1
    assert encrypted.requests.empty()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "no certificates in PEM there"),
        (b"\xff", "no certificates"),
    ],
)
def test_a_certificate_that_is_none_is_refused_at_once(context, program, tmp_path, content, reason):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    code, _, err = program(*otel(1, "--ca-cert", str(path), scheme="https")).wait()
    assert code == 1 and f"--ca-cert {path}: {reason}" in err


def test_each_collection_is_a_request_and_the_last_are_sent_at_the_end(context, program, collector):
    Measured(context).sample()
    words = ("otel", "--endpoint", f"http://127.0.0.1:{collector.port}", "--log-level", "debug")
    running = program(*words, "--collect-interval", "100ms", "--flush-interval", "1s")
    times = []
    for _ in range(8):
        [point] = collector.sandboxes()["microsandbox.uptime"].gauge.data_points
        times.append(point.time_unix_nano)
    assert times == sorted(set(times))
    assert running.stop()[0] == 0
    assert not collector.requests.empty(), "what was collected since the last flush"


def test_what_was_collected_while_the_collector_was_away_arrives_later(context, program):
    Measured(context).sample()
    port = free_port()
    running = program(*otel(port, "--export-timeout", "500ms", "--max-buffered", "3"))
    assert "Connection refused; " in running.process.stderr.readline()
    while "; 3 collections wait for the next try in " not in running.process.stderr.readline():
        pass
    collector = Collector()
    with serving(collector, port=port):
        first = collector.sandboxes()
        assert counter(first, "exports.failure") >= 1 and counter(first, "exports.success") == 0
        second = collector.sandboxes()
        assert counter(second, "exports.success") == 1 and counter(second, "exports.failure") >= 1
        times = [
            metrics["microsandbox.uptime"].gauge.data_points[0].time_unix_nano for metrics in (first, second)
        ]
        assert times == sorted(times)
        assert running.stop()[0] == 0


def test_a_last_export_that_fails_is_exit_code_1(context, program):
    running = program(
        *("otel", "--endpoint", f"http://127.0.0.1:{free_port()}", "--protocol", "http"),
        *("--export-timeout", "2s", "--log-level", "debug", "--collect-interval", "100ms"),
    )
    while "collected 0 sandboxes" not in running.process.stderr.readline():
        pass
    code, _, err = running.stop()
    assert code == 1
    assert "error: the last export failed: exporting to http://127.0.0.1:" in err
    assert "Connection refused" in err


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            307,
            {"location": "https://me:pw@elsewhere:4318/login?state=pw#pw"},
            " to https://elsewhere:4318/login",
        ),
        (301, {"location": "/v1/metrics/"}, " to http://127.0.0.1:{port}/v1/metrics/"),
        (302, {"location": "http://[pw/"}, ""),
        (304, {}, ""),
    ],
)
def test_a_redirection_is_a_failed_export(context, program, http_answers, status, headers, said):
    port = http_answers(status, **headers)
    running = program(*otel(port, "--protocol", "http", "--export-timeout", "2s"))
    line = running.process.stderr.readline()
    assert f"the answer is {status} " in line and "a redirection" + said.format(port=port) + ", which" in line
    assert " collections wait for the next try in " in line and "pw" not in line
    assert running.stop()[0] == 1


def test_a_status_that_may_pass_is_tried_again(context, program, http_answers):
    running = program(*otel(http_answers(503), "--protocol", "http", "--export-timeout", "1500ms"))
    assert "Service Unavailable encountered while exporting metrics batch, retrying" in (
        running.process.stderr.readline()
    )


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(context, program, collector, second):
    collector.hold = threading.Event()
    try:
        running = program(*otel(collector.port))
        collector.next()
        running.signal()
        with pytest.raises(Exception, match="timed out"):
            running.process.wait(0.5)
        running.signal(second)
        assert running.wait(5)[0] == -second
    finally:
        collector.hold.set()
