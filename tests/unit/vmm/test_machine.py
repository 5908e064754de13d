"""A machine's description as a command line: what is in it, and that QEMU itself accepts all of it."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from microsandbox.store.home import Home
from microsandbox.vmm.architecture import AARCH64, X86_64, host_architecture
from microsandbox.vmm.installation import find_installation
from microsandbox.vmm.machine import Accelerator, Disk, Handles, Machine, QemuInstallation, qemu_arguments

QEMU = QemuInstallation("/usr/bin/qemu", "7.2.0", "/usr/share/qemu", ())
HANDLES = Handles("/guest/kernel", "/guest/initramfs", qmp=10, console=11, agent=12)
DISKS = (Disk("rootfs", 20, "raw", read_only=True), Disk("upper", 21, "qcow2", read_only=False))


def machine(**changes):
    values = {
        "architecture": X86_64, "accelerator": Accelerator.TCG, "cpus": 2, "memory_mib": 768,
        "kernel": Path("/k"), "initramfs": Path("/i"), "disks": DISKS,
    }  # fmt: skip
    return Machine(**{**values, **changes})


def values_of(argv, option):
    return [value for name, value in zip(argv, argv[1:], strict=False) if name == option]


@pytest.mark.parametrize(
    ("changes", "option", "expected"),
    [
        ({}, "-machine", ["q35,usb=off,smbus=off,sata=off,vmport=off"]),
        ({"architecture": AARCH64}, "-machine", ["virt,gic-version=max"]),
        ({"architecture": AARCH64}, "-bios", []),
        ({}, "-accel", ["tcg"]),
        ({"accelerator": Accelerator.KVM}, "-accel", ["kvm"]),
        ({"accelerator": Accelerator.KVM}, "-cpu", ["host"]),
        ({}, "-smp", ["2"]),
        ({}, "-m", ["768M"]),
        ({}, "-add-fd", ["fd=20,set=1", "fd=21,set=2"]),
        ({"disks": ()}, "-blockdev", []),
    ],
)
def test_each_part_of_the_description_is_said_once(changes, option, expected):
    assert values_of(qemu_arguments(machine(**changes), QEMU, HANDLES), option) == expected


def test_a_read_only_disk_cannot_be_written():
    first = values_of(qemu_arguments(machine(), QEMU, HANDLES), "-blockdev")[0]
    assert "filename=/dev/fdset/1" in first
    assert "read-only=on" in first


def test_a_full_host_disk_is_reported_to_the_guest_instead_of_stopping_it():
    devices = values_of(qemu_arguments(machine(), QEMU, HANDLES), "-device")
    disks = [device for device in devices if device.startswith("virtio-blk")]
    assert all("werror=report" in device and "rerror=report" in device for device in disks)


def test_the_system_call_filter_denies_new_programs_and_privileges():
    [sandbox] = values_of(qemu_arguments(machine(), QEMU, HANDLES), "-sandbox")
    assert {"on", "spawn=deny", "elevateprivileges=deny", "resourcecontrol=deny"} <= set(sandbox.split(","))


def test_no_path_of_the_host_but_the_firmware_is_named():
    argv = qemu_arguments(machine(), QEMU, HANDLES)
    paths = {part for value in argv for part in re.split("[=, ]", value) if part.startswith("/")}
    assert paths == {
        "/usr/bin/qemu", "/usr/share/qemu", "/guest/kernel", "/guest/initramfs",
        "/init", "/dev/fdset/1", "/dev/fdset/2",
    }  # fmt: skip


def test_qemu_accepts_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    qemu = find_installation(Home.open())
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"not a kernel")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    pairs = [socket.socketpair() for _ in range(3)]
    qmp, console, agent = (theirs.fileno() for _, theirs in pairs)
    with disk.open("rb") as reading, disk.open("r+b") as writing:
        disks = (Disk("a", reading.fileno(), "raw", True), Disk("b", writing.fileno(), "raw", False))
        described = machine(architecture=host_architecture(), disks=disks, cpus=1, memory_mib=128)
        argv = qemu_arguments(described, qemu, Handles(str(kernel), str(kernel), qmp, console, agent))
        fds = (qmp, console, agent, reading.fileno(), writing.fileno())
        process = subprocess.Popen(argv, pass_fds=fds, stderr=subprocess.PIPE, text=True, env=os.environ)
        for _, theirs in pairs:
            theirs.close()
        _, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    for ours, _ in pairs:
        ours.close()
    assert complaint.startswith("qemu: "), complaint  # from the kernel loader, which comes last
