"""``python jailed.py KIND SCRIPT``: run a shell script in QEMU's jail; a process of its own, as jails need.

Busybox is the only file in the jail. KIND may be "old-namespaces": those of a kernel before 5.12.
"""

import os
import socket
import sys

from microsandbox.vmm import linux
from microsandbox.vmm.jail import Jailed, start
from microsandbox.vmm.jail_kind import JailKind

BUSYBOX = "/bin/busybox"


def main() -> int:
    kind, script = sys.argv[1:]
    if kind.startswith("old-"):
        linux.restrict_mounts = lambda _top: False
        kind = kind.removeprefix("old-")
    ours, theirs = socket.socketpair()
    secret = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(secret, True)  # a descriptor that somebody forgot must not get in either
    jailed = Jailed(
        (BUSYBOX, "sh", "-c", script), {BUSYBOX: BUSYBOX}, (), theirs.fileno(), JailKind(kind), 42
    )
    process = start(jailed)
    theirs.close()
    while piece := ours.recv(4096):
        os.write(1, piece)
    return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
