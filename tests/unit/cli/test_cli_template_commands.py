"""``msb template …`` on templates that no machine ever wrote, and the table of ``run --timings``."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from microsandbox.cli.timings import Timings
from microsandbox.runtime.trace import Trace
from microsandbox.store.config import Config
from microsandbox.store.files import partial_path
from microsandbox.store.home import Home
from microsandbox.template.store import Description, TemplateStore

BARE, ROOTED = "a1" * 16, "a2" * 16
DIGEST = f"sha256:{'c' * 64}"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def msb(home):
    env = {**os.environ, "MSB_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "TZ": "UTC"}

    def run(line):
        return subprocess.run(
            [sys.executable, "-m", "microsandbox.cli", *line.split()],
            env=env, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


@pytest.fixture
def templates(home):
    store = TemplateStore(Home(home, Config()))
    for age, (key, image) in enumerate([(BARE, None), (ROOTED, DIGEST)]):
        partial = partial_path(store.root / key)
        partial.mkdir(parents=True)
        (partial / "ram").write_bytes(b"x")
        description = Description("tcg", 2, 256, "6.1.0", "7.2.0", image, None if image is None else 64)
        template = store.publish(partial, key, description)
        os.utime(template.directory / "manifest", (1_700_000_000 - age,) * 2)
    return store


def test_list(msb, templates):
    lines = msb("template ls").stdout.splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["ID", "IMAGE", "CPUS", "MEMORY", "ACCEL"],
        ["a1a1a1a1a1a1", "-", "2", "256.0", "MiB"],
        ["a2a2a2a2a2a2", "sha256:cccccccccccc", "2", "256.0", "MiB"],
    ]
    assert lines[1].endswith("2023-11-14 22:13:20")
    assert msb("template list -q").stdout == f"{BARE}\n{ROOTED}\n"


def test_list_as_json(msb, templates):
    bare, rooted = json.loads(msb("template ls --format json").stdout)
    assert bare.pop("created_at").endswith("Z") and bare.pop("size_bytes") > 0
    assert bare == {
        "id": BARE, "image": None, "digest": None, "upper_size_mib": None, "cpus": 2, "memory_mib": 256,
        "accelerator": "tcg", "kernel": "6.1.0", "qemu": "7.2.0", "last_used_at": "2023-11-14T22:13:20.000Z",
    }  # fmt: skip
    assert (rooted["id"], rooted["digest"], rooted["upper_size_mib"]) == (ROOTED, DIGEST, 64)


def test_an_empty_list(msb):
    assert (msb("template ls").stdout, msb("template ls").stderr) == ("", "No memory templates found.\n")
    assert msb("template ls --format json").stdout == "[]\n"
    assert msb("template rm --all -q").returncode == 0


def test_remove_tries_each_and_says_what_is_wrong(msb, templates):
    done = msb("template rm a nothing a1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: 2 templates start with a; give more of the id",
        "error: template not found: nothing",
        "   ✓ Removed      a1",
        "error: some templates failed to remove",
    ]
    assert templates.ids() == [ROOTED]
    done = msb("template remove --all")
    assert (done.returncode, done.stderr) == (0, "   ✓ Removed      all templates\n")
    assert templates.ids() == []


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("template", 2, "error: a command is required\n"),
        ("template rm", 2, "error: name a template, or give --all\n"),
        ("template rm a --all", 2, "error: the argument '[ID...]' cannot be used with '--all'\n"),
        ("template build -m much", 2, 'error: --memory: invalid size "much" (expected e.g. 512M, 1G)\n'),
        ("template build -c 0 no/such", 1, "error: invalid config: cpus of a template must be 1 to 8, got"),
        ("template build -m 100T", 1, "error: invalid config: memory of 104857600 MiB is more than this h"),
        ("template build -m 0", 1, "error: invalid config: memory must be greater than 0\n"),
        ("run x -d --timings", 2, "error: the argument '--detach' cannot be used with '--timings'\n"),
    ],
)
def test_what_is_refused(msb, home, line, code, error):
    done = msb(line)
    assert done.stderr.startswith(error)
    assert (done.returncode, done.stdout) == (code, "")
    assert not (home / "templates").exists()


# run --timings


@pytest.fixture
def held(home, monkeypatch):
    """A sandbox whose supervisor has left its timings."""
    monkeypatch.setenv("MSB_HOME", str(home))
    logs = home / "sandboxes" / "box" / "logs"
    logs.mkdir(parents=True)

    def held(*, started_here):
        trace = Trace()
        for what in ("create", "guest ready"):
            trace.mark(what)
        trace.save(logs)
        return SimpleNamespace(name="box", started_here=started_here)

    return held


def table(capsys):
    shown = capsys.readouterr()
    assert shown.out == ""
    heading, *rows = [line.rsplit(maxsplit=1) for line in shown.err.splitlines()]
    return " ".join(heading), [row[0] for row in rows], [float(row[1]) for row in rows]


def test_timings_join_what_the_sandbox_and_we_know_in_the_order_of_events(held, capsys):
    timings = Timings()
    timings.take(held(started_here=True))
    timings.mark("command ended")
    timings.show()
    heading, names, milliseconds = table(capsys)
    assert heading.split() == ["WHAT", "MS", "SINCE", "CREATE"]
    assert names == ["msb started", "create", "guest ready", "command ended"]
    assert milliseconds == sorted(milliseconds)
    assert milliseconds[0] < 0 == milliseconds[1]


def test_a_sandbox_that_ran_before_has_no_part_in_it(held, capsys):
    timings = Timings()
    timings.take(held(started_here=False))
    timings.mark("command ended")
    timings.show()
    heading, names, milliseconds = table(capsys)
    assert heading.split() == ["WHAT", "MS", "SINCE", "MSB", "STARTED"]
    assert (names, milliseconds[0]) == (["msb started", "command ended"], 0)
