"""Every exception of this package.

    MicrosandboxError
    ├── InvalidConfigError
    ├── SandboxNotFoundError
    ├── SandboxNotRunningError
    ├── SandboxAlreadyExistsError
    ├── SandboxStillRunningError
    ├── SandboxPausedError           a request to a sandbox that somebody has paused
    ├── BootError                    the virtual machine did not come up
    ├── DiskError                    a disk image cannot be attached (also an OSError)
    │   └── DiskInUseError           another machine has it
    ├── PoolTimeoutError             no sandbox of the pool was ready in time
    ├── PoolClosedError
    ├── AgentClientError             the connection to the guest agent failed
    │   ├── AgentUnresponsiveError   the agent hangs, and its sandbox was ended for it
    │   └── RuntimeTooOldError       it speaks an earlier generation of the protocol
    ├── ExecTimeoutError
    ├── ExecFailedError              the command never started
    ├── FilesystemError
    │   └── PathNotFoundError
    ├── VolumeNotFoundError
    ├── ImageError                   an archive, a layer or a registry's answer is wrong
    │   └── ImagePullFailedError
    ├── ImageNotFoundError
    ├── ImageInUseError
    ├── NetworkPolicyError
    ├── SecretViolationError
    ├── TlsError
    ├── IoError
    ├── MetricsDisabledError
    ├── MetricsUnavailableError
    ├── LogCursorError               where a log stream was to go on is no longer kept
    ├── LogRotatedError              log files were deleted before they were read
    ├── UnsupportedOperationError
    │   └── NotSupportedYetError     part of the API, not of this release
    ├── PrerequisiteError            the host lacks a program, a kernel or a device
    ├── KernelError                  the guest kernel cannot be prepared
    ├── VmmError                     QEMU cannot be started or has failed
    └── TemplateError                a memory template cannot be built, found or removed

Each class has a stable ``code`` and one message; what else a caller may want to act on is an
attribute of the class concerned.
"""

from __future__ import annotations

from typing import ClassVar


class MicrosandboxError(Exception):
    """Base of every error this package raises on purpose. Can be pickled."""

    code: ClassVar[str] = "microsandbox-error"

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call __init__ with the finished message.
        return _restore, (type(self), self.args, self.__dict__)


class InvalidConfigError(MicrosandboxError):
    """An option, a name or a configuration file is wrong. ``detail`` is the message without its prefix."""

    code = "invalid-config"

    def __init__(self, detail: str) -> None:
        super().__init__(f"invalid config: {detail}")
        self.detail = detail


class SandboxNotFoundError(MicrosandboxError):
    code = "sandbox-not-found"

    def __init__(self, name: str) -> None:
        super().__init__(f"sandbox not found: {name}")
        self.name = name


class SandboxNotRunningError(MicrosandboxError):
    code = "sandbox-not-running"


class SandboxAlreadyExistsError(MicrosandboxError):
    code = "sandbox-already-exists"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"sandbox already exists: sandbox '{name}' already exists; remove it, start the stopped sandbox, "
            "or recreate with .replace()"
        )
        self.name = name


class SandboxStillRunningError(MicrosandboxError):
    code = "sandbox-still-running"

    def __init__(self, detail: str) -> None:
        super().__init__(f"sandbox still running: {detail}")


class SandboxPausedError(MicrosandboxError):
    """A command or a file operation was asked of a sandbox that somebody has paused: resume it first."""

    code = "sandbox-paused"


class BootError(MicrosandboxError):
    """The virtual machine did not come up.

    ``stage`` is one of ``build_vm``, ``mount``, ``image``, ``network``, ``config``, ``other``; ``errno``
    is the guest's or host's error number where there is one, ``hint`` what to do where that is known.
    """

    code = "boot-failed"

    def __init__(
        self,
        name: str,
        message: str,
        *,
        stage: str = "other",
        errno: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f'failed to start "{name}": {message}')
        self.name = name
        self.message = message
        self.stage = stage
        self.errno = errno
        self.hint = hint


class DiskError(MicrosandboxError, OSError):
    """A disk image cannot be attached: ``errno`` says why, ``filename`` is the image."""

    code = "disk-error"

    def __init__(self, message: str, number: int | None, path: str) -> None:
        super().__init__(message)
        self.errno = number
        self.filename = path

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.args[0], self.errno, self.filename)


class DiskInUseError(DiskError):
    """A disk image is attached to another machine, in a mode that excludes this one."""

    code = "disk-in-use"


class PoolTimeoutError(MicrosandboxError):
    """No sandbox of a pool was ready within ``timeout`` seconds."""

    code = "pool-timeout"

    def __init__(self, timeout: float, starting: int) -> None:
        super().__init__(
            f"no sandbox of the pool was ready within {timeout:g} s ({starting} starting); "
            "wait longer, or make the pool larger"
        )
        self.timeout = timeout


class PoolClosedError(MicrosandboxError):
    code = "pool-closed"

    def __init__(self) -> None:
        super().__init__("the pool is closed; make a new SandboxPool")


