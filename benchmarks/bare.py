"""The least a warm start can cost: QEMU alone, resumed from the same template, to the agent's first reply.

No jail, no supervisor, no catalogue: a process, two sockets, and the configuration that makes the guest a
sandbox. What the agent says first is core.init.resolved.
"""

import os
import socket
import subprocess
import time
from contextlib import ExitStack

from microsandbox.agent.protocol import FrameSplitter, MessageType, decode
from microsandbox.runtime.first_words import first_words
from microsandbox.sandbox.mounts import implicit_tmp_mib
from microsandbox.store.files import copy_sparse
from microsandbox.store.home import Home
from microsandbox.template.shape import Shape
from microsandbox.template.store import TemplateStore
from microsandbox.vmm.host import examine_host
from microsandbox.vmm.kernel import installed_kernel
from microsandbox.vmm.machine import Disk, Handles, RamFile, qemu_arguments

_CONFIG = {
    "hostname": "bare", "machine_id": "0" * 32, "root": None, "env": [], "user": None, "scripts": [],
    "rlimits": [],
}  # fmt: skip


class BareResume:
    """Resumes the home's one template of an image, as often as it is called. Returns milliseconds."""

    def __init__(self, memory_mib=512):
        self._home = Home.open()
        self._host = examine_host(self._home, installed_kernel(self._home))
        [self._template] = [t for t in TemplateStore(self._home).all() if t.description.image]
        [self._rootfs] = (self._home.cache / "rootfs").glob("*.squashfs")
        self._memory_mib = memory_mib
        tmp = {"path": "/tmp", "size_mib": implicit_tmp_mib(memory_mib), "options": []}
        self._config = {**_CONFIG, "tmpfs": [tmp]}

    def __call__(self):
        upper = self._home.cache / "bare-upper"
        copy_sparse(self._template.upper, upper)
        with ExitStack() as stack:
            opened = [os.open(self._rootfs, os.O_RDONLY), os.open(upper, os.O_RDWR)]
            opened.append(os.open(self._template.state, os.O_RDONLY))
            for fd in opened:
                stack.callback(os.close, fd)
            disks = (Disk("rootfs", opened[0], "raw", True), Disk("upper", opened[1], "raw", False))
            shape = Shape(self._host, 1, self._memory_mib)
            machine = shape.machine(disks, RamFile(self._template.ram, shared=False), opened[2])
            pairs = [[stack.enter_context(end) for end in socket.socketpair()] for _ in range(3)]
            theirs = [end.fileno() for _, end in pairs]
            argv = qemu_arguments(machine, self._host.qemu, Handles(*theirs, ram=str(self._template.ram)))
            started = time.perf_counter()
            process = subprocess.Popen(argv, pass_fds=[*opened, *theirs])
            try:
                _, _, (agent, _) = pairs
                _configure(agent, self._config)
                return 1e3 * (_first_reply(agent) - started)
            finally:
                process.kill()
                process.wait()


def _configure(agent, config):
    head, tail = first_words(config)
    agent.sendall(head + time.time_ns().to_bytes(8) + tail)


def _first_reply(agent):
    frames = FrameSplitter()
    while not (found := list(frames.feed(agent.recv(65536)))):
        pass
    arrived = time.perf_counter()
    message = decode(found[0].body)
    assert message.kind is MessageType.INIT_RESOLVED, message
    return arrived
