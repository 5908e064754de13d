"""``msb doctor``: what this host can do, and what to install or enable where it cannot."""

from __future__ import annotations

import sys
from contextlib import suppress

from microsandbox.cli import output
from microsandbox.cli.failures import FAILURE
from microsandbox.cli.model import Invocation
from microsandbox.doctor import Check, Status, run_checks
from microsandbox.errors import MicrosandboxError, TemplateError
from microsandbox.store.home import Home

_MARKS = {
    Status.OK: ("✓", (output.GREEN,)),
    Status.WARN: ("!", (output.YELLOW, output.BOLD)),
    Status.FAIL: ("✗", (output.RED, output.BOLD)),
}


def doctor(invocation: Invocation) -> int:
    """Exit code 1 when something that sandboxes need is missing."""
    home = Home.open()
    if invocation["fix"]:
        _prepare(home, quiet=bool(invocation["quiet"]))
    checks = run_checks(home)
    if invocation["format"]:
        output.write_json(
            [
                {"name": check.name, "status": check.status, "found": check.found, "fix": check.fix}
                for check in checks
            ]
        )
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            if not invocation["quiet"] or not check.ok:
                _show(check, width)
    return 0 if all(check.ok for check in checks) else FAILURE


def _prepare(home: Home, *, quiet: bool) -> None:
    """Do what can be done from here without privileges: guest kernel, template of the default shape."""
    import asyncio

    from microsandbox.sandbox.templates import templates_wanted
    from microsandbox.template.public import Template
    from microsandbox.vmm.kernel import installed_kernel, prepare_kernel

    if installed_kernel(home) is None:
        prepare_kernel(
            home, progress=None if quiet else lambda what: print(f"kernel: {what}", file=sys.stderr)
        )
    with suppress(MicrosandboxError):  # the checks say what the host lacks
        try:
            if templates_wanted():
                asyncio.run(Template.build())
        except TemplateError as error:
            output.warn(f"the memory template was not built: {error}")


def _show(check: Check, width: int) -> None:
    mark, style = _MARKS[check.status]
    name = f"{check.name:<{width}}"
    sys.stdout.write(
        f"{output.styled(mark, *style, stream=sys.stdout)} {name}  {output.printable(check.found)}\n"
    )
    if check.status is not Status.OK and check.fix:
        for line in check.fix.splitlines():
            sys.stdout.write(f"  {' ' * width}  → {output.printable(line)}\n")
