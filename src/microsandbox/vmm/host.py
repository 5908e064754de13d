"""What this host can do: which jail QEMU can be shut in, and whether KVM really works.

Both are found out by trying, once: the verdicts are kept with everything that could change them (boot,
kernel settings, QEMU, guest kernel, user), so that creating a sandbox costs one small file to read.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from microsandbox import environment
from microsandbox.errors import PrerequisiteError
from microsandbox.interpreter import module_command, module_environment
from microsandbox.store.files import FileLock, make_private, write_atomically
from microsandbox.store.home import Home
from microsandbox.vmm import linux
from microsandbox.vmm.architecture import X86_64, host_architecture
from microsandbox.vmm.installation import find_installation
from microsandbox.vmm.jail_kind import JailKind
from microsandbox.vmm.kernel import GuestKernel
from microsandbox.vmm.machine import Accelerator, QemuInstallation

#: Seconds a guest under KVM may take to reach its agent; where KVM works it needs a tenth of it.
KVM_TRIAL_SECONDS = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE_SETTINGS = (
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)


class JailVerdict(Struct, frozen=True):
    """The strongest jail that works here, and why not a stronger one (or that there is none)."""

    kind: JailKind
    reason: str


class Verdict(Struct, frozen=True):
    """What executes guests here, and why."""

    accelerator: Accelerator
    reason: str


class Host(Struct, frozen=True):
    """All that a machine is built from besides its own disks."""

    qemu: QemuInstallation
    kernel: GuestKernel
    jail: JailVerdict
    accelerator: Verdict


def examine_host(home: Home, kernel: GuestKernel) -> Host:
    """Raises PrerequisiteError for what is missing, InvalidConfigError for a wrong ``MSB_ACCEL``."""
    qemu = find_installation(home)
    jail = jail_verdict(home, qemu)
    return Host(qemu, kernel, jail, accelerator_verdict(home, qemu, kernel, jail.kind))


def jail_verdict(home: Home, qemu: QemuInstallation) -> JailVerdict:
    """Raises PrerequisiteError when QEMU can be confined in no way that counts."""

    def find_out() -> dict[str, Any]:
        refused = _run_trial("jail", JailKind.NAMESPACES, qemu)
        if refused is None:
            return asdict(JailVerdict(JailKind.NAMESPACES, "user namespaces work"))
        abi = linux.landlock_abi()
        if abi == 0:
            raise PrerequisiteError(
                f"QEMU cannot be confined here: user namespaces fail ({refused}) and the kernel has no "
                "Landlock; allow user namespaces (sysctl user.max_user_namespaces, "
                "kernel.apparmor_restrict_unprivileged_userns=0) or boot a kernel of at least 5.13"
            )
        if failed := _run_trial("jail", JailKind.LANDLOCK, qemu):
            raise PrerequisiteError(
                f"QEMU cannot be confined here: user namespaces fail ({refused}), Landlock too ({failed})"
            )
        return asdict(
            JailVerdict(
                JailKind.LANDLOCK, f"user namespaces fail ({refused}); Landlock version {abi} is used"
            )
        )

    settings = [_read(Path(path)) for path in _NAMESPACE_SETTINGS]
    key = [_read(_BOOT_ID), os.geteuid(), qemu.version, len(qemu.files), *settings]
    values = _remembered(home, "jail", key, find_out)
    return JailVerdict(JailKind(values["kind"]), values["reason"])


def accelerator_verdict(home: Home, qemu: QemuInstallation, kernel: GuestKernel, jail: JailKind) -> Verdict:
    """KVM if it really works, else TCG; ``MSB_ACCEL`` decides otherwise."""
    wanted = environment.choice(environment.ACCELERATOR)
    if wanted == "tcg":
        return Verdict(Accelerator.TCG, "MSB_ACCEL=tcg")
    missing = kvm_missing() if wanted == "auto" else None
    if missing is not None:
        return Verdict(Accelerator.TCG, missing)

    def find_out() -> dict[str, Any]:
        return {"failure": try_kvm(qemu, kernel, jail)}

    key = [_read(_BOOT_ID), os.geteuid(), qemu.version, kernel.version, jail.value]
    failure = _remembered(home, "kvm", key, find_out)["failure"]
    if failure is None:
        return Verdict(Accelerator.KVM, "a guest ran under KVM")
    if wanted == "kvm":
        raise PrerequisiteError(f"MSB_ACCEL=kvm, but KVM does not work here: {failure}; use MSB_ACCEL=auto")
    return Verdict(Accelerator.TCG, f"/dev/kvm opens but does not work: {failure}")


def kvm_missing() -> str | None:
    """Why KVM need not be tried, if so."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    if host_architecture() is X86_64 and not {"vmx", "svm"} & set(_read(Path("/proc/cpuinfo")).split()):
        return "/dev/kvm opens, but the processor offers no virtualisation (neither vmx nor svm)"
    return None


def try_kvm(qemu: QemuInstallation, kernel: GuestKernel, jail: JailKind) -> str | None:
    """Boot a guest under KVM until its agent speaks. What went wrong, or None. Takes seconds at most."""
    files = (str(kernel.vmlinux), str(kernel.initramfs))
    return _run_trial("kvm", jail, qemu, *files, str(KVM_TRIAL_SECONDS))


def _run_trial(what: str, jail: JailKind, qemu: QemuInstallation, *arguments: str) -> str | None:
    command = module_command("microsandbox.vmm.trial", what, jail.value, json.dumps(asdict(qemu)), *arguments)
    try:
        done = subprocess.run(
            command,
            env=module_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=4 * KVM_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the trial did not end"
    if done.returncode == 0:
        return None
    said = done.stdout or done.stderr[-1000:] or b"it gave no reason"
    return said.decode("utf-8", "replace").strip()


def _remembered(
    home: Home, name: str, key: list[Any], find_out: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The verdict kept under that name if its key still holds, else a new one, found out once."""
    path = home.cache / f"host-{name}.json"
    if (known := _recall(path, key)) is not None:
        return known
    with FileLock(home.cache / "locks" / f"host-{name}.lock"):
        known = _recall(path, key)
        if known is None:
            known = find_out()
            make_private(path.parent)
            write_atomically(path, json.dumps({"key": key, "verdict": known}, indent=1).encode())
        return known


def _recall(path: Path, key: list[Any]) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
        verdict: dict[str, Any] | None = document["verdict"] if document["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdict


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
