"""What the jail costs: time to QEMU's QMP greeting inside it and outside, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import interleaved
from microsandbox.store.home import Home
from microsandbox.vmm.architecture import host_architecture
from microsandbox.vmm.host import examine_host
from microsandbox.vmm.kernel import installed_kernel
from microsandbox.vmm.machine import BootKernel, Handles, Machine, qemu_arguments
from microsandbox.vmm.qemu import launch


def jail_cost():
    """Milliseconds. Measured elsewhere: jails are only made by single-threaded processes."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.jail"], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main():
    home = Home.open()
    kernel = installed_kernel(home)
    assert kernel is not None, "prepare the guest kernel first: make setup"
    host = examine_host(home, kernel)
    boot = BootKernel(kernel.vmlinux, kernel.initramfs)
    machine = Machine(host_architecture(), host.accelerator.accelerator, 1, 512, boot)

    def jailed():
        started = time.perf_counter()
        vm = launch(machine, host.qemu, host.jail.kind, identity=1)
        assert vm.qmp.recv(8), vm.errors.recv(4096)
        elapsed = 1e3 * (time.perf_counter() - started)
        vm.kill()
        vm.reap()
        vm.close()
        return elapsed

    def bare():
        pairs = [socket.socketpair() for _ in range(3)]
        fds = [theirs.fileno() for _, theirs in pairs]
        handles = Handles(*fds, kernel=str(kernel.vmlinux), initramfs=str(kernel.initramfs))
        started = time.perf_counter()
        process = subprocess.Popen(qemu_arguments(machine, host.qemu, handles), pass_fds=fds, env=os.environ)
        pairs[0][0].recv(8)
        elapsed = 1e3 * (time.perf_counter() - started)
        process.kill()
        process.wait()
        for pair in pairs:
            for end in pair:
                end.close()
        return elapsed

    medians = interleaved(15, jailed=jailed, bare=bare)
    print(medians["jailed"] - medians["bare"])


if __name__ == "__main__":
    assert len(os.listdir("/proc/self/task")) == 1
    os.chdir(Path(__file__).parents[1])
    main()
