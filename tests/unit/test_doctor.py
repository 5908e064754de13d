"""Every prerequisite is looked at; what is wrong is said, with what to do about it."""

import os
import sqlite3

import pytest

from microsandbox import doctor, tools
from microsandbox.doctor import Check, Status
from microsandbox.errors import KernelError
from microsandbox.store.config import Config
from microsandbox.store.database import Database
from microsandbox.store.files import partial_path
from microsandbox.store.home import Home
from microsandbox.template.shape import Shape
from microsandbox.template.store import Description, TemplateStore
from microsandbox.tools import Tool
from microsandbox.vmm.host import JailVerdict, examine_host
from microsandbox.vmm.jail_kind import JailKind
from microsandbox.vmm.kernel import prepare_kernel
from tests.unit.vmm.kernels import AGENT, write_kernel


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("MSB_KERNEL", raising=False)
    root = tmp_path / "home"
    root.mkdir(mode=0o700)
    return Home(root, Config())


@pytest.fixture
def no_tools(monkeypatch, tmp_path):
    monkeypatch.setattr(tools, "_EXTRA_PATH", ())
    monkeypatch.setenv("PATH", str(tmp_path))


def by_name(checks):
    return {check.name: check for check in checks}


def test_everything_is_looked_at_and_a_failure_comes_with_its_remedy(home):
    checks = by_name(doctor.run_checks(home))
    expected = {
        "Python", "architecture", "home", "free space", "socket path", "catalogue", "sqfstar", "mke2fs",
        "guest agent", "QEMU", "guest kernel", "jail", "accelerator", "memory template",
    }  # fmt: skip
    assert set(checks) == expected
    assert {name for name, check in checks.items() if not check.ok and not check.fix} == set()
    assert all(check.found for check in checks.values())


def test_the_accelerator_is_named_with_the_reason(home):
    check = by_name(doctor.run_checks(home))["accelerator"]
    assert check.found.startswith(("kvm: ", "tcg (software emulation): ", "KVM looks usable"))
    assert len(check.found) > len("tcg (software emulation): ")


def test_a_choice_of_the_user_is_the_reason_and_can_be_undone(home, monkeypatch, tmp_path):
    monkeypatch.setenv("MSB_ACCEL", "tcg")
    monkeypatch.setenv("MSB_KERNEL", str(write_kernel(tmp_path / "installed")))
    prepare_kernel(home)
    check = by_name(doctor.run_checks(home))["accelerator"]
    assert check == Check(
        "accelerator", Status.WARN, "tcg (software emulation): MSB_ACCEL=tcg", "unset MSB_ACCEL"
    )


def test_a_wrong_choice_is_a_failure(home, monkeypatch, tmp_path):
    monkeypatch.setenv("MSB_ACCEL", "warp")
    monkeypatch.setenv("MSB_KERNEL", str(write_kernel(tmp_path / "installed")))
    prepare_kernel(home)
    check = by_name(doctor.run_checks(home))["accelerator"]
    assert (check.ok, check.fix) == (False, "unset MSB_ACCEL")
    assert "'warp'" in check.found


def test_missing_programs_are_named_with_their_packages(home, no_tools):
    checks = by_name(doctor.run_checks(home))
    assert checks["sqfstar"].fix == "apt-get install squashfs-tools"
    assert checks["mke2fs"].fix == "apt-get install e2fsprogs"
    assert "apt-get install qemu-system-" in checks["QEMU"].fix
    assert not any(checks[name].ok for name in ("sqfstar", "mke2fs", "QEMU"))
    assert "accelerator" not in checks, "nothing can be said about it without QEMU"


def test_a_program_that_is_there_is_shown_with_its_path():
    check = doctor.check_tool(Tool("sh", "dash", "runs scripts"))
    assert check.ok and check.found.endswith("/sh")


@pytest.mark.parametrize(
    ("version", "status"), [((3, 11, 0), Status.OK), ((3, 14, 1), Status.OK), ((3, 10, 9), Status.FAIL)]
)
def test_the_python_version_is_checked(version, status):
    assert doctor.check_python(version).status is status


