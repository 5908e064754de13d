"""OTLP to a collector, by OpenTelemetry's own exporters: one request for each collection.

The SDK's meters and readers are not used: they would take measurements at the time of the export, and these
were taken before. This module needs the extra ``otel``.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import certifi
import grpc
import requests
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_HEADERS,
    OTEL_EXPORTER_OTLP_METRICS_HEADERS,
)
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.util.re import parse_env_headers

from microsandbox.errors import InvalidConfigError
from microsandbox.exporter.arguments import OtelSettings, check_header
from microsandbox.exporter.collection import Collection, Reading
from microsandbox.exporter.pipeline import Exporter, ExportError, Health
from microsandbox.exporter.series import SANDBOX_SERIES, Number
from microsandbox.version import VERSION

_SCOPE = "microsandbox-metrics-collector"
_HTTP_PATH = "/v1/metrics"
#: OTLP's integers have a sign.
_MOST = (1 << 63) - 1
_MOST_CERTIFICATES = 1 << 20
_LONGEST_TARGET = 200

Attributes = dict[str, str | int]


class OtelExporter(Exporter):
    """Sends to one collector. ``timeout`` is in seconds, for each export and its retries.

    Raises InvalidConfigError.
    """

    def __init__(self, settings: OtelSettings, timeout: float) -> None:
        if settings.http or not settings.headers:  # gRPC's exporter takes either
            _check_headers(os.environ)
        self._settings = settings
        self._started = time.time_ns()
        self._resource = Resource(_resource(settings, os.environ))
        self._words = _LastWords.listen(2 if settings.http else 1)
        self._exporter = (_http if settings.http else _grpc)(settings, timeout)

    def export(self, collection: Collection, health: Health) -> None:
        data = self._data(collection, health)
        self._words.texts.clear()
        if self._exporter.export(data) is not MetricExportResult.SUCCESS:
            reason = "; ".join(self._words.texts) or "the exporter gave no reason"
            raise ExportError(f"exporting to {self._settings.endpoint} failed: {reason}")

    def close(self) -> None:
        self._exporter.shutdown()

    def _data(self, collection: Collection, health: Health) -> MetricsData:
        scope = ScopeMetrics(
            InstrumentationScope(_SCOPE, VERSION), [*self._sandboxes(collection), *self._own(health)], ""
        )
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _sandboxes(self, collection: Collection) -> list[Metric]:
        at = int(collection.time * 1e9)
        attributes = [self._attributes(reading) for reading in collection.readings]
        metrics = []
        for series in SANDBOX_SERIES:
            values = map(series.value, collection.readings)
            points = [
                NumberDataPoint(of, 0, at, _fitting(value))
                for of, value in zip(attributes, values, strict=True)
                if value is not None
            ]
            if points:
                metrics.append(Metric(series.name, series.description, series.unit, Gauge(points)))
        return metrics

    def _attributes(self, of: Reading) -> Attributes:
        ours: Attributes = {"sandbox.name": of.name, "sandbox.id": of.sandbox_id}
        if self._settings.run_id:
            ours["sandbox.run_id"] = of.run_id
        if self._settings.pid:
            ours["sandbox.pid"] = of.pid
        return ours | {key: value for key, value in of.labels if key not in ours}

    def _own(self, health: Health) -> list[Metric]:
        """How this program does."""
        now = time.time_ns()
        prefix = "microsandbox.collector."
        counters = (
            ("exports.success", "Exports that succeeded.", health.succeeded),
            ("exports.failure", "Exports that failed.", health.failed),
            ("collections.dropped", "Collections given up because none could be exported.", health.dropped),
        )
        metrics = [
            Metric(
                prefix + name,
                description,
                "1",
                Sum(
                    [NumberDataPoint({}, self._started, now, value)], AggregationTemporality.CUMULATIVE, True
                ),
            )
            for name, description, value in counters
        ]
        if (last := health.last_success) is not None:
            point = NumberDataPoint({}, 0, now, last)
            description = "When an export last succeeded."
            metrics.append(Metric(prefix + "last_success_timestamp", description, "s", Gauge([point])))
        return metrics


class _LastWords(logging.Handler):
    """OpenTelemetry's exporters tell the log, and nobody else, why they failed: in their last lines of it."""

    def __init__(self, lines: int) -> None:
        super().__init__(logging.WARNING)
        self.texts: deque[str] = deque(maxlen=lines)

    @classmethod
    def listen(cls, lines: int) -> _LastWords:
        source = logging.getLogger("opentelemetry")
        source.addHandler(handler := cls(lines))
        source.propagate = source.getEffectiveLevel() <= logging.DEBUG
        return handler

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _fitting(value: Number) -> Number:
    return min(value, _MOST) if isinstance(value, int) else value


