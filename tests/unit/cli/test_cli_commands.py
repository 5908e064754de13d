"""``msb`` as a user runs it, as far as no machine is needed."""

import json
import os
import subprocess
import sys
import time

import pytest

from microsandbox.sandbox.options import SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.stored_config import dump_config
from microsandbox.store.database import Database
from microsandbox.store.sandboxes import Reason, SandboxCatalog, Status


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def msb(home):
    env = {
        **os.environ,
        "MSB_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TZ": "UTC",
    }

    def run(line, **options):
        words = line.split() if isinstance(line, str) else line
        return subprocess.run(
            [sys.executable, "-m", "microsandbox.cli", *words],
            env=env, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, **options,
        )  # fmt: skip

    return run


@pytest.fixture
def catalog(home):
    catalog = SandboxCatalog(Database(home / "db" / "msb.db"))

    def add(name, status, **labels):
        config = SandboxConfig(
            name, OciImage("test/image:1", 64), cpus=2, memory_mib=256, entrypoint=("/bin/thing",),
            cmd=("a", "b"), env=(("A", "1"),), labels=labels,
        )  # fmt: skip
        row = catalog.create(name, dump_config(config), labels, None)
        (home / "sandboxes" / name).mkdir(parents=True)
        if status is not Status.RUNNING:
            catalog.end_run(row.id, row.run_id, status, Reason.COMPLETED)

    add("alpha", Status.RUNNING, team="x")
    add("beta", Status.STOPPED, team="x", tier="1")
    add("gamma", Status.CRASHED)
    return catalog


HELP = """\
Virtual machines as sandboxes

Usage: msb [OPTIONS] <COMMAND>

Sandboxes:
  run       Run a command in a sandbox
  create    Create a sandbox and boot it in the background
  start     Start stopped sandboxes
  stop      Stop sandboxes
  pause     Pause running sandboxes
  resume    Resume paused sandboxes
  list      List sandboxes [aliases: ls]
  status    Show running sandboxes [aliases: ps]
  metrics   Show what running sandboxes use
  remove    Remove sandboxes [aliases: rm]
  exec      Run a command in an existing sandbox
  logs      Show what a sandbox printed
  inspect   Show a sandbox's configuration

Images:
  image     Manage images
  pull      Download an image
  load      Load images from an archive

Other:
  template  Manage memory templates
  doctor    Check what this host can do
  help      Show help

Options:
      --error, --warn, --info, --debug, --trace  Log level on standard error (default: silent)
      --tree                                     Print the command tree
  -h, --help                                     Print help
  -V, --version                                  Print version
"""


@pytest.mark.parametrize("line", ["", "-h", "--help", "--debug", "help", "--info -h"])
def test_help(msb, line):
    done = msb(line)
    assert (done.stdout, done.stderr, done.returncode) == (HELP, "", 0)


@pytest.mark.parametrize("line", ["image rm --help", "help image rm", "image rm x -h"])
def test_help_of_a_command(msb, line):
    done = msb(line)
    assert done.returncode == 0
    assert done.stdout.splitlines()[:8] == [
        "Remove images",
        "",
        "Usage: msb image rm [OPTIONS] <REFERENCE>...",
        "",
        "Arguments:",
        "  <REFERENCE>...  Images",
        "",
        "Options:",
    ]


def test_help_does_not_show_what_is_not_there(msb):
    shown = msb("run --help").stdout + msb("--tree").stdout
    for word in ("--volume", "--port", "--secret", " ssh", "── rmi", "── images", "── sandbox"):
        assert word not in shown


def test_a_tree_needs_no_arguments(msb):
    done = msb("exec --tree")
    assert (done.stderr, done.returncode) == ("", 0)
    lines = done.stdout.splitlines()
    assert lines[0] == "msb exec                             Run a command in an existing sandbox"
    assert lines[1] == "├── <NAME>                           Sandbox"
    assert lines[2] == "├── -e, --env <KEY[=VALUE]>          Environment variable of the command"
    assert lines[-1] == "└── [-- COMMAND...]                  Command to run in the guest"


def test_the_whole_tree_nests(msb):
    lines = msb("--tree").stdout.splitlines()
    image = next(number for number, line in enumerate(lines) if line.startswith("├── image"))
    assert lines[image + 1].startswith("│   ├── pull ")
    assert lines[image + 2].startswith("│   │   ├── <REFERENCE> ")
    assert lines[-2].startswith("└── help ")
    assert lines[-1].startswith("    └── [COMMAND...] ")


