"""Kernels, modules and packages in miniature, built as the real ones are."""

import gzip
import lzma
import struct
import subprocess

import lz4.block
import zstandard

from microsandbox.vmm.modules import REQUIRED

VERSION = "6.8.0-1-generic"
AGENT = b"\x7fELF agent"


def elf_kernel(version=VERSION, *, machine=62, pvh=True, content=b"", bss=5000):
    """A vmlinux: one loaded segment that ends in ``bss`` zeros, one of notes, and sections after them."""
    text = f"Linux version {version} (builder@host) #1 SMP\0".encode() + content + b"end"
    notes = struct.pack("<III4sI", 4, 4, 18 if pvh else 6, b"Xen\0", 0x1000000)
    headers = struct.pack(
        "<IIQQQQQQ", 1, 5, 4096, 0x1000000, 0x1000000, len(text) + bss, len(text) + bss, 4096
    )
    headers += struct.pack("<IIQQQQQQ", 4, 4, 1024, 0, 0, len(notes), len(notes), 4)
    size = 4096 + len(text) + bss
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x1000000, 64, size, 0, 64, 56, 2, 64, 0, 0)
    start = (header + headers).ljust(1024, b"\0") + notes
    return start.ljust(4096, b"\0") + text + bytes(bss) + b"sections and relocations"


def with_size(compress):
    """As the kernel's build does: the unpacked size is appended."""
    return lambda data: compress(data) + struct.pack("<I", len(data))


def lz4_legacy(data, block=8 << 20):
    blocks = [
        lz4.block.compress(data[at : at + block], store_size=False) for at in range(0, len(data), block)
    ]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(piece)) + piece for piece in blocks)


PAYLOADS = {
    "gzip": gzip.compress,
    "xz": with_size(lambda data: lzma.compress(data, check=lzma.CHECK_CRC32, preset=0)),
    "lz4": with_size(lz4_legacy),
    "zstd": with_size(lambda data: zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)),
    "zstd of unknown size": with_size(
        lambda data: zstandard.ZstdCompressor(
            level=1, write_checksum=True, write_content_size=False
        ).compress(data)
    ),
}


def bzimage(payload, *, setup_sectors=4, protocol=0x20F):
    """A bzImage around a compressed kernel: setup code, a stub before the payload, something after it."""
    stub = b"\xeb" * 300
    image = bytearray((setup_sectors + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    struct.pack_into("<II", image, 0x248, len(stub), len(payload))
    return bytes(image) + stub + payload + b"certificate table"


def module(*depends, version=VERSION, padding=0):
    """A kernel module: an ELF file with a .modinfo section."""
    information = f"license=GPL\0depends={','.join(depends)}\0vermagic={version} SMP mod_unload \0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    body = information + bytes(padding) + names
    table = 64 + len(body)
    entry = struct.Struct("<IIQQQQIIQQ")
    sections = entry.pack(*[0] * 10)
    sections += entry.pack(1, 1, 2, 0, 64, len(information), 0, 0, 1, 0)
    sections += entry.pack(10, 3, 0, 0, 64 + len(information) + padding, len(names), 0, 0, 1, 0)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    return header + body + sections


def signed(content, signature=b"\x30\x82 a signature"):
    """A module as distributions sign it."""
    return content + signature + struct.pack(">8xI", len(signature)) + b"~Module signature appended~\n"


MODULE_FORMATS = {
    ".ko": bytes,
    ".ko.gz": gzip.compress,
    ".ko.xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    ".ko.zst": zstandard.compress,
}


def write_modules(directory, modules, *, suffix=".ko", builtin=(), dep=None):
    """``modules`` maps paths without suffix to ELF files; ``dep`` is the text of modules.dep."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in modules.items():
        path = directory / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MODULE_FORMATS[suffix](content))
    (directory / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
    if dep is not None:
        (directory / "modules.dep").write_text(dep)
    return directory


def required_modules(version=VERSION):
    return {f"kernel/{name}": module(version=version) for name in REQUIRED}


def write_kernel(root, *, version=VERSION, content=b""):
    """An installed kernel below ``root``: the path of its image."""
    image = root / "boot" / f"vmlinuz-{version}"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(bzimage(PAYLOADS["gzip"](elf_kernel(version, content=content))))
    write_modules(root / "lib/modules" / version, required_modules(version))
    return image


def build_package(target, tree, name, *, depends="", compression="xz"):
    """A .deb of the files below ``tree``. Returns its path."""
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"Package: {name}",
        "Version: 1.0",
        "Architecture: amd64",
        "Maintainer: Nobody <nobody@example.org>",
    ]
    lines += [f"Depends: {depends}"] if depends else []
    control.write_text("\n".join([*lines, "Description: a test", ""]))
    target.mkdir(parents=True, exist_ok=True)
    package = target / f"{name}_1.0_amd64.deb"
    command = [
        "dpkg-deb",
        f"-Z{compression}",
        "-z1",
        "--root-owner-group",
        "--build",
        str(tree),
        str(package),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return package