class AgentClientError(MicrosandboxError):
    """The connection to a sandbox's agent could not be made, or broke."""

    code = "agent-client-error"

    def __init__(self, detail: str) -> None:
        super().__init__(f"agent client error: {detail}")
        self.detail = detail


class AgentUnresponsiveError(AgentClientError):
    """The guest's agent did not answer for some ten seconds; its sandbox was ended."""

    code = "agent-unresponsive"


class RuntimeTooOldError(AgentClientError):
    """A sandbox that was started by an earlier release lacks what was asked of it: restart it."""

    code = "runtime-too-old"

    def __init__(self, message_type: str, needed: int, spoken: int) -> None:
        super().__init__(
            f"the sandbox runtime is too old for '{message_type}' (needs protocol generation {needed}, the "
            f"sandbox speaks {spoken}); restart the sandbox to update its runtime"
        )
        self.message_type = message_type
        self.needed = needed
        self.spoken = spoken


class ExecTimeoutError(MicrosandboxError):
    code = "exec-timeout"


class ExecFailedError(MicrosandboxError):
    """The command could not be started.

    ``kind`` is ``not_found``, ``permission_denied``, ``not_executable``, ``bad_cwd``, ``bad_args``,
    ``resource_limit``, ``user_setup_failed``, ``out_of_memory``, ``pty_setup_failed`` or ``other``.
    """

    code = "exec-failed"

    def __init__(
        self, message: str, *, kind: str = "other", errno: int | None = None, errno_name: str | None = None
    ) -> None:
        super().__init__(f"exec failed: {message}")
        self.message = message
        self.kind = kind
        self.errno = errno
        self.errno_name = errno_name


class FilesystemError(MicrosandboxError):
    code = "filesystem-error"

    def __init__(self, detail: str) -> None:
        super().__init__(f"sandbox fs error: {detail}")
        self.detail = detail


class PathNotFoundError(FilesystemError):
    code = "path-not-found"


class VolumeNotFoundError(MicrosandboxError):
    code = "volume-not-found"

    def __init__(self, name: str) -> None:
        super().__init__(f"volume not found: {name}")
        self.name = name


class ImageError(MicrosandboxError):
    """An image reference, archive, layer or registry answer is wrong."""

    code = "image-error"

    def __init__(self, detail: str) -> None:
        super().__init__(f"image error: {detail}")
        self.detail = detail


class ImagePullFailedError(ImageError):
    code = "image-pull-failed"


class ImageNotFoundError(MicrosandboxError):
    code = "image-not-found"

    def __init__(self, reference: str) -> None:
        super().__init__(f"image not found: {reference}")
        self.reference = reference


class ImageInUseError(MicrosandboxError):
    code = "image-in-use"

    def __init__(self, sandboxes: list[str]) -> None:
        super().__init__(f"image in use by sandbox(es): {', '.join(sandboxes)}")
        self.sandboxes = sandboxes


class NetworkPolicyError(MicrosandboxError):
    code = "network-policy-error"


class SecretViolationError(MicrosandboxError):
    code = "secret-violation"


class TlsError(MicrosandboxError):
    code = "tls-error"


class IoError(MicrosandboxError):
    code = "io-error"

    def __init__(self, detail: object) -> None:
        super().__init__(f"io error: {detail}")


class MetricsDisabledError(MicrosandboxError):
    code = "metrics-disabled"


class MetricsUnavailableError(MicrosandboxError):
    code = "metrics-unavailable"


class LogCursorError(MicrosandboxError):
    """The position of a log cursor is in a file that has been rotated away: begin with what there is."""

    code = "invalid-log-cursor"

    def __init__(self, detail: str) -> None:
        super().__init__(f"invalid log cursor: {detail}")


class LogRotatedError(MicrosandboxError):
    """Files were deleted that a slow reader had yet to read. ``offset`` is where its last one ended."""

    code = "log-rotated"

    def __init__(self, offset: int) -> None:
        super().__init__(f"log stream missed rotation (dropped from offset {offset})")
        self.offset = offset


class UnsupportedOperationError(MicrosandboxError):
    code = "unsupported-operation"


class NotSupportedYetError(UnsupportedOperationError):
    """A part of the API that this release does not implement. ``feature`` names it."""

    code = "not-supported-yet"

    def __init__(self, feature: str) -> None:
        super().__init__(f"{feature}: not supported yet by this release")
        self.feature = feature


class PrerequisiteError(MicrosandboxError):
    """The host lacks something; the message says what to install or enable."""

    code = "missing-prerequisite"


class KernelError(MicrosandboxError):
    """The guest kernel cannot be prepared."""

    code = "kernel-error"


class VmmError(MicrosandboxError):
    """QEMU cannot be started, or failed; the message ends with the last lines of its reason."""

    code = "vmm-error"


class TemplateError(MicrosandboxError):
    """A memory template cannot be built, or there is none of that id."""

    code = "template-error"


def _restore(
    kind: type[MicrosandboxError], args: tuple[object, ...], attributes: dict[str, object]
) -> object:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error