def test_version(msb):
    for line in ("--version", "-V", "--debug --version"):
        assert msb(line).stdout == "msb 0.5.6\n"


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("frob", 2, "error: unrecognized command 'frob'\n\nUsage: msb [OPTIONS] <COMMAND>\n"),
        ("image", 2, "error: a command is required\n\nUsage: msb image [OPTIONS] <COMMAND>\n"),
        ("stop", 2, "error: name a sandbox, or give a --label\n"),
        ("run", 2, "error: the following arguments are required: IMAGE\n"),
        ("run x --memory much", 2, 'error: --memory: invalid size "much" (expected e.g. 512M, 1G)\n'),
        ("run x --script a=b --script-raw a=c", 2, "error: script name 'a' specified more than once\n"),
        ("ssh box", 1, "error: ssh: not supported yet by this release\n"),
        ("logs box", 1, 'error: no logs directory for sandbox "box" (sandbox not found?)\n'),
        ("logs a/b", 1, "error: invalid config: sandbox name must be usable as a file name"),
        ("logs x --since 5x", 2, 'error: --since: could not parse time "5x" (expected RFC'),
        ("logs x --source stdin", 2, 'error: --source: unknown log source "stdin"\n'),
        ("logs x --grep (", 2, "error: --grep: invalid --grep regex: "),
        ("logs x --tail -1", 2, "error: "),
        ("logs x --color never --no-color", 2, "error: the argument '--color' cannot be used with"),
        ("run x --init sh", 2, "error: --init must be an absolute path or `auto`, got: sh\n"),
        ("run x --init-arg a", 2, "error: --init-arg requires --init\n"),
        ("run x --init-env K=V", 2, "error: --init-env requires --init\n"),
        ("run x --init auto --init-env K", 2, "error: --init-env: must be KEY=VALUE, got: K\n"),
        ("run x -n a/b", 1, "error: invalid config: sandbox name must be usable as a file name"),
        ("run x --label sandbox.a=b", 1, "error: invalid config: label key 'sandbox.a' uses reserved prefix"),
        ("exec box -- ls", 1, "error: sandbox not found: box\n"),
        ("inspect box", 1, "error: sandbox not found: box\n"),
        ("help frob", 2, "error: unrecognized command 'frob'\n"),
    ],
)  # fmt: skip
def test_what_is_refused(msb, home, line, code, error):
    done = msb(line)
    assert done.stderr.startswith(error)
    assert (done.returncode, done.stdout) == (code, "")
    assert not (home / "sandboxes").exists(), "nothing is made for a line that is refused"


def test_list(msb, catalog):
    lines = msb("ls").stdout.splitlines()
    assert lines[0].split() == ["NAME", "IMAGE", "STATUS", "CREATED"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["gamma", "test/image:1", "crashed"],
        ["beta", "test/image:1", "stopped"],
        ["alpha", "test/image:1", "running"],
    ]
    assert msb("ls -q --running").stdout == "alpha\n"
    assert msb("ls -q --stopped").stdout == "gamma\nbeta\n"
    assert msb("ls -q --label team=x").stdout == "beta\nalpha\n"
    assert msb("ls -q --label team=x --label tier=1").stdout == "beta\n"
    found = json.loads(msb("ls --format json --label tier=1").stdout)
    created = found[0].pop("created_at")
    assert found == [{"name": "beta", "status": "Stopped", "image": "test/image:1"}]
    assert created.endswith("Z")


def test_empty_lists(msb):
    assert (msb("ls").stdout, msb("ls").stderr) == ("", "No sandboxes found.\n")
    assert msb("ps").stderr == "No running sandboxes.\n"
    assert msb("ps -a").stderr == "No sandboxes found.\n"
    assert msb("ls --format json").stdout == "[]\n"
    assert msb("ls -q").stderr == ""


def test_status(msb, catalog):
    lines = msb("ps").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "IMAGE", "COMMAND", "STATUS", "PORTS"],
        ["alpha", "test/image:1", '"/bin/thing', "a", 'b"', "running", "-"],
    ]
    assert msb("ps -a -q").stdout == "alpha\nbeta\ngamma\n"
    one = json.loads(msb("status beta --format json").stdout)
    assert one == {
        "name": "beta", "status": "Stopped", "image": "test/image:1", "command": "/bin/thing a b",
        "ports": [],
    }  # fmt: skip
    assert [row["name"] for row in json.loads(msb("ps --format json").stdout)] == ["alpha"]


