"""Sandboxes that go on from templates: quicker, no different, and never from a damaged one."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from microsandbox import Sandbox
from microsandbox.errors import InvalidConfigError
from microsandbox.sandbox import boot as booting
from microsandbox.sandbox import creation
from microsandbox.store.files import copy_sparse, partial_path
from microsandbox.template.store import RAM, STATE, UPPER
from tests import audit

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]


def runtime_log(home, name):
    return (home / "sandboxes" / name / "logs" / "runtime.log").read_text()


def started_from(home, name):
    """The key of the template the sandbox last went on from; None after a boot."""
    last = [line for line in runtime_log(home, name).splitlines() if "runs as process" in line][-1]
    found = re.search(r"from template ([0-9a-f]{32})$", last)
    return found and found[1]


def use_memory(mebibytes):
    """A command that writes to so much memory."""
    return f"dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1"


async def timed_create(name, **options):
    """Seconds until a sandbox has run its first command; it is gone afterwards."""
    started = time.monotonic()
    async with await Sandbox.create(name, **options) as sandbox:
        assert (await sandbox.exec("/bin/true")).success
        return time.monotonic() - started


# what a template is good for


async def test_the_first_sandbox_of_a_shape_boots_and_the_next_go_on_from_its_template(
    busybox, name, session_home, templates
):
    templates.none()
    shape = templates.shape()
    async with await Sandbox.create(name, image=busybox) as first:
        assert started_from(session_home, name) is None
        assert (await first.exec("/bin/true")).success
    # The end of the sandbox, a SIGKILL, is not that of the builder.
    audit.wait_for_builders(session_home)
    assert templates.keys() == {shape.key, shape.bare.key}
    async with await Sandbox.create(name, image=busybox) as second:
        assert started_from(session_home, name) == shape.key
        assert (await second.exec("hostname")).stdout_text == f"{name}\n"


async def test_going_on_takes_a_fraction_of_a_boot(busybox, name, monkeypatch):
    warm = min([await timed_create(name, image=busybox) for _ in range(3)])
    monkeypatch.setenv("MSB_TEMPLATES", "off")
    cold = await timed_create(name, image=busybox)
    assert warm < 0.3 * cold, f"{warm:.2f} s from a template, {cold:.2f} s without"


async def test_a_boot_is_asked_for_with_templates_off(busybox, name, session_home, monkeypatch):
    monkeypatch.setenv("MSB_TEMPLATES", "off")
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert started_from(session_home, name) is None
        assert (await sandbox.exec("/bin/true")).success


async def test_what_one_sandbox_writes_no_other_sees_and_it_has_again_after_a_restart(
    busybox, name, session_home, templates
):
    shape = templates.shape()
    one = await Sandbox.create(name, image=busybox)
    assert (await one.shell("echo mine > /root/file; rm /bin/vi; echo x >> /etc/passwd")).success
    async with await Sandbox.create(f"{name}-other", image=busybox) as other:
        assert started_from(session_home, f"{name}-other") == shape.key
        seen = await other.shell("ls /root; ls /bin/vi; tail -n 1 /etc/passwd")
        assert seen.stdout_text == "/bin/vi\ndemo:x:1000:1000::/home/demo:/bin/sh\n"
    await one.stop()
    async with await Sandbox.start(name) as again:
        assert started_from(session_home, name) == shape.bare.key, "the image is mounted after the start"
        seen = await again.shell("cat /root/file; ls /bin/vi; tail -n 1 /etc/passwd; hostname")
        assert seen.stdout_text == f"mine\nx\n{name}\n"


async def test_a_killed_sandbox_starts_again_from_what_it_had_flushed(busybox, name, session_home, templates):
    one = await Sandbox.create(name, image=busybox)
    await one.shell("echo mine > /root/file; sync")
    await one.kill()
    async with await Sandbox.start(name) as again:
        assert started_from(session_home, name) == templates.shape().bare.key
        assert await again.fs.read_text("/root/file") == "mine\n"


@pytest.mark.parametrize(("cpus", "memory"), [(2, 256), (8, 2048)])
async def test_every_shape_has_its_processors_and_its_memory(
    busybox, name, session_home, templates, cpus, memory
):
    template = templates.build(cpus, memory)
    async with await Sandbox.create(name, image=busybox, cpus=cpus, memory=memory) as sandbox:
        assert started_from(session_home, name) == template.key
        assert (await sandbox.exec("nproc")).stdout_text == f"{cpus}\n"
        total = int((await sandbox.shell("grep MemTotal /proc/meminfo")).stdout_text.split()[1])
        assert 0.75 * memory < total / 1024 < memory
        busy = "for i in 1 2 3 4 5 6 7 8; do (head -c 64k /dev/urandom | md5sum >/dev/null) & done; wait"
        assert (await sandbox.shell(busy)).success, "the processors run"
        assert (await sandbox.shell(use_memory(memory // 2))).success, "the memory is there"


async def test_options_apply_to_sandboxes_from_templates(busybox, name, session_home, templates):
    options = {
        "hostname": "box", "user": "demo", "env": {"A": "b"}, "workdir": "/work",
        "scripts": {"greet": "#!/bin/sh\\necho hello"},
    }  # fmt: skip
    async with await Sandbox.create(name, image=busybox, **options) as sandbox:
        assert started_from(session_home, name) == templates.shape().key
        seen = await sandbox.shell("hostname; cat /etc/hostname; id -un; echo $A; pwd; ls /.msb/scripts")
        assert seen.stdout_text.split() == ["box", "box", "demo", "b", "/work", "greet"]
        assert (await sandbox.fs.read_text("/etc/hosts")).startswith("127.0.0.1\tlocalhost\tbox\n")


async def test_a_choice_that_is_none_leaves_no_sandbox(busybox, name, session_home, monkeypatch):
    monkeypatch.setenv("MSB_TEMPLATES", "on")
    with pytest.raises(InvalidConfigError, match="MSB_TEMPLATES must be auto or off, got 'on'"):
        await Sandbox.create(name, image=busybox)
    assert name not in [row.name for row in await Sandbox.list()]
    assert not (session_home / "sandboxes" / name).exists()


# what is damaged


@pytest.fixture
def spoil(templates):
    """Publish a template again with another file in it, so that no checksum tells. Mended afterwards."""
    spare = []

    def copy_of(template):
        partial = partial_path(template.directory)
        partial.mkdir(mode=0o700)
        for name in (RAM, STATE, UPPER):
            if (template.directory / name).exists():
                copy_sparse(template.directory / name, partial / name)
        return partial

    def spoil(template, file, change):
        whole, spoiled = copy_of(template), copy_of(template)
        spare.append((whole, template))
        change(spoiled / file)
        return templates.store.publish(spoiled, template.key, template.description)

    yield spoil
    for whole, template in spare:
        templates.store.publish(whole, template.key, template.description)


def random_bytes(path):
    path.write_bytes(os.urandom(path.stat().st_size))


def random_data(path):
    """All of a file but its holes."""
    with path.open("r+b") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            os.pwrite(file.fileno(), os.urandom(end - start), start)


def zeros(path):
    size = path.stat().st_size
    path.write_bytes(b"")
    os.truncate(path, size)


def half(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("file", "change"),
    [(STATE, random_bytes), (STATE, half), (STATE, zeros), (RAM, random_data), (RAM, zeros), (RAM, half)],
)
async def test_a_template_that_does_not_go_on_is_given_up_for_a_boot(
    busybox, name, session_home, templates, spoil, file, change
):
    spoiled = spoil(templates.build(), file, change)
    assert templates.store.find(spoiled.key) == spoiled, "it looks whole"
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert (await sandbox.shell("hostname; cat /etc/hostname")).stdout_text == f"{name}\n" * 2
        log = runtime_log(session_home, name)
        assert f"template {spoiled.key} does not work, booting instead: " in log
        assert templates.store.find(spoiled.key) is None


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="knows the loops of one processor")
async def test_a_guest_that_hangs_is_given_up_for_a_boot(
    busybox, name, session_home, templates, spoil, monkeypatch
):
    """A kernel of nothing but endless loops: no machine ends, and nobody says a word."""
    vmlinux = templates.shape().host.kernel.vmlinux.read_bytes()

    def loops(path):
        ram = path.read_bytes()
        for position in range(4 << 20, 12 << 20, 64 << 10):  # where the kernel's code is in both
            if (found := ram.find(vmlinux[position : position + 128])) >= 0:
                start = found - position + (2 << 20)
                with path.open("r+b") as file:
                    os.pwrite(file.fileno(), b"\xeb\xfe" * (6 << 20), start)
                return
        pytest.fail("the kernel's code is not in its memory")

    plan = booting._plan
    monkeypatch.setattr(booting, "_plan", lambda *given: replace(plan(*given), resume_timeout=3.0))
    spoiled = spoil(templates.build(), RAM, loops)
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert (await sandbox.exec("hostname")).stdout_text == f"{name}\n"
        assert "booting instead: not ready after 3 s" in runtime_log(session_home, name)
        assert templates.store.find(spoiled.key) is None


async def test_a_stopped_sandbox_keeps_its_files_when_its_template_does_not_go_on(
    busybox, name, session_home, templates, spoil
):
    templates.build()
    bare = templates.store.find(templates.shape().bare.key)
    spoil(bare, STATE, random_bytes)
    sandbox = await Sandbox.create(name, image=busybox)
    await sandbox.fs.write("/root/file", b"mine")
    await sandbox.stop()
    async with await Sandbox.start(name) as again:
        assert await again.fs.read("/root/file") == b"mine"
        assert f"template {bare.key} does not work, booting instead: " in runtime_log(session_home, name)


async def test_a_template_that_was_given_up_is_built_again(busybox, name, session_home, templates):
    key = templates.build().key
    templates.store.discard(key)
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert started_from(session_home, name) == templates.shape().bare.key
        assert (await sandbox.exec("/bin/true")).success
    audit.wait_for_builders(session_home)
    rebuilt = templates.store.find(key)
    assert rebuilt is not None
    assert templates.store.verify(rebuilt) == []


# templates that go while they are used


async def test_sandboxes_run_on_when_their_templates_are_deleted(busybox, name, session_home, templates):
    async with await Sandbox.create(name, image=busybox) as one:
        async with await Sandbox.create(f"{name}-other", image=busybox) as other:
            shutil.rmtree(templates.store.root)
            for sandbox in (one, other):
                assert (await sandbox.shell("find / -xdev | wc -l && md5sum /bin/busybox")).success
        async with await Sandbox.create(f"{name}-next", image=busybox) as sandbox:
            assert (await sandbox.exec("/bin/true")).success
            assert started_from(session_home, f"{name}-next") is None
    audit.wait_for_builders(session_home)
    assert templates.keys() == {templates.shape().key, templates.shape().bare.key}


@pytest.mark.parametrize("fresh", [True, False])
async def test_a_template_that_goes_just_before_it_is_used_means_a_boot(
    busybox, name, session_home, templates, monkeypatch, fresh
):
    templates.build()
    choose = creation.choose_start

    def and_lose(*given, **options):
        start = choose(*given, **options)
        assert start.template is not None
        shutil.rmtree(start.template.directory)
        return start

    if not fresh:
        await (await Sandbox.create(name, image=busybox)).stop()
    monkeypatch.setattr(creation, "choose_start", and_lose)
    async with await (Sandbox.create(name, image=busybox) if fresh else Sandbox.start(name)) as sandbox:
        assert (await sandbox.exec("hostname")).stdout_text == f"{name}\n"


# what sandboxes share


async def test_no_machine_can_write_to_the_memory_that_all_share(busybox, name, session_home, templates):
    template = templates.build()
    async with await Sandbox.create(name, image=busybox) as sandbox:
        assert started_from(session_home, name) == template.key
        assert (await sandbox.shell(f"{use_memory(256)} && find / -xdev -type f | xargs md5sum")).success
        [supervisor] = audit.supervisors(session_home)
        machine = Path(f"/proc/{audit.machine_of(supervisor)}")
        mounts = [line.split() for line in (machine / "mountinfo").read_text().splitlines()]
        [options] = [fields[5].split(",") for fields in mounts if fields[4] == "/guest/ram"]
        assert "ro" in options
        maps = [line.split() for line in (machine / "maps").read_text().splitlines()]
        assert {fields[1] for fields in maps if fields[-1].endswith("/ram")} == {"rw-p"}, "copied on write"
        for entry in (machine / "fd").iterdir():
            if os.readlink(entry).endswith("/ram"):
                flags = re.search(r"flags:\s+(\d+)", (machine / "fdinfo" / entry.name).read_text())[1]
                assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
        assert templates.store.verify(template) == []
    assert templates.store.verify(template) == []


@pytest.mark.parametrize("start", ["template", "boot"])
@pytest.mark.parametrize(
    ("volumes", "mounts"),
    [
        ({}, ["/tmp 128M"]),
        ({"/tmp": {"tmpfs": True, "size_mib": 10}}, ["/tmp 10M"]),
        ({"/tmp": {"tmpfs": True, "size_mib": 128, "noexec": True}}, ["/tmp 128M noexec"]),
        ({"/tmp/inside": {"tmpfs": True, "size_mib": 5}}, ["/tmp 128M", "/tmp/inside 5M"]),
    ],
    ids=["usual", "another size", "other options", "a mount inside"],
)
async def test_tmp_is_what_was_asked_for_however_the_guest_came_up(
    busybox, name, monkeypatch, start, volumes, mounts
):
    if start == "boot":
        monkeypatch.setenv("MSB_TEMPLATES", "off")
    async with await Sandbox.create(name, image=busybox, memory=512, volumes=volumes) as sandbox:
        found = (await sandbox.shell("grep ' /tmp' /proc/mounts; ls -ld /tmp; ls /tmp")).stdout_text
        lines = found.splitlines()
        words = [line.split() for line in lines if line.startswith("tmpfs")]
        described = [
            f"{place} {int(options.split('size=')[1].split('k')[0]) // 1024}M"
            + (" noexec" if "noexec" in options.split(",") else "")
            for _, place, _, options, *_ in words
        ]
        assert described == mounts
        assert "drwxrwxrwt" in found
        inside = [volume.rpartition("/")[2] for volume in volumes if volume != "/tmp"]
        assert lines[len(words) + 1 :] == inside, "nothing is there that nobody put there"
