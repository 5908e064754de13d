"""podman to compare with: a storage of its own for a while, and a way past a mixture of cgroup versions."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.measure import report

PACKAGES = ("podman", "crun", "containernetworking-plugins")
#: Where a host that still uses cgroups version 1 mounts version 2 beside them; crun refuses such a mixture.
_UNIFIED = Path("/sys/fs/cgroup/unified")
# Containers would ask for more, which fails where raising limits is forbidden.
_LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=10000:10000"]


class Podman:
    """podman with a storage of its own; each method returns the argv of one podman command."""

    def __init__(self, storage):
        self._base = ["podman", "--root", f"{storage}/root", "--runroot", f"{storage}/run"]

    def command(self, *arguments):
        return [*self._base, *arguments]

    def run(self, *arguments):
        return self.command("run", *_LIMITS, *arguments)


def podman_usable():
    """Whether podman can be compared with; says what is missing.

    Does not return on a host with both cgroup versions: this program starts again, in a mount namespace
    without the second one, so that podman and we are measured in the same place.
    """
    if not shutil.which("podman") or not shutil.which("crun"):
        report("podman", "skipped: not installed", f"apt-get install {' '.join(PACKAGES)}")
        return False
    if _UNIFIED.is_mount():
        if os.geteuid() != 0:
            report("podman", "skipped: not root", f"only root can take {_UNIFIED} out of podman's way")
            return False
        again = [sys.executable, *sys.orig_argv[1:]]
        script = f'umount -l {_UNIFIED} && exec "$@"'
        os.execvp("unshare", ["unshare", "--mount", "sh", "-c", script, "sh", *again])
    return True


@contextmanager
def podman(archive):
    """A Podman that has the image of ``archive``; its containers and storage go at the end."""
    with tempfile.TemporaryDirectory(prefix="podman-") as storage, ExitStack() as stack:
        tool = Podman(storage)
        stack.callback(_unmount_below, storage)
        stack.callback(_quietly, tool.command("rm", "--all", "--force", "--time", "0"))
        _quietly(tool.command("load", "--quiet", "--input", str(archive)))
        yield tool


def _quietly(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")


def _unmount_below(directory):
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):  # the innermost first
        if Path(point).is_relative_to(directory):
            subprocess.run(["umount", "--lazy", point], check=True)
