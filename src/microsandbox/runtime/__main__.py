"""``python -m microsandbox.runtime``: the process that owns one sandbox's virtual machine.

    --name NAME                 the sandbox, for those who read process lists
    --parent-watch-fd 97        a pipe whose end means that the owner is gone

What to do arrives on descriptor 98, see plan.py.
"""

from __future__ import annotations

import sys

from microsandbox.runtime.program import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