def _resource(settings: OtelSettings, environ: Mapping[str, str]) -> dict[str, str]:
    attributes = {"service.name": "microsandbox"}
    if instance := environ.get("HOSTNAME") or environ.get("COMPUTERNAME"):
        attributes["service.instance.id"] = instance
    return attributes | dict(settings.resource)


def _grpc(settings: OtelSettings, timeout: float) -> GrpcExporter:
    return GrpcExporter(
        endpoint=settings.endpoint,
        insecure=urlsplit(settings.endpoint).scheme == "http",
        credentials=None if settings.ca_cert is None else _trusting(settings.ca_cert),
        headers=_headers(settings.headers),
        timeout=timeout,
        compression=grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression,
    )


def _http(settings: OtelSettings, timeout: float) -> HttpExporter:
    return HttpExporter(
        endpoint=signal_url(settings.endpoint),
        headers=dict(settings.headers) or None,
        timeout=timeout,
        compression=HttpCompression.NoCompression,
        session=_without_redirections(),
    )


def _without_redirections() -> requests.Session:
    """OpenTelemetry 1.45 does not follow a redirection, and takes it for success."""
    session = requests.Session()
    session.hooks["response"].append(_refuse_redirection)
    return session


def _refuse_redirection(response: requests.Response, **_: Any) -> None:
    if 300 <= response.status_code < 400:
        response.close()
        target = _target(response)
        raise requests.RequestException(
            f"the answer is {response.status_code} {response.reason}, a redirection"
            f"{f' to {target}' if target else ''}, which is not followed"
        )


def _target(response: requests.Response) -> str | None:
    """Where a redirection points to, without what may be a secret."""
    try:
        url = urlsplit(urljoin(response.url, response.headers["location"]))
    except (KeyError, ValueError):
        return None
    return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))[:_LONGEST_TARGET]


def _headers(headers: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]] | None:
    """None leaves it to OTEL_EXPORTER_OTLP_HEADERS, where secrets are not in anybody's list of processes."""
    return headers or None


def _check_headers(environ: Mapping[str, str]) -> None:
    """OpenTelemetry leaves out what it cannot read, with a message that has the secret."""
    logging.getLogger(parse_env_headers.__module__).disabled = True
    names = (OTEL_EXPORTER_OTLP_METRICS_HEADERS, OTEL_EXPORTER_OTLP_HEADERS)
    name = next(filter(environ.get, names), None)
    for number, pair in enumerate(environ[name].split(",") if name else (), 1):
        if not pair.strip():
            continue
        try:
            [(key, value)] = parse_env_headers(pair, liberal=True).items()
            check_header(key, value)
        except ValueError:  # its text may have what was meant to be a value
            raise InvalidConfigError(
                f"{name}: expected KEY=VALUE,... with printable ASCII; number {number} is something else"
            ) from None


def signal_url(endpoint: str) -> str:
    """Where an endpoint takes metrics by HTTP: one with a path is meant as it is."""
    url = urlsplit(endpoint)
    return urlunsplit(url._replace(path=_HTTP_PATH)) if url.path in ("", "/") else endpoint


def _trusting(path: Path) -> grpc.ChannelCredentials:
    """The public roots, and those in a file. Raises InvalidConfigError."""
    try:
        with path.open("rb") as file:
            own = file.read(_MOST_CERTIFICATES + 1)
        if len(own) > _MOST_CERTIFICATES:
            raise ValueError("larger than 1 MiB")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=own.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise InvalidConfigError(f"--ca-cert {path}: no certificates in PEM there: {error}") from error
    except OSError as error:
        raise InvalidConfigError(f"--ca-cert {path}: {error.strerror}") from error
    public = Path(certifi.where()).read_bytes()
    return grpc.ssl_channel_credentials(root_certificates=public + b"\n" + own)
