"""One parser for sizes, one for durations."""

import pytest

from microsandbox.units import (
    format_bytes,
    format_duration,
    format_duration_precise,
    parse_duration,
    parse_size_mib,
)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("512", 512),
        ("512M", 512),
        ("512m", 512),
        ("1.5G", 1536),
        ("2GiB", 2048),
        ("1T", 1 << 20),
        ("2048K", 2),
        ("1 gb", 1024),
    ],
)
def test_sizes(text, mib):
    assert parse_size_mib(text) == mib


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1.2.3G", "nan", "inf", "99999999T"])
def test_bad_sizes_are_refused_by_name(text):
    with pytest.raises(ValueError, match="size"):
        parse_size_mib(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30", 30),
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1d", 86400),
        ("1.5", 1.5),
    ],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "5 parsecs", "1h-", "nan", "inf"])
def test_bad_durations_are_refused_by_name(text):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_formats():
    assert [format_bytes(n) for n in (512, 14 << 20, 3 << 40)] == ["512 B", "14.0 MiB", "3.0 TiB"]
    assert [format_duration(s) for s in (59.9, 125)] == ["59.9s", "2m5s"]
    assert [format_duration_precise(s) for s in (0.2, 1.5, 30, 5e-6)] == ["200ms", "1.5s", "30s", "5µs"]
