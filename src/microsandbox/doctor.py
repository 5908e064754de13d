"""What this host has and lacks: one value for each thing sandboxes need, with the command that helps.

Nothing is downloaded, installed or repaired here. How it is shown is the command line's business.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from microsandbox import environment, tools
from microsandbox.errors import MicrosandboxError, PrerequisiteError
from microsandbox.sandbox.templates import templates_wanted
from microsandbox.store.home import SOCKET_PATH_LIMIT, Home
from microsandbox.template.shape import Shape
from microsandbox.template.store import TemplateStore
from microsandbox.tools import Tool
from microsandbox.units import GIB, MIB, format_bytes
from microsandbox.vmm.architecture import host_architecture
from microsandbox.vmm.host import Host, JailVerdict, accelerator_verdict, jail_verdict, kvm_missing
from microsandbox.vmm.installation import OLDEST_VERSION, find_installation
from microsandbox.vmm.jail_kind import JailKind
from microsandbox.vmm.kernel import GuestKernel, installed_kernel, verify_kernel
from microsandbox.vmm.machine import Accelerator, QemuInstallation

OLDEST_PYTHON = (3, 11)
#: Free bytes below the home under which an image is unlikely to fit, and under which nothing works.
LITTLE_SPACE, TOO_LITTLE_SPACE = 2 * GIB, 256 * MIB


class Status(StrEnum):
    """``WARN``: sandboxes work, but slower, less confined, or not for long."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(Struct, frozen=True):
    """One thing looked at: what was found, and what to do about it unless all is well."""

    name: str
    status: Status
    found: str
    fix: str | None = None

    @property
    def ok(self) -> bool:
        """Whether sandboxes can work as far as this goes."""
        return self.status is not Status.FAIL


_SYS = Path("/proc/sys")
_TEMPLATE = "memory template"


def run_checks(home: Home) -> list[Check]:
    """Look at everything. Takes well under a second, or some seconds when a verdict is not known yet."""
    return list(_all_checks(home))


def _all_checks(home: Home) -> Iterator[Check]:
    yield check_python(sys.version_info[:3])
    yield guarded("architecture", "use an x86_64 or aarch64 host", check_architecture)
    yield guarded("home", f"make {home.root} usable, or set MSB_HOME", lambda: check_home(home.root))
    yield guarded("free space", None, lambda: check_space(home.root))
    yield guarded("socket path", "set MSB_HOME to a shorter directory", lambda: check_socket_path(home))
    yield guarded("catalogue", f"move {home.database} away", lambda: check_catalogue(home))
    yield from (check_tool(tool) for tool in (tools.SQFSTAR, tools.MKE2FS))
    yield guarded("guest agent", "reinstall: pip install --force-reinstall microsandbox", check_agent)
    qemu, check = _qemu(home)
    yield check
    kernel, check = _kernel(home)
    yield check
    if qemu is None:
        return
    jail, check = _jail(home, qemu)
    yield check
    if jail is None:
        return
    check = guarded(
        "accelerator", "unset MSB_ACCEL", lambda: check_accelerator(home, qemu, kernel, jail.kind)
    )
    yield check
    if check.ok:
        yield guarded(_TEMPLATE, "unset MSB_TEMPLATES", lambda: _template(home, qemu, kernel, jail))


def guarded(name: str, fix: str | None, check: Callable[[], Check]) -> Check:
    """The check's result; a failure that says so when it raises instead."""
    try:
        return check()
    except (MicrosandboxError, OSError) as error:
        return Check(name, Status.FAIL, str(error), fix)


def check_python(version: tuple[int, ...]) -> Check:
    text = f"{'.'.join(map(str, version))} at {sys.executable}"
    if version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Check("Python", Status.FAIL, text, f"use Python {oldest} or newer")
    return Check("Python", Status.OK, text)


def check_architecture() -> Check:
    """Raises PrerequisiteError."""
    return Check("architecture", Status.OK, host_architecture().machine)


def check_home(root: Path) -> Check:
    """Whether the state directory can be written, and only by its owner. Raises OSError."""
    if not root.exists():
        existing = next(parent for parent in root.absolute().parents if parent.exists())
        if os.access(existing, os.W_OK | os.X_OK):
            return Check("home", Status.OK, f"{root}: made when it is first needed")
        fix = f"make {existing} writable, or set MSB_HOME"
        return Check("home", Status.FAIL, f"{root} cannot be made: {existing} is not writable", fix)
    found = root.stat()
    if not stat.S_ISDIR(found.st_mode):
        return Check("home", Status.FAIL, f"{root} is no directory", "move it away, or set MSB_HOME")
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return Check("home", Status.FAIL, f"{root} is not writable", f"sudo chown -R $USER {root}")
    if found.st_uid != os.geteuid():
        text = f"{root} belongs to user {found.st_uid}, who can change what sandboxes run"
        return Check("home", Status.WARN, text, "set MSB_HOME to a directory of your own")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        return Check(
            "home", Status.WARN, f"{root} is open to other users (mode {mode:o})", f"chmod 700 {root}"
        )
    return Check("home", Status.OK, str(root))


