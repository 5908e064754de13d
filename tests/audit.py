"""What a test may not leave behind: processes, sockets, locks, temporary files, rows that lie.

Builders of templates may outlive the sandbox that started them: they are waited for, not blamed.
"""

import fcntl
import os
import select
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from microsandbox.metrics.registry import Registry
from microsandbox.sandbox.context import Context
from microsandbox.store.config import Config
from microsandbox.store.files import PARTIAL_PREFIX
from microsandbox.store.home import Home
from microsandbox.vmm.jail import FIRST_UID


def supervisors(home):
    """Pids of the supervisors that belong to this home: they, and nobody else, have a runtime log open.

    Not by command line: one that waited for a sandbox, or was forked by `msb run`, has another.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if any(path.startswith(f"{home}/") and "/runtime.log" in path for path in _open(entry)):
                    found.append(int(entry.name))
    return found


def builders(home):
    """Pids of the template builders of this home."""
    module = "microsandbox.runtime.template_builder"
    mark = f"MSB_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = module.encode() in (entry / "cmdline").read_bytes().split(b"\0")
                if ours and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_for_builders(home, *, within=120):
    """Wait until no template of this home is being built."""
    for pid in builders(home):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([pidfd], [], [], within)[0], f"the template builder {pid} does not end"
        finally:
            os.close(pidfd)


def machines(home=None):
    """Pids of the jailed QEMU processes that are alive; of a home, those that have a disk in it."""
    lowest = FIRST_UID if os.geteuid() == 0 else os.geteuid()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                ours = entry.stat().st_uid >= lowest and (entry / "comm").read_text().startswith(
                    "qemu-system"
                )
                if ours and state not in "ZX" and (home is None or _has_open(entry, home)):
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def _has_open(process, home):
    return any(path.startswith(f"{home}/") for path in _open(process))


def _open(process):
    paths = []
    for entry in (process / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            paths.append(os.readlink(entry))
    return paths


def machine_of(supervisor):
    """Pid of a supervisor's QEMU."""
    [machine] = machines() & set(children_of(supervisor))
    return machine


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def leftovers(home):
    """Everything in the home that ended sandboxes and builders should not have left."""
    home = Path(home)
    wait_for_builders(home)
    rows = Context.current().sandboxes.list()  # looking also settles what crashed
    found = [f"row {row.name} is {row.status}" for row in rows if not row.status.terminal]
    found += [f"run {run} of an ended sandbox is Running" for run in _lying_runs(home)]
    names = {row.name for row in rows}
    found += [f"directory {path}" for path in home.glob("sandboxes/*") if path.name not in names]
    found += [f"supervisor {pid}" for pid in supervisors(home)]
    found += [f"socket {path}" for path in home.glob("run/agent/*.sock")]
    found += [f"temporary {path}" for path in home.rglob(f"{PARTIAL_PREFIX}*")]
    found += [f"metrics of {record.entry.name}" for record in metrics(home) if record.state in IN_USE]
    for path in home.glob("sandboxes/*/upper.ext4"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(f"lock {path}")
    return found


def _lying_runs(home):
    """Ids of runs that are said to go on, of sandboxes that have ended or are gone."""
    living = "SELECT id FROM sandbox WHERE status NOT IN ('Stopped', 'Crashed')"
    with closing(sqlite3.connect(home / "db" / "msb.db", timeout=30)) as connection:
        query = f"SELECT id FROM run WHERE status = 'Running' AND sandbox_id NOT IN ({living})"
        return [run for (run,) in connection.execute(query)]


#: Reserved, active.
IN_USE = (1, 2)


def metrics(home):
    """What is in the metrics registry of a home."""
    try:
        with Registry.open(Home(home, Config()).metrics_registry) as registry:
            return list(registry.records())
    except FileNotFoundError:
        return []


def wait_clean(home, *, within):
    """Fail unless nothing is left ``within`` seconds."""
    deadline = time.monotonic() + within
    while found := leftovers(home):
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind after {within} s: {found}")
        time.sleep(0.05)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))
