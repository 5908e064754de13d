"""``msb doctor``: what this host can do, and what to install or enable where it cannot."""

from __future__ import annotations

import sys

from microsandbox.cli import output
from microsandbox.cli.failures import FAILURE
from microsandbox.cli.model import Invocation
from microsandbox.doctor import run_checks
from microsandbox.store.home import Home


def doctor(invocation: Invocation) -> int:
    """Exit code 1 when something that sandboxes need is missing."""
    checks = run_checks(Home.open())
    if invocation["format"]:
        output.write_json(
            [{"name": check.name, "ok": check.ok, "found": check.found, "fix": check.fix} for check in checks]
        )
    else:
        width = max((len(check.name) for check in checks), default=0)
        for check in checks:
            good = output.styled("✓", output.GREEN, stream=sys.stdout)
            bad = output.styled("✗", output.RED, output.BOLD, stream=sys.stdout)
            name = f"{check.name:<{width}}"
            sys.stdout.write(f"{good if check.ok else bad} {name}  {output.printable(check.found)}\n")
            if not check.ok and check.fix:
                for line in check.fix.splitlines():
                    sys.stdout.write(f"  {' ' * width}  → {output.printable(line)}\n")
    return 0 if all(check.ok for check in checks) else FAILURE