def check_space(root: Path) -> Check:
    """Raises OSError."""
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{format_bytes(free)} at {existing}"
    if free < TOO_LITTLE_SPACE:
        return Check("free space", Status.FAIL, text, "free some space, or set MSB_HOME to another disk")
    if free < LITTLE_SPACE:
        return Check("free space", Status.WARN, text, "msb image prune, or set MSB_HOME to another disk")
    return Check("free space", Status.OK, text)


def check_socket_path(home: Home) -> Check:
    """Raises InvalidConfigError when no sandbox could have a socket."""
    size = len(os.fsencode(home.agent_socket("any")))
    return Check("socket path", Status.OK, f"{size} of at most {SOCKET_PATH_LIMIT - 1} bytes")


def check_catalogue(home: Home) -> Check:
    """Open the database and let SQLite check it. Raises DatabaseError."""
    from microsandbox.store.database import Database

    if not home.database.exists():
        return Check("catalogue", Status.OK, f"{home.database}: made when it is first needed")
    database = Database(home.database, home.config.database)
    try:
        with database.read() as connection:
            verdict: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            count: int = connection.execute("SELECT count(*) FROM sandbox").fetchone()[0]
    finally:
        database.close()
    if verdict != "ok":
        fix = f"move {home.database} away; a new catalogue is made"
        return Check("catalogue", Status.FAIL, f"{home.database} is damaged: {verdict}", fix)
    return Check("catalogue", Status.OK, f"{home.database}: {count} sandbox{'' if count == 1 else 'es'}")


def check_tool(tool: Tool) -> Check:
    """A program of the host."""
    path = tools.find(tool)
    if path is None:
        return Check(tool.name, Status.FAIL, f"not found (it {tool.purpose})", _install(tool))
    return Check(tool.name, Status.OK, str(path))


def check_agent() -> Check:
    """Raises PrerequisiteError."""
    from microsandbox._guest import agent_binary

    agent = agent_binary()
    return Check("guest agent", Status.OK, f"{agent} ({format_bytes(agent.stat().st_size)})")


def check_qemu(qemu: QemuInstallation) -> Check:
    firmware = ", ".join(host_architecture().firmware) or "its own"
    text = f"{qemu.version} at {qemu.binary}, firmware {firmware} in {qemu.firmware}"
    return Check("QEMU", Status.OK, text)


def check_kernel(kernel: GuestKernel) -> Check:
    """Compare a prepared kernel with its checksums."""
    problems = verify_kernel(kernel)
    if problems:
        fix = f"rm -r {kernel.vmlinux.parent}; the next sandbox prepares it again"
        return Check("guest kernel", Status.FAIL, "; ".join(problems), fix)
    return Check("guest kernel", Status.OK, f"{kernel.version} from {kernel.source}, checksums match")


def check_jail(jail: JailVerdict) -> Check:
    """What holds a QEMU that was taken over by its guest."""
    if jail.kind is JailKind.NAMESPACES:
        text = (
            "namespaces: QEMU has no network, sees no process but itself and no file but its own, as a user "
            f"without privileges ({jail.reason})"
        )
        return Check("jail", Status.OK, text)
    text = (
        f"Landlock: QEMU reaches no file but its own; UDP and, with old kernels, signals to your processes "
        f"are not stopped ({jail.reason})"
    )
    return Check("jail", Status.WARN, text, _allow_namespaces())


def check_accelerator(
    home: Home, qemu: QemuInstallation, kernel: GuestKernel | None, jail: JailKind
) -> Check:
    """What executes guests here and why. Raises InvalidConfigError, PrerequisiteError for MSB_ACCEL."""
    if kernel is None:
        missing = kvm_missing()
        if missing is None:
            text = "KVM looks usable; it is tried once the guest kernel is prepared"
            return Check("accelerator", Status.OK, text)
        return Check("accelerator", Status.WARN, f"tcg (software emulation): {missing}", _enable_kvm())
    verdict = accelerator_verdict(home, qemu, kernel, jail)
    if verdict.accelerator is Accelerator.KVM:
        return Check("accelerator", Status.OK, f"kvm: {verdict.reason}")
    return Check("accelerator", Status.WARN, f"tcg (software emulation): {verdict.reason}", _enable_kvm())