@pytest.mark.parametrize(
    ("mode", "status"), [(0o700, Status.OK), (0o750, Status.WARN), (0o755, Status.WARN), (0o777, Status.WARN)]
)
def test_a_home_that_others_can_enter_is_a_warning(home, mode, status):
    home.root.chmod(mode)
    check = doctor.check_home(home.root)
    assert check.status is status
    if status is Status.WARN:
        assert check.fix == f"chmod 700 {home.root}"


def test_a_home_that_does_not_exist_yet_is_fine(tmp_path):
    assert doctor.check_home(tmp_path / "some/where").status is Status.OK
    assert not (tmp_path / "some").exists(), "looking makes nothing"


def test_a_home_that_is_a_file_is_a_failure(tmp_path):
    (tmp_path / "home").touch()
    check = doctor.check_home(tmp_path / "home")
    assert (check.status, check.found) == (Status.FAIL, f"{tmp_path}/home is no directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_a_home_of_somebody_else_is_a_warning(home):
    os.chown(home.root, 12345, 12345)
    assert "belongs to user 12345" in doctor.check_home(home.root).found


@pytest.mark.parametrize(
    ("little", "too_little", "status"),
    [(0, 0, Status.OK), (1 << 60, 0, Status.WARN), (1 << 60, 1 << 60, Status.FAIL)],
)
def test_a_disk_that_is_nearly_full_is_told(tmp_path, monkeypatch, little, too_little, status):
    monkeypatch.setattr(doctor, "LITTLE_SPACE", little)
    monkeypatch.setattr(doctor, "TOO_LITTLE_SPACE", too_little)
    check = doctor.check_space(tmp_path / "not/there/yet")
    assert check.status is status
    assert (check.fix is None) == (status is Status.OK)


def test_a_path_too_long_for_sockets_is_a_failure(tmp_path):
    root = tmp_path / ("deep" * 25)
    root.mkdir()
    check = by_name(doctor.run_checks(Home(root, Config())))["socket path"]
    assert not check.ok
    assert check.fix == "set MSB_HOME to a shorter directory"


def test_the_catalogue_is_opened_but_not_made(home):
    assert doctor.check_catalogue(home).ok
    assert not home.database.exists()
    with Database(home.database).write():
        pass
    assert doctor.check_catalogue(home).found == f"{home.database}: 0 sandboxes"


def test_a_damaged_catalogue_is_a_failure(home):
    with Database(home.database).write() as connection:
        connection.executemany(
            "INSERT INTO sandbox (name, config, status, created_at, updated_at) VALUES (?, '', '', 0, 0)",
            [(f"{number}" * 50,) for number in range(2000)],
        )
    database = Database(home.database)
    with database.read() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    content = bytearray(home.database.read_bytes())
    content[8192:-4096] = os.urandom(len(content) - 8192 - 4096)
    home.database.write_bytes(content)
    check = by_name(doctor.run_checks(home))["catalogue"]
    assert not check.ok
    assert str(home.database) in check.found and str(home.database) in check.fix


def test_a_catalogue_of_a_newer_release_is_a_failure(home):
    home.database.parent.mkdir()
    connection = sqlite3.connect(home.database)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    check = by_name(doctor.run_checks(home))["catalogue"]
    assert not check.ok and "newer release" in check.found


def test_a_prepared_kernel_is_checked_bit_by_bit(home, monkeypatch, tmp_path):
    monkeypatch.setenv("MSB_KERNEL", str(write_kernel(tmp_path / "installed")))
    agent = tmp_path / "agentd"
    agent.write_bytes(AGENT)
    kernel = prepare_kernel(home, agent=agent)
    good = doctor.check_kernel(kernel)
    assert good.ok and kernel.version in good.found and "checksums match" in good.found
    content = bytearray(kernel.vmlinux.read_bytes())
    content[-1] ^= 1
    kernel.vmlinux.write_bytes(content)
    bad = doctor.check_kernel(kernel)
    assert not bad.ok and "checksum differs" in bad.found
    assert bad.fix.startswith(f"rm -r {kernel.vmlinux.parent}")


def test_a_wrong_msb_kernel_is_a_failure(home, monkeypatch):
    monkeypatch.setenv("MSB_KERNEL", "/nowhere/vmlinuz")
    check = by_name(doctor.run_checks(home))["guest kernel"]
    assert not check.ok
    assert "/nowhere/vmlinuz" in check.found and "unset MSB_KERNEL" in check.fix


def test_where_the_kernel_will_come_from_is_said_before_it_is_prepared(home):
    check = by_name(doctor.run_checks(home))["guest kernel"]
    assert check.ok and "not prepared yet" in check.found
    assert not home.kernels.exists(), "looking downloads nothing"


@pytest.mark.parametrize(
    ("kind", "status"), [(JailKind.NAMESPACES, Status.OK), (JailKind.LANDLOCK, Status.WARN)]
)
def test_what_the_jail_holds_is_said(kind, status):
    check = doctor.check_jail(JailVerdict(kind, "the reason"))
    assert check.status is status
    assert "the reason" in check.found and "no file but its own" in check.found
    assert (check.fix is None) == (status is Status.OK)


@pytest.mark.parametrize(
    ("setting", "value", "command"),
    [
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "user/max_user_namespaces",
            "7000",
            "allow user namespaces (in a container: its seccomp or AppArmor profile)",
        ),
    ],
)
def test_the_setting_that_forbids_namespaces_is_named(tmp_path, monkeypatch, setting, value, command):
    path = tmp_path / setting
    path.parent.mkdir()
    path.write_text(f"{value}\n")
    monkeypatch.setattr(doctor, "_SYS", tmp_path)
    assert doctor.check_jail(JailVerdict(JailKind.LANDLOCK, "refused")).fix == command


