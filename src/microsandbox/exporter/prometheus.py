"""Collections in Prometheus's text format, version 0.0.4.

Names are those that Prometheus itself makes of the OTLP ones, so that a dashboard fits both ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from microsandbox.exporter.collection import Collection, Reading
from microsandbox.exporter.series import SANDBOX_SERIES, Series

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNITS = {"1": "ratio", "By": "bytes", "s": "seconds"}
_INVALID = re.compile(r"[^a-zA-Z0-9_]")
_VALUE_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render(collection: Collection) -> str:
    """The body of a scrape; without time stamps, as it is of now."""
    labels = [_labels(reading) for reading in collection.readings]
    return "".join(f"{line}\n" for series in SANDBOX_SERIES for line in _lines(series, collection, labels))


def _lines(series: Series, collection: Collection, labels: list[str]) -> Iterator[str]:
    name = metric_name(series)
    yield f"# HELP {name} {series.description}"
    yield f"# TYPE {name} gauge"
    for of, reading in zip(labels, collection.readings, strict=True):
        if (value := series.value(reading)) is not None:
            yield f"{name}{{{of}}} {value!r}"


def metric_name(series: Series) -> str:
    """With its unit, unless the name says it."""
    words, unit = re.split(r"[._]", series.name), _UNITS[series.unit]
    return "_".join(words if unit in words else [*words, unit])


def _labels(reading: Reading) -> str:
    """Labels whose names become one are joined; none takes the place of the sandbox's own."""
    found: dict[str, str] = {}
    for key, value in reading.labels:
        name = _label_name(key)
        found[name] = f"{found[name]};{value}" if name in found else value
    found |= {"sandbox_name": reading.name, "sandbox_id": str(reading.sandbox_id)}
    return ",".join(f'{name}="{value.translate(_VALUE_ESCAPES)}"' for name, value in found.items())


def _label_name(key: str) -> str:
    name = _INVALID.sub("_", key)
    if name[:1].isalpha():
        return name
    return f"key{name}" if name.startswith("_") else f"key_{name}"
