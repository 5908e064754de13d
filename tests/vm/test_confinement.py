"""A running QEMU as /proc shows it: who it is, what it may do, and what it holds open."""

import os
import re
from pathlib import Path

import pytest

from microsandbox import Sandbox
from microsandbox.vmm.jail import FIRST_UID
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]


@pytest.fixture
async def qemu(busybox, name, session_home):
    """The /proc directory of a running sandbox's QEMU."""
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert (await sandbox.exec("true")).success
        [supervisor] = audit.supervisors(session_home)
        yield Path(f"/proc/{audit.machine_of(supervisor)}")


def status(process):
    return dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())


async def test_its_user_is_not_root_and_has_no_privileges(qemu):
    found = status(qemu)
    uids = {int(uid) for uid in found["Uid"].split()}
    if os.geteuid() == 0:
        assert min(uids) > FIRST_UID
        assert found["Groups"].strip() == ""
    else:
        assert uids == {os.geteuid()}
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[capabilities], 16) == 0, capabilities
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2", "system calls are filtered"


@pytest.mark.parametrize("namespace", ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"])
async def test_its_namespaces_are_its_own(qemu, namespace):
    assert os.readlink(qemu / "ns" / namespace) != os.readlink(f"/proc/self/ns/{namespace}")


async def test_it_holds_only_what_it_was_handed(qemu, session_home):
    opened = {os.readlink(entry) for entry in (qemu / "fd").iterdir()}
    files = {path for path in opened if path.startswith("/")}
    disks = {path for path in files if path.startswith(str(session_home))}
    assert files - disks <= {"/guest/ram"}, "files that are neither this sandbox's nor its template's"
    assert len(disks) == 2, "the image and the writable layer"
    assert any(path.endswith("/upper.ext4") for path in disks)
    for kind in opened - files:
        assert re.match(r"(socket|pipe|anon_inode):", kind), kind


async def test_what_it_shares_with_other_sandboxes_is_open_for_reading_only(qemu):
    shared = [
        entry
        for entry in (qemu / "fd").iterdir()
        if os.readlink(entry).endswith(".squashfs") or os.readlink(entry) == "/guest/ram"
    ]
    assert len({os.readlink(entry) for entry in shared}) == 2, "the image and the template's RAM"
    for entry in shared:
        flags = int(re.search(r"flags:\s+(\d+)", (qemu / "fdinfo" / entry.name).read_text())[1], 8)
        assert flags & os.O_ACCMODE == os.O_RDONLY, os.readlink(entry)


async def test_its_root_holds_no_other_files(qemu):
    root = qemu / "root"
    assert sorted(entry.name for entry in root.iterdir() if entry.name not in ("lib", "lib64")) == [
        "guest",
        "usr",
    ]
    assert not (root / "etc").exists()
    assert not (root / "proc").exists()
    options = [line.split()[5] for line in (qemu / "mountinfo").read_text().splitlines()]
    assert all("ro" in option.split(",") for option in options)
    mounted = [line.split()[4] for line in (qemu / "mountinfo").read_text().splitlines()]
    assert {
        path
        for path in mounted
        if not re.match(r"/$|/usr/|/lib|/guest/(kernel|initramfs|ram|preload)$", path)
    } == set()


async def test_its_limits(qemu):
    limits = (qemu / "limits").read_text()
    assert re.search(r"Max core file size\s+0\s+0", limits)
    assert re.search(r"Max open files\s+256\s+256", limits)


async def test_signals_of_a_terminal_do_not_reach_it(qemu):
    assert os.getsid(int(qemu.name)) == int(qemu.name), "it leads a session of its own"


async def test_descriptors_that_the_owner_left_inheritable_end_with_the_owner(busybox, name, session_home):
    with open("/etc/passwd") as forgotten:
        os.set_inheritable(forgotten.fileno(), True)
        async with await Sandbox.create(name, image=busybox):
            [supervisor] = audit.supervisors(session_home)
            opened = {os.readlink(entry) for entry in Path(f"/proc/{supervisor}/fd").iterdir()}
    assert "/etc/passwd" not in opened
