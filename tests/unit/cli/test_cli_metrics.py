"""`msb metrics`: its table, its JSON, its view over time, and what it says when there is nothing."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from microsandbox.cli.metrics_view import PLOT_WIDTH, MetricsView, plot
from microsandbox.metrics.registry import Entry, Registry, Reservation, Sample
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.stored_config import dump_config
from microsandbox.store.processes import ProcessIdentity
from microsandbox.types import SandboxMetrics

STARTED = 1_700_000_000_000
MSB = [sys.executable, "-m", "microsandbox.cli"]


@pytest.fixture
def context(context, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    return context


@pytest.fixture
def msb(context):
    def msb(line):
        return subprocess.run([*MSB, *line.split()], capture_output=True, text=True, input="", timeout=60)

    return msb


@pytest.fixture
def run(context):
    """Make a sandbox whose supervisor this process is, with one sample."""

    def run(name, **changes):
        config = SandboxConfig(name, OciImage("a", 64), **changes)
        row = context.sandboxes.create(name, dump_config(config), {}, None)
        context.sandboxes.take_over(row.run_id)
        entry = Entry(row.id, row.run_id, ProcessIdentity.current(), name, 512 << 20, STARTED)
        slot = Reservation.make(context.home.metrics_registry, 16, entry).slot
        with Registry.open(context.home.metrics_registry) as registry:
            registry.activate(slot, entry)
            measured = Sample(STARTED + 125_000, 7, 12.5, 14 << 20, None, 14 << 20, 512, 2048, 0, 0)
            registry.write(slot, entry, measured)

    return run


def test_a_table_of_all_by_name(msb, run):
    run("zeta")
    run("alpha")
    done = msb("metrics")
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    assert header == [
        "NAME", "CPU", "MEMORY", "DISK READ", "DISK WRITE", "NET RX", "NET TX", "UPTIME", "TIMESTAMP",
    ]  # fmt: skip
    values = [
        "12.5%",
        "14.0 MiB / 512.0 MiB",
        "512 B",
        "2.0 KiB",
        "0 B",
        "0 B",
        "2m5s",
        "2023-11-14 22:15:25",
    ]
    assert rows == [["alpha", *values], ["zeta", *values]]


def test_json_is_an_object_for_one_and_an_array_for_all(msb, run):
    run("box")
    one = json.loads(msb("metrics box --format json").stdout)
    assert one == {
        "name": "box", "timestamp": "2023-11-14T22:15:25.000Z", "cpu_percent": 12.5, "vcpu_time_ns": 7,
        "memory_bytes": 14 << 20, "memory_available_bytes": None, "memory_host_resident_bytes": 14 << 20,
        "memory_limit_bytes": 512 << 20, "disk_read_bytes": 512, "disk_write_bytes": 2048,
        "net_rx_bytes": 0, "net_tx_bytes": 0, "uptime_secs": 125.0,
    }  # fmt: skip
    assert json.loads(msb("metrics --format json").stdout) == [one]


def test_nothing_to_show(msb, run):
    done = msb("metrics")
    assert (done.stdout, done.stderr, done.returncode) == ("", "No running sandboxes.\n", 0)
    assert msb("metrics --format json").stdout == "[]\n"
    done = msb("metrics nobody")
    assert (done.stderr, done.returncode) == ("error: sandbox not found: nobody\n", 1)
    run("off", disable_metrics_sample=True)
    done = msb("metrics off")
    assert (done.stderr, done.returncode) == ("error: metrics disabled for sandbox: off\n", 1)


@pytest.mark.parametrize("option", ["-w 0", "-w 0.05", "--interval soon"])
def test_an_interval_is_at_least_a_tenth_of_a_second(msb, option):
    done = msb(f"metrics {option}")
    assert done.returncode == 2 and "interval" in done.stderr


def test_a_view_needs_a_terminal(msb):
    done = msb("metrics --watch")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --watch needs a terminal, or --format json\n")


def test_without_a_terminal_each_sample_is_one_line_of_json(run):
    run("box")
    process = subprocess.Popen(
        [*MSB, "metrics", "-w", "0.1", "--format", "json"], stdout=subprocess.PIPE, text=True
    )
    assert json.loads(process.stdout.readline())["name"] == "box"
    time.sleep(0.5)
    process.terminate()
    assert process.communicate(timeout=10)[0] == "", "the same sample twice"
    assert process.returncode == 143


def test_the_view_is_drawn_until_ctrl_c_and_leaves_the_terminal_as_it_was(run):
    run("box")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MSB, "metrics", "box", "-w", "0.1"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "COLUMNS": "140", "LINES": "20", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while shown.count(b"12.5%") < 3:
        shown += os.read(ours, 4096)
    process.send_signal(2)
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the end of a pseudo-terminal
        pass
    os.close(ours)
    assert process.wait(10) == 130
    assert b"DISK R/s" in shown and b"14.0 MiB / 512.0 MiB" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor stays hidden"
    assert b"Traceback" not in shown


def sample(at, cpu=0.0, memory=0, written=0, uptime=None):
    return SandboxMetrics(
        cpu, 0, memory, None, None, 100, 0, written, 0, 0, at if uptime is None else uptime, float(at)
    )


def drawn(*steps):
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    view = MetricsView(console)
    with view:
        for step in steps:
            view.show(step)
        console.print(view.table())
    return console.file.getvalue()


def test_rates_are_of_the_last_two_samples():
    shown = drawn({"box": sample(1000, written=100)}, {"box": sample(3000, written=4196)})
    assert "2.0 KiB" in shown
    again = {"box": sample(9000, written=0, uptime=10)}
    assert "2.0 KiB" not in drawn({"box": sample(1000, written=100)}, again), "a restart is no rate"


def test_names_and_plots_are_shown():
    shown = drawn({"a[bold]\x1b": sample(1000, cpu=100.0, memory=50)})
    assert "a[bold]\N{REPLACEMENT CHARACTER}" in shown and "█" in shown and "▄" in shown


@pytest.mark.parametrize(
    ("values", "top", "bars"),
    [
        ([], 1, ""),
        ([0, 1, 50, 100, 200], 100, " ▁▄██"),
        ([5], 0, " "),
        ([-1], 1, " "),
        ([1] * 100, 1, "█" * PLOT_WIDTH),
    ],
)
def test_plots(values, top, bars):
    assert plot(values, top) == bars.rjust(PLOT_WIDTH)
