"""The two modes without OTLP, as processes: lines for a reader, a page for a real Prometheus."""

import json
import re
import signal
import subprocess
import urllib.request

import pytest

from tests.exporter.conftest import PROMETHEUS
from tests.measured import Measured

QUICK = ("--collect-interval", "100ms", "--flush-interval", "100ms")
LINE = (
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z sandbox=box id=1 cpu=1\.500000 mem=14\.0 MiB / 256\.0 MiB "
    r"disk_r=512 B disk_w=6\.0 MiB net_rx=8 B net_tx=0 B uptime=2m5s labels=\{team=core\}\n"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_lines_until_a_signal(context, program, number):
    Measured(context, labels={"team": "core"}).sample()
    running = program("stdout", *QUICK)
    for _ in range(3):
        assert re.fullmatch(LINE, running.process.stdout.readline())
    running.signal(number)
    code, out, err = running.wait()
    assert (code, err) == (0, "") and all(re.fullmatch(LINE, f"{line}\n") for line in out.splitlines())


def test_another_home(context, program, tmp_path):
    Measured(context).sample()
    running = program("stdout", *QUICK, "--msb-home", str(tmp_path / "home"), MSB_HOME="/nonexistent")
    assert "sandbox=box" in running.process.stdout.readline()
    running = program("stdout", *QUICK, "--msb-home", str(tmp_path / "other"))
    assert "(no active sandboxes)" in running.process.stdout.readline()
    assert not (tmp_path / "other").exists()


def test_a_reader_that_goes_away_ends_it(context, program):
    running = program("stdout", *QUICK)
    running.process.stdout.readline()
    running.process.stdout.close()
    assert running.process.wait(10) == 141


def test_a_sandbox_that_starts_and_ends_is_seen(context, program):
    running = program("stdout", *QUICK)
    assert "(no active" in running.process.stdout.readline()
    box = Measured(context).sample()
    while "sandbox=box" not in (line := running.process.stdout.readline()):
        assert "(no active" in line
    box.retire()
    while "(no active" not in (line := running.process.stdout.readline()):
        assert "sandbox=box" in line


def test_trouble_with_the_registry_is_told_once_as_json(context, program):
    context.home.metrics_registry.write_bytes(b"x" * 600)
    context.home.metrics_registry.chmod(0o600)
    running = program("stdout", *QUICK, "--log-format", "json")
    told = json.loads(running.process.stderr.readline())
    assert (told["level"], told["target"]) == ("WARN", "microsandbox.exporter.program")
    assert told["fields"]["message"].startswith("cannot read the metrics registry: invalid registry magic")
    context.home.metrics_registry.unlink()
    assert "(no active" in running.process.stdout.readline()
    assert running.stop()[2] == ""


def served(running):
    """The URL that it says it serves."""
    return running.process.stderr.readline().split()[-1]


def test_prometheus_has_the_values(context, program, prometheus):
    box = Measured(context, labels={"team": 'the "core"\nteam'}).sample()
    running = program("prometheus", "--listen", "127.0.0.1:0")
    url = served(running)
    scraping = prometheus(url)
    [(labels, value)] = scraping.wait_for("microsandbox_cpu_utilization_ratio")
    assert value == 1.5
    assert labels == {
        "__name__": "microsandbox_cpu_utilization_ratio",
        "instance": url.split("/")[2],
        "job": "sandboxes",
        "sandbox_name": "box",
        "sandbox_id": "1",
        "team": 'the "core"\nteam',
    }
    box.sample(cpu=25.0)
    scraping.wait_for("microsandbox_cpu_utilization_ratio == 0.25")
    names = {labels["__name__"] for labels, _ in scraping.query('{__name__=~"microsandbox_.*"}')}
    assert len(names) == 8
    box.retire()
    scraping.wait_for("absent(microsandbox_uptime_seconds)")
    assert scraping.query("up")[0][1] == 1
    assert running.stop()[0] == 0


def test_promtool_finds_nothing_wrong_with_the_page(context, program):
    Measured(context, labels={"a.b": "c"}).sample()
    url = served(program("prometheus", "--listen", "127.0.0.1:0"))
    with urllib.request.urlopen(url, timeout=5) as answer:
        page = answer.read()
    checked = subprocess.run(
        [PROMETHEUS.with_name("promtool"), "check", "metrics"], input=page, capture_output=True
    )
    assert (checked.returncode, checked.stderr) == (0, b"")


def test_an_address_that_is_in_use_is_one_sentence(context, program):
    address = served(program("prometheus", "--listen", "127.0.0.1:0")).split("/")[2]
    code, _, err = program("prometheus", "--listen", address).wait()
    assert code == 1 and err.startswith(f"error: cannot listen at {address}: ")
    assert "address already in use" in err
