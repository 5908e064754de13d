"""Sandboxes with samples and no machine, in a real catalogue and registry; this process supervises them."""

import time

from microsandbox.metrics.registry import Entry, Registry, Sample
from microsandbox.sandbox.boot import reserve_metrics
from microsandbox.sandbox.options import SandboxConfig
from microsandbox.sandbox.rootfs import OciImage
from microsandbox.sandbox.stored_config import dump_config
from microsandbox.store.processes import ProcessIdentity


class Measured:
    """A sandbox of 256 MiB that has run for 125 s when it is sampled."""

    def __init__(self, context, name="box", labels=None, process=None):
        self.context = context
        config = SandboxConfig(name, OciImage("a", 64), memory_mib=256)
        self.row = context.sandboxes.create(name, dump_config(config), labels or {}, None)
        self.reservation = reserve_metrics(context, self.row, config)
        context.sandboxes.take_over(self.row.run_id)
        self.started = int(time.time() * 1000) - 125_000
        self._activate(process or ProcessIdentity.current())

    def _activate(self, process):
        self.entry = Entry(self.row.id, self.row.run_id, process, self.row.name, 256 << 20, self.started)
        with Registry.open(self.reservation.path) as registry:
            registry.activate(self.reservation.slot, self.entry)

    def sample(self, *, cpu=150.0, memory=14 << 20, age=0.0, disk_read=512, net_tx=0):
        at = self.started + 125_000 - int(age * 1000)
        with Registry.open(self.reservation.path) as registry:
            values = Sample(at, 1, cpu, memory, None, memory, disk_read, 6 << 20, 8, net_tx)
            registry.write(self.reservation.slot, self.entry, values)
        return self

    def retire(self):
        with Registry.open(self.reservation.path) as registry:
            registry.retire(self.reservation.slot)