@pytest.fixture
def templates(home, monkeypatch, tmp_path):
    """The store of templates of a host that is ready, and the key of its default shape."""
    monkeypatch.setenv("MSB_ACCEL", "tcg")
    monkeypatch.setenv("MSB_KERNEL", str(write_kernel(tmp_path / "installed")))
    host = examine_host(home, prepare_kernel(home))
    store = TemplateStore(home)
    store.root.mkdir()
    return store, Shape(host, 1, 512).key


def template_check(home):
    return by_name(doctor.run_checks(home))["memory template"]


def test_a_missing_template_is_a_note(home, templates):
    check = template_check(home)
    assert (check.status, check.fix) == (Status.OK, "msb doctor --fix")
    assert check.found.startswith("1 CPU, 512 MiB: not built yet; ")
    assert list(templates[0].root.iterdir()) == [], "looking makes nothing"


def test_a_template_that_cannot_be_built_is_a_warning_with_the_reason(home, templates):
    store, key = templates
    store.record_failure(key, "the disk is full")
    check = template_check(home)
    assert (check.status, check.fix) == (Status.WARN, "msb template build")
    assert check.found.endswith("because the last build failed: the disk is full")


def test_a_template_is_checked_bit_by_bit(home, templates):
    store, key = templates
    partial = partial_path(store.root / key)
    partial.mkdir()
    (partial / "ram").write_bytes(b"x" * 8192)
    template = store.publish(partial, key, Description("tcg", 1, 512, "6.1", "7.2"))
    check = template_check(home)
    assert check.status is Status.OK
    assert check.found.startswith("1 CPU, 512 MiB: ") and check.found.endswith("checksums match")
    before = template.ram.stat()
    template.ram.chmod(0o600)
    template.ram.write_bytes(b"y" * 8192)
    os.utime(template.ram, ns=(before.st_atime_ns, before.st_mtime_ns))
    check = template_check(home)
    assert check.status is Status.WARN
    assert (check.found, check.fix.split(";")[0]) == (
        f"{template.ram} is not what was written",
        f"msb template rm {key[:12]}",
    )
    assert template.ram.exists(), "looking removes nothing"


@pytest.mark.parametrize(
    ("wanted", "status", "found"),
    [
        ("off", Status.OK, "none is used: MSB_TEMPLATES=off"),
        ("maybe", Status.FAIL, "invalid config: MSB_TEMPLATES must be auto or off, got 'maybe'"),
    ],
)
def test_templates_can_be_done_without(home, monkeypatch, wanted, status, found):
    monkeypatch.setenv("MSB_TEMPLATES", wanted)
    check = template_check(home)
    assert (check.status, check.found) == (status, found)


def test_a_check_that_raises_is_a_failure_of_its_own():
    def broken():
        raise KernelError("the reason")

    assert doctor.guarded("some", "do this", broken) == Check("some", Status.FAIL, "the reason", "do this")