def test_inspect(msb, catalog):
    found = json.loads(msb("inspect beta --format json").stdout)
    assert (found["name"], found["status"]) == ("beta", "Stopped")
    assert (found["config"]["cpus"], found["config"]["labels"]) == (2, {"team": "x", "tier": "1"})
    text = msb("inspect beta").stdout
    for line in (
        "Name:           beta",
        "Status:         stopped",
        "Image:          test/image:1",
        "OCI Upper:      64.0 MiB",
        "  CPUs:         2",
        "  Memory:       256.0 MiB",
        "  A:            1",
        "  tier:         1",
    ):
        assert line in text.splitlines()


def test_secrets_are_not_shown():
    from microsandbox.cli.listing import redacted

    config = {"network": {"secrets": {"secrets": [{"env_var": "KEY", "value": "hunter2"}]}}}
    assert redacted(config)["network"]["secrets"]["secrets"] == [{"env_var": "KEY", "value": "[redacted]"}]


@pytest.mark.parametrize(
    ("mount", "line"),
    [
        (
            {"type": "Tmpfs", "guest": "/tmp", "size_mib": 64, "options": {"noexec": True}},
            "/tmp → tmpfs (64 MiB) (rw,noexec)",
        ),
        (
            {
                "type": "Bind",
                "host": "/h",
                "guest": "/g",
                "stat_virtualization": "off",
                "options": {"readonly": True},
            },
            "/g → /h (ro) [stat-virt=off]",
        ),
        (
            {"type": "Named", "name": "v", "guest": "/g", "stat_virtualization": "strict"},
            "/g → volume:v (rw)",
        ),
        (
            {"type": "DiskImage", "host": "/d", "format": "Raw", "fstype": None, "guest": "/g"},
            "/g → disk:/d (Raw) [auto] (rw)",
        ),
    ],
)
def test_mounts(mount, line):
    from microsandbox.cli.listing import mount_line

    assert mount_line(mount) == line


def test_remove_tries_all_and_says_what_failed(msb, catalog):
    done = msb("rm nobody beta alpha -q")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: sandbox not found: nobody",
        "error: sandbox still running: cannot remove sandbox 'alpha': still running",
    ]
    assert msb("ls -q").stdout == "gamma\nalpha\n"


def test_remove_by_label_and_by_force(msb, catalog):
    done = msb("rm gamma gamma --label tier=1")
    assert done.stderr == "   ✓ Removed      gamma\n   ✓ Removed      beta\n"
    assert msb("rm -f nobody").returncode == 0
    done = msb("rm --label tier=1")
    assert (done.returncode, done.stderr) == (0, "warn: no sandboxes matched the given labels\n")


def test_stopping_what_is_stopped_is_fine(msb, catalog):
    assert msb("stop beta -q").returncode == 0


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_has_ended_is_neither_paused_nor_resumed(msb, catalog, verb):
    done = msb(f"{verb} beta nobody alpha -q")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.splitlines() == [
        f"error: cannot {verb} sandbox 'beta': status is Stopped (expected Running or Paused)",
        "error: sandbox not found: nobody",
        f"error: cannot {verb} sandbox 'alpha': it is still being started",
    ]
    assert msb(verb).stderr.startswith("error: name a sandbox, or give a --label\n")


def test_a_paused_one_is_listed_as_what_it_is(msb, catalog):
    catalog.set_paused(catalog.get("alpha").id, True)
    assert "paused" in msb("ls").stdout
    assert msb("ls -q --running").stdout == msb("ls -q --stopped --label team=none").stdout == ""
    assert json.loads(msb("ps --format json").stdout)[0]["status"] == "Paused"


def test_a_reader_that_goes_away_is_no_error(msb, home):
    command = f"{sys.executable} -m microsandbox.cli --tree | head -n 1; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "MSB_HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] in ("0", "141")


def test_closed_descriptors_are_survived(msb, home):
    env = {**os.environ, "MSB_HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = f"{sys.executable} -m microsandbox.cli ls <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], env=env, timeout=30).returncode == 0


@pytest.mark.parametrize(("line", "budget"), [("--version", 0.15), ("ls", 0.15)])
def test_what_is_asked_often_answers_at_once(msb, line, budget):
    """At most 150 ms above a bare interpreter; the best of several, because others use this machine."""

    def best(run):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return min(times)

    bare = best(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))
    assert best(lambda: msb(line)) - bare < budget


@pytest.mark.parametrize("line", ["--version", "ls"])
def test_nothing_heavy_is_imported_for_them(home, line):
    code = (
        f"import sys; from microsandbox.cli import main; main({line.split()}); "
        "print(*sys.modules, file=sys.stderr)"
    )
    env = {**os.environ, "MSB_HOME": str(home), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30, check=True
    )
    assert {"asyncio", "rich", "httpx", "cbor2"}.isdisjoint(done.stderr.split())
