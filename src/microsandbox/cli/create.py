"""``msb create``: a sandbox in the background."""

from __future__ import annotations

import sys

from microsandbox.cli import creation
from microsandbox.cli.interrupts import run_cancellable
from microsandbox.cli.model import Invocation


def create(invocation: Invocation) -> int:
    wanted = creation.Creation.of(invocation)
    return run_cancellable(lambda: _create(wanted))


async def _create(wanted: creation.Creation) -> int:
    sandbox = await creation.create(wanted, detached=True)
    await sandbox.detach()
    if wanted.generated:
        sys.stdout.write(f"{wanted.name}\n")
    return 0
