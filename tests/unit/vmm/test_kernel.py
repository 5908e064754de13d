"""A kernel is prepared once, whole or not at all, and found again for as long as it is the right one."""

import functools
import json
import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from microsandbox.errors import KernelError
from microsandbox.store.config import Config
from microsandbox.store.home import Home
from microsandbox.vmm import kernel_sources, vmlinux
from microsandbox.vmm.cpio import read_entries
from microsandbox.vmm.kernel import collect_kernels, installed_kernel, prepare_kernel, verify_kernel
from microsandbox.vmm.modules import REQUIRED
from tests.unit.vmm.kernels import (
    AGENT,
    PAYLOADS,
    VERSION,
    build_package,
    bzimage,
    elf_kernel,
    module,
    signed,
    write_kernel,
    write_modules,
)

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the miniature kernels are for x86_64")

PREPARE = """
import os, sys, signal
from pathlib import Path
from microsandbox.store.home import Home
from microsandbox.store.config import Config
from microsandbox.vmm import kernel
home, agent = Home(Path(sys.argv[1]), Config()), Path(sys.argv[2])
"""


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home", Config())


@pytest.fixture
def agent(tmp_path):
    path = tmp_path / "agentd"
    path.write_bytes(AGENT)
    return path


@pytest.fixture
def image(tmp_path, monkeypatch):
    """The kernel that MSB_KERNEL names."""
    path = write_kernel(tmp_path / "installed")
    monkeypatch.setenv("MSB_KERNEL", str(path))
    return path


