"""The key of a template: everything its guest could notice is in it, and nothing else."""

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from microsandbox.template import shape as shapes
from microsandbox.template.shape import ImageRoot, Shape
from microsandbox.vmm.host import Host, JailVerdict, Verdict
from microsandbox.vmm.jail_kind import JailKind
from microsandbox.vmm.kernel import GuestKernel
from microsandbox.vmm.machine import Accelerator, Disk, QemuInstallation, RamFile

IMAGE = ImageRoot("sha256:1", 1024, 128, (4096, 1))


@pytest.fixture
def host(tmp_path):
    binary = tmp_path / "qemu"
    binary.write_bytes(b"a program")
    return Host(
        QemuInstallation(str(binary), "7.2.0", "/firmware", ("/lib/one.so",)),
        GuestKernel("6.1.0", Path("/k/vmlinux"), Path("/k/initramfs"), "fingerprint", "a package"),
        JailVerdict(JailKind.NAMESPACES, "they work"),
        Verdict(Accelerator.TCG, "no KVM"),
    )


@pytest.fixture
def shape(host):
    return Shape(host, cpus=2, memory_mib=512, root=IMAGE)


def of_host(shape, part, **changes):
    host = shape.host
    return replace(shape, host=replace(host, **{part: replace(getattr(host, part), **changes)}))


def replaced_binary(shape):
    """The same path, another file, as an upgrade leaves it."""
    binary = Path(shape.host.qemu.binary)
    (binary.parent / "new").write_bytes(binary.read_bytes())
    os.utime(binary.parent / "new", ns=(1, binary.stat().st_mtime_ns))
    (binary.parent / "new").rename(binary)
    return Shape(shape.host, shape.cpus, shape.memory_mib, shape.root)


def touched_binary(shape):
    os.utime(shape.host.qemu.binary, ns=(1, 1))
    return Shape(shape.host, shape.cpus, shape.memory_mib, shape.root)


@pytest.mark.parametrize(
    "change",
    [
        lambda shape: replace(shape, cpus=1),
        lambda shape: replace(shape, memory_mib=513),
        lambda shape: shape.bare,
        lambda shape: replace(shape, root=replace(IMAGE, digest="sha256:2")),
        lambda shape: replace(shape, root=replace(IMAGE, upper_size_mib=1025)),
        lambda shape: replace(shape, root=replace(IMAGE, tmp_size_mib=129)),
        lambda shape: replace(shape, root=replace(IMAGE, file=(4096, 2))),
        lambda shape: of_host(shape, "kernel", fingerprint="another"),
        lambda shape: of_host(shape, "qemu", version="7.2.1"),
        lambda shape: of_host(shape, "qemu", firmware="/elsewhere"),
        lambda shape: of_host(shape, "accelerator", accelerator=Accelerator.KVM),
        replaced_binary,
        touched_binary,
    ],
    ids=["cpus", "memory", "no image", "image", "upper size", "tmp size", "image file",
         "kernel and agent", "QEMU's version", "firmware", "accelerator", "QEMU replaced", "QEMU changed"],
)  # fmt: skip
def test_whatever_a_guest_could_notice_changes_the_key(shape, change):
    before = shape.key
    assert change(shape).key != before


@pytest.mark.parametrize(
    "change",
    [
        lambda shape: replace(shape),
        lambda shape: of_host(shape, "kernel", vmlinux=Path("/elsewhere"), source="another package"),
        lambda shape: of_host(shape, "accelerator", reason="told so"),
        lambda shape: of_host(shape, "jail", kind=JailKind.LANDLOCK, reason="no namespaces"),
    ],
    ids=["nothing", "where the kernel is", "why this accelerator", "the jail"],
)
def test_what_no_guest_could_notice_does_not(shape, change):
    assert change(shape).key == shape.key


def test_the_processor_counts_under_kvm_only(shape, monkeypatch):
    def keys(processor):
        monkeypatch.setattr(shapes, "_processor", lambda: processor)
        emulated = replace(shape)
        return emulated.key, of_host(emulated, "accelerator", accelerator=Accelerator.KVM).key

    (tcg, kvm), (other_tcg, other_kvm) = keys("one"), keys("another")
    assert tcg == other_tcg
    assert kvm != other_kvm


def test_a_key_is_a_name_of_32_hexadecimal_digits(shape):
    assert len(shape.key) == 32
    assert int(shape.key, 16)


def test_a_machine_that_goes_on_has_no_kernel_and_one_that_boots_has(shape):
    ram = RamFile(Path("/ram"), shared=False)
    disks = (Disk("rootfs", 5, "raw", read_only=True),)
    resumed = shape.machine(disks, ram, state=7)
    assert (resumed.kernel, resumed.state, resumed.ram, resumed.disks) == (None, 7, ram, disks)
    assert shape.machine().kernel.kernel == Path("/k/vmlinux")
