"""``python -m microsandbox.runtime``: the process that owns one sandbox's virtual machine.

    --name NAME                 the sandbox, for those who read process lists
    --parent-watch-fd 97        a pipe whose end means that the owner is gone
    --wait                      for a sandbox: all of this comes later, on descriptor 96

What to do arrives on descriptor 98, see plan.py. The process leaves without taking the interpreter down: that
takes 20 ms, which whoever stops a sandbox would wait.
"""

from __future__ import annotations

import gc
import os
import sys

if __name__ == "__main__":
    gc.disable()  # until supervise(): imports make no garbage
    if sys.argv[1:] == ["--wait"]:
        from microsandbox.runtime.standby import wait_at_descriptor

        wait_at_descriptor()
    from microsandbox.runtime.program import run

    os._exit(run(sys.argv[1:]))
