"""The kernel comes out of every form in which distributions install it, or it is said what is wrong."""

import gzip
import struct

import pytest

from microsandbox.errors import KernelError
from microsandbox.vmm import elf, vmlinux
from microsandbox.vmm.decompress import DecompressError, decompress, read_unpacked
from microsandbox.vmm.vmlinux import extract_kernel, kernel_version
from tests.unit.vmm.kernels import PAYLOADS, VERSION, bzimage, elf_kernel, lz4_legacy

KERNEL = elf_kernel(content=bytes(range(256)) * 500)
LOADED = elf.loaded_part(KERNEL)


def arm64_image(content=b"Linux version 6.6.1 (x) "):
    return (bytes(0x38) + b"ARM\x64").ljust(4096, b"\0") + content * 100


def zboot(payload):
    return b"MZ\0\0zimg" + struct.pack("<II", 0x400, len(payload)) + bytes(0x400 - 16) + payload + b"more"


@pytest.mark.parametrize("compress", PAYLOADS.values(), ids=PAYLOADS)
def test_a_bzimage_gives_its_kernel_whatever_compresses_it(compress):
    kernel = extract_kernel(bzimage(compress(KERNEL)), "x86_64")
    assert kernel == LOADED
    assert kernel_version(kernel) == VERSION


def test_a_large_lz4_kernel_has_several_blocks():
    compress = PAYLOADS["lz4"]
    content = b"".join(bytes([value]) * (3 << 20) for value in range(6))
    kernel = extract_kernel(bzimage(compress(elf_kernel(content=content))), "x86_64")
    assert content in kernel


def test_a_setup_of_zero_sectors_means_four():
    image = bytearray(bzimage(PAYLOADS["gzip"](KERNEL)))
    image[0x1F1] = 0
    assert extract_kernel(bytes(image), "x86_64") == LOADED


def test_a_plain_vmlinux_is_taken_as_it_is():
    assert extract_kernel(KERNEL, "x86_64") == LOADED


def test_what_qemu_does_not_load_is_left_out_but_the_kernel_has_the_same_memory():
    assert len(LOADED) == len(KERNEL) - 5000 - len(b"sections and relocations")
    program = struct.Struct("<IIQQQQQQ")
    before, after = program.unpack_from(KERNEL, 64), program.unpack_from(LOADED, 64)
    assert (after[:5], after[6]) == (before[:5], before[6])
    assert LOADED[after[2] :] == KERNEL[before[2] : before[2] + before[5]].rstrip(b"\0")
    assert (b"Xen", 18) in elf.notes(LOADED)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["Image", "Image.gz"])
def test_arm64_images_are_unpacked(pack):
    assert extract_kernel(pack(arm64_image()), "aarch64") == arm64_image()


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_an_arm64_image_inside_an_efi_program_is_unpacked(method):
    assert extract_kernel(zboot(PAYLOADS[method](arm64_image())), "aarch64") == arm64_image()


@pytest.mark.parametrize("method", PAYLOADS)
def test_a_damaged_or_truncated_payload_is_refused(method):
    payload = PAYLOADS[method](KERNEL)
    for cut in (7, len(payload) // 2, len(payload) - 9):
        with pytest.raises(KernelError, match="cannot be unpacked"):
            extract_kernel(bzimage(payload[:cut]), "x86_64")
    damaged = payload[:20] + b"\xff" * 40 + payload[60:]
    with pytest.raises(KernelError, match="cannot be unpacked"):
        extract_kernel(bzimage(damaged), "x86_64")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not a 64-bit little-endian ELF file"),
        (b"hello, I am not a kernel", "not a 64-bit little-endian ELF file"),
        (bzimage(b"BZh91AY" + bytes(50)), "neither gzip, xz, lz4 nor zstd"),
        (bzimage(PAYLOADS["gzip"](KERNEL))[:2700], "cut short"),
        (bzimage(PAYLOADS["gzip"](KERNEL))[:0x210], "cut short"),
        (bzimage(b"", protocol=0x204), "too old"),
        (elf_kernel(machine=183), "for aarch64, not for x86_64"),
        (elf_kernel(machine=243), "for processor type 243, not for x86_64"),
        (elf_kernel(pvh=False), "CONFIG_PVH=y"),
        (KERNEL[:200], "outside the file"),
        (KERNEL[:5000], "outside the file"),
    ],
)
def test_what_is_no_usable_kernel_is_refused_in_words(image, message):
    with pytest.raises(KernelError, match=message):
        extract_kernel(image, "x86_64")


def test_a_kernel_for_x86_is_none_for_arm64():
    with pytest.raises(KernelError, match="not one for aarch64"):
        extract_kernel(KERNEL, "aarch64")


def test_something_without_a_version_is_no_linux():
    with pytest.raises(KernelError, match="does not say its version"):
        kernel_version(KERNEL.replace(b"Linux version", b"Minix version"))


@pytest.mark.parametrize("method", [*PAYLOADS, "lz4 without its size"])
def test_unpacking_stops_at_the_limit(method):
    content = bytes(30 << 20)
    packed = lz4_legacy(content) if method == "lz4 without its size" else PAYLOADS[method](content)
    assert len(packed) < 1 << 20, "small on the disk"
    with pytest.raises(DecompressError, match="larger than 1048576 bytes"):
        decompress(packed, 1 << 20)
    assert decompress(packed, len(content)) == content


def test_the_limit_holds_for_kernels(monkeypatch):
    monkeypatch.setattr(vmlinux, "MAX_KERNEL_BYTES", len(KERNEL) - 1)
    with pytest.raises(KernelError, match="larger than"):
        extract_kernel(bzimage(PAYLOADS["zstd"](KERNEL)), "x86_64")


def test_a_file_is_not_read_beyond_the_limit(tmp_path):
    (tmp_path / "large").write_bytes(bytes(1001))
    with pytest.raises(DecompressError, match="larger than 1000 bytes"):
        read_unpacked(tmp_path / "large", 1000)


@pytest.mark.parametrize("method", ["gzip", "lz4", "zstd"])
def test_the_distributions_kernel_survives_every_compression(real_parts, method):
    parts = real_parts.parts
    assert extract_kernel(bzimage(PAYLOADS[method](parts.kernel)), "x86_64") == parts.kernel
    assert kernel_version(parts.kernel) == parts.version
