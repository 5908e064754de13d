"""A machine's description as a command line: what is in it, and that QEMU itself accepts all of it."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from microsandbox.store.home import Home
from microsandbox.vmm.architecture import AARCH64, X86_64, host_architecture
from microsandbox.vmm.installation import find_installation
from microsandbox.vmm.machine import (
    Accelerator,
    BootKernel,
    Disk,
    DiskSlot,
    Handles,
    Machine,
    QemuInstallation,
    RamFile,
    qemu_arguments,
)

QEMU = QemuInstallation("/usr/bin/qemu", "7.2.0", "/usr/share/qemu", ())
HANDLES = Handles(10, 11, 12, kernel="/guest/kernel", initramfs="/guest/initramfs", ram="/guest/ram")
DISKS = (Disk("rootfs", 20, "raw", read_only=True), Disk("upper", 21, "qcow2", read_only=False))


def machine(**changes):
    values = {
        "architecture": X86_64, "accelerator": Accelerator.TCG, "cpus": 2, "memory_mib": 768,
        "kernel": BootKernel(Path("/k"), Path("/i")), "disks": DISKS,
    }  # fmt: skip
    return Machine(**{**values, **changes})


def values_of(argv, option):
    return [value for name, value in zip(argv, argv[1:], strict=False) if name == option]


@pytest.mark.parametrize(
    ("changes", "option", "expected"),
    [
        ({}, "-machine", ["q35,usb=off,smbus=off,sata=off,vmport=off,suppress-vmdesc=on"]),
        ({"architecture": AARCH64}, "-machine", ["virt,gic-version=max,suppress-vmdesc=on"]),
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


@pytest.mark.parametrize(("shared", "share"), [(True, "on"), (False, "off")])
def test_ram_in_a_file_is_shared_only_while_a_template_is_made(shared, share):
    argv = qemu_arguments(machine(ram=RamFile(Path("/r"), shared)), QEMU, HANDLES)
    backend = f"memory-backend-file,id=ram,size=768M,mem-path=/guest/ram,share={share},prealloc=off"
    assert values_of(argv, "-object") == [backend]
    assert values_of(argv, "-machine")[0].endswith(",memory-backend=ram")


def test_a_machine_that_goes_on_has_no_kernel_to_boot():
    argv = qemu_arguments(machine(kernel=None, state=30), QEMU, HANDLES)
    assert values_of(argv, "-incoming") == ["fd:30"]
    assert not {"-kernel", "-initrd", "-append"} & set(argv)


def test_a_disk_is_the_same_device_as_the_slot_it_fills():
    slots = (DiskSlot("rootfs", read_only=True), DiskSlot("upper", read_only=False))
    raw = tuple(replace(disk, format="raw") for disk in DISKS)
    filled, empty = (qemu_arguments(machine(disks=disks), QEMU, HANDLES) for disks in (raw, slots))
    assert values_of(filled, "-device") == values_of(empty, "-device")
    assert all(node.startswith("driver=null-co,") for node in values_of(empty, "-blockdev"))


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
        handles = Handles(qmp, console, agent, kernel=str(kernel), initramfs=str(kernel))
        argv = qemu_arguments(described, qemu, handles)
        fds = (qmp, console, agent, reading.fileno(), writing.fileno())
        process = subprocess.Popen(argv, pass_fds=fds, stderr=subprocess.PIPE, text=True, env=os.environ)
        for _, theirs in pairs:
            theirs.close()
        _, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    for ours, _ in pairs:
        ours.close()
    assert complaint.startswith("qemu: "), complaint  # from the kernel loader, which comes last