@pytest.fixture
def no_image(monkeypatch, tmp_path):
    """A host without apt, without a kernel of its own, without MSB_KERNEL."""
    monkeypatch.delenv("MSB_KERNEL", raising=False)
    monkeypatch.setattr("microsandbox.tools._EXTRA_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    nowhere = functools.partial(kernel_sources.from_host, root=tmp_path / "empty")
    monkeypatch.setattr(kernel_sources, "from_host", nowhere)


def directories(home):
    return sorted(path.name for path in home.kernels.iterdir() if not path.name.startswith(".lock"))


def entries(kernel):
    return {entry.name: entry for entry in read_entries(kernel.initramfs.read_bytes())}


def script(code, home, agent):
    command = [sys.executable, "-c", PREPARE + code, str(home.root), str(agent)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_prepared_kernel_is_complete_and_found_again(home, agent, image):
    assert installed_kernel(home, agent=agent) is None
    kernel = prepare_kernel(home, agent=agent)
    assert kernel.version == VERSION
    assert directories(home) == [VERSION]
    assert sorted(path.name for path in (home.kernels / VERSION).iterdir()) == [
        "initramfs",
        "manifest",
        "vmlinux",
    ]
    assert vmlinux.kernel_version(kernel.vmlinux.read_bytes()) == VERSION
    assert verify_kernel(kernel) == []
    assert installed_kernel(home, agent=agent) == kernel
    assert prepare_kernel(home, agent=agent) == kernel


def test_the_initramfs_holds_the_agent_the_modules_in_order_and_a_console(home, agent, image):
    found = entries(prepare_kernel(home, agent=agent))
    assert found["init"].content == AGENT
    assert found["init"].mode == 0o100755
    assert (found["dev/console"].mode, found["dev/console"].device) == (0o020600, (5, 1))
    modules = [name for name in found if name.startswith("modules/")]
    assert modules == sorted(modules) == [f"modules/{n:03}-{name}.ko" for n, name in enumerate(REQUIRED)]
    assert {"dev", "proc", "sys", "newroot", "lower", "upper"} <= set(found)


def test_the_home_is_private_but_the_jailed_qemu_may_read_the_files(home, agent, image):
    kernel = prepare_kernel(home, agent=agent)
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert home.kernels.stat().st_mode & 0o777 == 0o700
    assert kernel.vmlinux.stat().st_mode & 0o777 == 0o644
    assert kernel.initramfs.stat().st_mode & 0o777 == 0o644


def test_paths_hold_wherever_a_process_works(home, agent, image, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    relative = Home(home.root.relative_to(tmp_path), Config())
    assert prepare_kernel(relative, agent=agent).vmlinux.is_absolute()
    kernel = installed_kernel(relative, agent=agent)
    assert kernel is not None and kernel.initramfs.is_absolute()


def test_a_new_agent_needs_no_source_and_no_second_copy_of_the_kernel(home, agent, image):
    old = prepare_kernel(home, agent=agent)
    agent.write_bytes(AGENT + b" 2")
    assert installed_kernel(home, agent=agent) is None
    for path in (image.parents[1] / "lib").rglob("*.ko"):
        path.unlink()
    new = prepare_kernel(home, agent=agent)
    assert entries(new)["init"].content == AGENT + b" 2"
    assert [*entries(new)] == [*entries(old)]
    assert new.vmlinux.samefile(old.vmlinux)
    assert new.fingerprint != old.fingerprint
    assert verify_kernel(new) == verify_kernel(old) == []
    assert installed_kernel(home, agent=agent) == new
    agent.write_bytes(AGENT)
    assert installed_kernel(home, agent=agent) == old, "a kernel in use is not replaced under its user"


def test_msb_kernel_decides_and_a_changed_file_is_noticed(home, agent, image, monkeypatch):
    first = prepare_kernel(home, agent=agent)
    image.write_bytes(bzimage(PAYLOADS["gzip"](elf_kernel(content=b"a new build"))))
    assert installed_kernel(home, agent=agent) is None
    second = prepare_kernel(home, agent=agent)
    assert b"a new build" in second.vmlinux.read_bytes()
    assert second.vmlinux != first.vmlinux
    assert verify_kernel(first) == []
    monkeypatch.delenv("MSB_KERNEL")
    assert installed_kernel(home, agent=agent) is None, "it was only for MSB_KERNEL"


@pytest.mark.parametrize("form", ["directory", "root", "package", "directory of packages", "build directory"])
def test_msb_kernel_may_be_a_file_a_directory_or_a_package(home, agent, tmp_path, monkeypatch, form):
    tree = tmp_path / "tree"
    image = write_kernel(tree)
    if form == "directory":
        named = image.parent
    elif form == "root":
        named = tree
    elif form == "build directory":
        named = tmp_path / "linux"
        (named / "arch/x86/boot").mkdir(parents=True)
        image.rename(named / "arch/x86/boot/bzImage")
        write_modules(named, {}, builtin=REQUIRED)
    else:
        package = build_package(tmp_path / "packages", tree, f"linux-image-{VERSION}")
        named = package if form == "package" else package.parent
    monkeypatch.setenv("MSB_KERNEL", str(named))
    kernel = prepare_kernel(home, agent=agent)
    assert kernel.version == VERSION
    assert "MSB_KERNEL" in kernel.source
    assert installed_kernel(home, agent=agent) == kernel


def test_of_several_kernels_in_a_directory_the_newest_is_taken(home, agent, tmp_path, monkeypatch):
    for version in ("6.9.1", "6.10.0", "6.2.0"):
        write_kernel(tmp_path / "tree", version=version)
    monkeypatch.setenv("MSB_KERNEL", str(tmp_path / "tree"))
    assert prepare_kernel(home, agent=agent).version == "6.10.0"


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nowhere", "nowhere, which does not exist; it must be a kernel image"),
        ("empty", "a directory without a kernel"),
        ("text", "text: the kernel image cannot be unpacked"),
        ("package.deb", "damaged or no Debian package"),
        ("alone/vmlinuz", "the modules of kernel 6.8.0-1-generic were not found in .*alone/lib/modules"),
    ],
)
def test_a_wrong_msb_kernel_is_an_error_not_a_reason_to_take_another(
    home, agent, tmp_path, monkeypatch, named, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "alone").mkdir()
    for name in ("text", "package.deb"):
        (tmp_path / name).write_text("some text")
    (tmp_path / "alone/vmlinuz").write_bytes(bzimage(PAYLOADS["xz"](elf_kernel())))
    monkeypatch.setenv("MSB_KERNEL", str(tmp_path / named))
    with pytest.raises(KernelError, match=f"(?s){message}"):
        prepare_kernel(home, agent=agent)
    assert directories(home) == []


def test_the_last_error_says_all_that_was_tried_and_what_helps(home, agent, no_image):
    with pytest.raises(KernelError) as caught:
        prepare_kernel(home, agent=agent)
    text = str(caught.value)
    assert "the distribution's package: apt-get was not found" in text
    assert "the host's own kernel: no vmlinuz in" in text
    assert "apt-get install linux-image-amd64" in text
    assert "MSB_KERNEL" in text
    assert directories(home) == []


def test_the_hosts_kernel_is_the_last_resort(home, agent, no_image, monkeypatch, tmp_path):
    write_kernel(tmp_path / "host", version="6.1.0-9")
    write_kernel(tmp_path / "host", version="6.1.0-10")
    broken = tmp_path / "host/boot/vmlinuz-6.2.0"
    broken.write_bytes(b"damaged")
    here = functools.partial(kernel_sources.from_host.func, root=tmp_path / "host")
    monkeypatch.setattr(kernel_sources, "from_host", here)
    kernel = prepare_kernel(home, agent=agent)
    assert (kernel.version, kernel.source) == ("6.1.0-10", str(tmp_path / "host/boot/vmlinuz-6.1.0-10"))


@pytest.mark.parametrize("forced", [False, True])
def test_signatures_stay_where_the_kernel_insists_on_them(tmp_path, forced):
    image = write_kernel(tmp_path)
    for path in tmp_path.rglob("*.ko"):
        path.write_bytes(signed(path.read_bytes()))
    option = "CONFIG_MODULE_SIG_FORCE=y" if forced else "# CONFIG_MODULE_SIG_FORCE is not set"
    image.with_name(f"config-{VERSION}").write_text(f"CONFIG_MODULE_SIG=y\n{option}\n")
    parts = kernel_sources.from_host("x86_64", root=tmp_path)
    assert {each.content for each in parts.modules} == {signed(module()) if forced else module()}


def test_the_running_kernel_is_preferred_to_newer_ones_of_the_host(tmp_path):
    running = os.uname().release
    for version in (running, "99.1.0"):
        write_kernel(tmp_path, version=version)
    assert kernel_sources.from_host("x86_64", root=tmp_path).version == running


# damage


def test_a_truncated_file_is_noticed_at_once_and_prepared_again(home, agent, image):
    kernel = prepare_kernel(home, agent=agent)
    os.truncate(kernel.initramfs, 100)
    assert installed_kernel(home, agent=agent) is None
    again = prepare_kernel(home, agent=agent)
    assert again == kernel
    assert verify_kernel(again) == []


@pytest.mark.parametrize("name", ["vmlinux", "initramfs"])
def test_a_flipped_bit_is_found_by_the_checksums(home, agent, image, name):
    kernel = prepare_kernel(home, agent=agent)
    path = kernel.vmlinux.with_name(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert verify_kernel(kernel) == [f"{path} is not what was written: its checksum differs"]


def test_missing_files_are_problems_in_words(home, agent, image):
    kernel = prepare_kernel(home, agent=agent)
    kernel.vmlinux.unlink()
    assert verify_kernel(kernel) == [f"{kernel.vmlinux.with_name('manifest')} cannot be read"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"created": "x"}', b"\xff\xfe"])
def test_a_damaged_manifest_counts_as_none(home, agent, image, content):
    kernel = prepare_kernel(home, agent=agent)
    manifest = kernel.vmlinux.with_name("manifest")
    manifest.write_bytes(content)
    assert installed_kernel(home, agent=agent) is None
    assert prepare_kernel(home, agent=agent) == kernel


def test_a_kernel_of_another_release_with_other_modules_is_not_used(home, agent, image, monkeypatch):
    kernel = prepare_kernel(home, agent=agent)
    manifest = kernel.vmlinux.with_name("manifest")
    document = json.loads(manifest.read_bytes())
    document["recipe"][1].append("9p")
    manifest.write_text(json.dumps(document))
    assert installed_kernel(home, agent=agent) is None


# other processes


def test_of_processes_that_prepare_at_once_one_does_the_work_and_all_agree(home, agent, image):
    code = """
print("imported", flush=True)
sys.stdin.readline()
print(kernel.prepare_kernel(home, agent=agent, progress=print).fingerprint)
"""
    processes = [script(code, home, agent) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "imported\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    kernel = installed_kernel(home, agent=agent)
    assert {lines[-1] for lines in said} == {kernel.fingerprint}
    assert [line for lines in said for line in lines[:-1]] == [f"reading {image}"]
    assert directories(home) == [VERSION]
    assert verify_kernel(kernel) == []


def test_a_process_killed_in_the_middle_leaves_nothing_that_is_used_or_kept(home, agent, image):
    code = """
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
written = kernel.write_atomically
def write(path, *arguments, **options):
    written(path, *arguments, **options)
    if path.name == "initramfs":
        die()
kernel.write_atomically = write
kernel.prepare_kernel(home, agent=agent)
"""
    process = script(code, home, agent)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert [name for name in directories(home) if not name.startswith(".partial-")] == []
    assert installed_kernel(home, agent=agent) is None
    prepare_kernel(home, agent=agent)
    assert directories(home) == [VERSION]


def test_a_failure_in_the_middle_leaves_nothing(home, agent, image, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("microsandbox.vmm.kernel.write_atomically", fail)
    with pytest.raises(KernelError, match="cannot be kept in .*No space left"):
        prepare_kernel(home, agent=agent)
    assert directories(home) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user who is not the owner")
def test_a_home_that_cannot_be_written_is_told(home, agent, image, tmp_path):
    code = """
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    kernel.prepare_kernel(home, agent=agent)
except kernel.KernelError as error:
    print(error)
"""
    home.root.mkdir(mode=0o755)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    said, _ = script(code, home, agent).communicate(timeout=60)
    assert said.startswith(f"the guest kernel cannot be kept in {home.kernels}: ")
    assert "Permission denied" in said


def test_a_kernels_directory_that_is_a_file_is_told(home, agent, image):
    home.root.mkdir()
    home.kernels.write_text("not a directory")
    with pytest.raises(KernelError, match="cannot be kept in"):
        prepare_kernel(home, agent=agent)


@pytest.mark.parametrize("content", [None, b""])
def test_an_agent_that_is_no_program_is_refused(home, agent, image, content):
    if content is None:
        agent.unlink()
    else:
        agent.write_bytes(content)
    with pytest.raises(KernelError, match="the guest agent"):
        prepare_kernel(home, agent=agent)


# collection


def test_only_kernels_that_nobody_asked_for_in_a_while_are_collected(home, agent, image):
    old = prepare_kernel(home, agent=agent)
    agent.write_bytes(AGENT + b" 2")
    current = prepare_kernel(home, agent=agent)
    assert collect_kernels(home, keep=current) == []
    long_ago = time.time() - 30 * 86400
    for kernel in (old, current):
        os.utime(kernel.vmlinux.with_name("manifest"), (long_ago, long_ago))
    assert installed_kernel(home, agent=agent) == current
    assert current.vmlinux.with_name("manifest").stat().st_mtime > long_ago + 1, "it was asked for now"
    assert collect_kernels(home, keep=current) == [VERSION]
    assert directories(home) == [current.vmlinux.parent.name]
    assert verify_kernel(current) == []


def test_finding_a_kernel_is_quick(home, agent, image):
    prepare_kernel(home, agent=agent)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        assert installed_kernel(home, agent=agent) is not None
        times.append(time.perf_counter() - started)
    assert min(times) < 0.005, "it is on the way of every start"


def test_what_a_kernel_needs_of_memory_is_its_last_segments_end_and_the_initramfs(tmp_path):
    from microsandbox.vmm.kernel import GuestKernel

    vmlinux, initramfs = tmp_path / "vmlinux", tmp_path / "initramfs"
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0x1000000, 10, 0x2000, 0)
    note = struct.pack("<IIQQQQQQ", 4, 5, 0, 0, 0x9000000, 10, 0x2000, 0)
    vmlinux.write_bytes(header + load + note)
    initramfs.write_bytes(b"x" * 100)
    kernel = GuestKernel("6", vmlinux, initramfs, "", "")
    assert kernel.memory_needed() == 0x1002000 + 100
    vmlinux.write_bytes(b"MZ")
    assert kernel.memory_needed() == 0
