"""The program as a process, and who gets its values: rotel, OpenTelemetry's own service, Prometheus."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
import rotel
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)

from microsandbox.sandbox.context import Context

ROTEL = Path(rotel.__file__).with_name("rotel-agent")
PROMETHEUS = Path(__file__).parents[2] / "build/prometheus/usr/bin/prometheus"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(ready, process, log, *, within=20):
    """Wait for somebody else's program, whose only sign of being ready is that it answers."""
    deadline = time.monotonic() + within
    while True:
        with suppress(OSError):
            if found := ready():
                return found
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@contextmanager
def ended(process):
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("OTEL_")] + ["RUST_LOG"]:
        monkeypatch.delenv(name, raising=False)
    context = Context.current()
    yield context
    context.home.metrics_registry.unlink(missing_ok=True)


class Program:
    """A running ``msb-metrics``."""

    def __init__(self, *words, **environ):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "microsandbox.exporter", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self, timeout=30):
        """Its exit code, and what it has written that was not yet read."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def stop(self, timeout=30):
        self.signal()
        return self.wait(timeout)


@contextmanager
def programs():
    """A function that starts ``msb-metrics`` with these words; all it has started end with the block."""
    started = []

    def start(*words, **environ):
        started.append(Program(*words, **environ))
        return started[-1]

    try:
        yield start
    finally:
        for running in started:
            running.process.kill()
            running.process.communicate()


@pytest.fixture
def program(context):
    """Starts ``msb-metrics`` in the test's home."""
    with programs() as start:
        yield start


class Collector(MetricsServiceServicer):
    """OpenTelemetry's own service; ``requests`` are (request, metadata) as they came."""

    def __init__(self):
        self.requests = queue.Queue()
        self.hold = None

    def Export(self, request, context):
        self.requests.put((request, dict(context.invocation_metadata())))
        if self.hold is not None:
            self.hold.wait()
        return ExportMetricsServiceResponse()

    def next(self, timeout=20):
        return self.requests.get(timeout=timeout)

    def sandboxes(self):
        """The metrics of the next request, by name, without the program's own."""
        request, _ = self.next()
        [resource] = request.resource_metrics
        [scope] = resource.scope_metrics
        return {metric.name: metric for metric in scope.metrics}


@contextmanager
def serving(collector, *, port=0, credentials=None):
    """Yields the port."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        add_MetricsServiceServicer_to_server(collector, server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


@pytest.fixture
def collector():
    """A Collector with a ``port``."""
    collector = Collector()
    with serving(collector) as collector.port:
        yield collector


@pytest.fixture
def http_answers():
    """A function that starts an HTTP server with one answer for all; it returns the port."""
    with ExitStack() as stack:

        def start(status, **headers):
            class Answer(BaseHTTPRequestHandler):
                def do_POST(self):
                    self.rfile.read(int(self.headers["content-length"]))
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

                def log_message(self, *_):
                    pass

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.shutdown)
            return server.server_port

        yield start


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A directory with ``ca.pem``, and ``server.pem`` and ``server.key`` for 127.0.0.1 that it has signed."""
    directory = tmp_path_factory.mktemp("authority")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test CA")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=collector")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return directory


class Rotel:
    """A real collector that prints what it gets."""

    def __init__(self, directory):
        self.grpc, self.http = free_port(), free_port()
        self.output = directory / "rotel.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    ROTEL, "start", "--otlp-grpc-endpoint", f"127.0.0.1:{self.grpc}",
                    "--otlp-http-endpoint", f"127.0.0.1:{self.http}", "--exporter", "blackhole",
                    "--debug-log", "metrics", "--debug-log-verbosity", "detailed",
                ],
                stdout=output,
                stderr=output,
            )  # fmt: skip

    def listens(self):
        for port in (self.grpc, self.http):
            socket.create_connection(("127.0.0.1", port), 1).close()
        return True

    def wait_for(self, text):
        """What it has printed, once that text is there."""
        return wait_until(
            lambda: (found := self.output.read_text()) if text in self.output.read_text() else None,
            self.process,
            self.output,
        )


@pytest.fixture
def real_collector(tmp_path):
    running = Rotel(tmp_path)
    with ended(running.process):
        wait_until(running.listens, running.process, running.output)
        yield running


class Prometheus:
    """A real Prometheus that scrapes one address every 200 ms."""

    def __init__(self, directory, target):
        self.url = f"http://127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [{"job_name": "sandboxes", "static_configs": [{"targets": [target]}]}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(config))
        self.log = directory / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    PROMETHEUS, "--config.file", directory / "prometheus.yml",
                    "--storage.tsdb.path", directory / "tsdb",
                    "--web.listen-address", self.url.removeprefix("http://"),
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip

    def query(self, expression):
        """What its API answers: a list of (labels, value)."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=5) as answer:
            found = json.load(answer)["data"]["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def wait_for(self, expression):
        return wait_until(lambda: self.query(expression), self.process, self.log)


@pytest.fixture
def prometheus(tmp_path):
    """Starts a Prometheus that scrapes a URL."""
    running = []

    def start(url):
        running.append(Prometheus(tmp_path, url.split("/")[2]))
        return running[-1]

    yield start
    for started in running:
        with ended(started.process):
            pass
