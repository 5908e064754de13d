"""The numbers that a supervisor's descriptors have when it starts, and QEMU's when that does."""

from __future__ import annotations

WATCHDOG_FD, PLAN_FD = 97, 98
#: Where one that waits for a sandbox is told of it.
STANDBY_FD = 96
#: Disks, in the order of the plan.
FIRST_DISK_FD = 100
#: QEMU's ends of its sockets, and the saved state of devices that it goes on from.
ERRORS_FD, QMP_FD, CONSOLE_FD, AGENT_FD, STATE_FD = 90, 91, 92, 93, 94
#: Files that QEMU has to be handed open.
FIRST_SHOWN_FD, LAST_SHOWN_FD = 80, 89