def check_template(home: Home, host: Host) -> Check:
    """What sandboxes of the default shape start from; without it they boot. Raises InvalidConfigError."""
    defaults = home.config.sandbox_defaults
    shape = Shape(host, defaults.cpus, defaults.memory_mib)
    name = f"{shape.cpus} CPU{'' if shape.cpus == 1 else 's'}, {shape.memory_mib} MiB"
    store = TemplateStore(home)
    found = store.peek(shape.key)
    if found is not None:
        if problems := store.verify(found):
            text = "; ".join(problems)
            return Check(_TEMPLATE, Status.WARN, text, f"msb template rm {found.key[:12]}; it is built again")
        text = f"{name}: {format_bytes(found.disk_bytes)} at {found.directory}, checksums match"
        return Check(_TEMPLATE, Status.OK, text)
    if (reason := store.failure(shape.key)) is not None:
        text = f"{name}: sandboxes boot, because the last build failed: {reason}"
        return Check(_TEMPLATE, Status.WARN, text, "msb template build")
    text = f"{name}: not built yet; the first sandbox boots and has it built, or msb doctor --fix"
    return Check(_TEMPLATE, Status.OK, text, "msb doctor --fix")


# checks that lead to what others need


def _qemu(home: Home) -> tuple[QemuInstallation | None, Check]:
    try:
        qemu = find_installation(home)
    except (MicrosandboxError, OSError) as error:
        oldest = ".".join(map(str, OLDEST_VERSION))
        fix = f"install QEMU {oldest} or newer: {_install(_qemu_tool())}"
        return None, Check("QEMU", Status.FAIL, str(error), fix)
    return qemu, check_qemu(qemu)


def _kernel(home: Home) -> tuple[GuestKernel | None, Check]:
    try:
        kernel = installed_kernel(home)
    except (MicrosandboxError, OSError) as error:
        fix = "unset MSB_KERNEL, or point it at a kernel image or package"
        return None, Check(
            "guest kernel", Status.FAIL, str(error), fix if "MSB_KERNEL" in str(error) else None
        )
    if kernel is not None:
        check = check_kernel(kernel)
        return (kernel if check.ok else None), check
    sources = list(_kernel_sources())
    if sources:
        text = f"not prepared yet; the first sandbox prepares it from {' or '.join(sources)}"
        return None, Check("guest kernel", Status.OK, text)
    fix = "set MSB_KERNEL to a kernel image (vmlinuz) with its modules, or to a Debian kernel package"
    return None, Check(
        "guest kernel", Status.FAIL, "not prepared, and no source: no apt-get, no /boot/vmlinuz", fix
    )


def _kernel_sources() -> Iterator[str]:
    if configured := environment.value(environment.KERNEL):
        yield configured
        return
    if tools.find(tools.APT_GET) is not None and tools.find(tools.DPKG_DEB) is not None:
        yield "the distribution's package (a download of about 70 MB)"
    if any(os.access(path, os.R_OK) for path in Path("/boot").glob("vmlinuz-*")):
        yield "the host's own kernel"


def _jail(home: Home, qemu: QemuInstallation) -> tuple[JailVerdict | None, Check]:
    try:
        jail = jail_verdict(home, qemu)
    except (MicrosandboxError, OSError) as error:
        return None, Check("jail", Status.FAIL, str(error), _allow_namespaces())
    return jail, check_jail(jail)


def _template(home: Home, qemu: QemuInstallation, kernel: GuestKernel | None, jail: JailVerdict) -> Check:
    if not templates_wanted():
        return Check(_TEMPLATE, Status.OK, "none is used: MSB_TEMPLATES=off")
    if kernel is None:
        return Check(_TEMPLATE, Status.OK, "not built yet: it takes the guest kernel", "msb doctor --fix")
    accelerator = accelerator_verdict(home, qemu, kernel, jail.kind)
    return check_template(home, Host(qemu, kernel, jail, accelerator))


# what helps


def _install(tool: Tool) -> str:
    return f"apt-get install {tool.package}"


def _qemu_tool() -> Tool:
    try:
        return host_architecture().qemu
    except PrerequisiteError:
        return tools.QEMU_X86_64


def _allow_namespaces() -> str:
    """The settings that forbid user namespaces here, as commands that allow them."""
    commands = [
        f"sysctl -w {name}={wanted}"
        for name, wanted in (
            ("kernel.apparmor_restrict_unprivileged_userns", "0"),
            ("kernel.unprivileged_userns_clone", "1"),
            ("user.max_user_namespaces", "15000"),
        )
        if _forbids(_SYS / name.replace(".", "/"), wanted)
    ]
    return "\n".join(commands) or "allow user namespaces (in a container: its seccomp or AppArmor profile)"


def _forbids(setting: Path, wanted: str) -> bool:
    """Whether a setting exists and is on the forbidding side."""
    try:
        value = setting.read_text().strip()
    except OSError:
        return False
    return value == ("1" if wanted == "0" else "0")


def _enable_kvm() -> str | None:
    device = Path("/dev/kvm")
    if environment.value(environment.ACCELERATOR) == "tcg":
        return "unset MSB_ACCEL"
    if not device.exists():
        return (
            "enable virtualisation in the firmware (or nested virtualisation of the cloud VM), modprobe kvm"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return "sudo usermod -aG kvm $USER, then log in again"
    return (
        "use a host that offers virtualisation (for a VM: nested); without it guests run 5 to 20 times slower"
    )
