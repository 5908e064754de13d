"""The options of ``run`` and ``create``: what a sandbox is made of."""

from __future__ import annotations

from microsandbox.cli import values
from microsandbox.cli.model import Option, Stage

LOG_LEVELS = ("error", "warn", "info", "debug", "trace")


def later(long: str, short: str | None = None, value: str | None = None, *, repeat: bool = True) -> Option:
    """An option of microsandbox that this release does not have."""
    return Option(long, short, value, repeat=repeat and value is not None, stage=Stage.LATER)


#: They name or replace a sandbox, or concern this invocation only; the rest shape what is created.
IDENTITY = (
    Option("name", "n", "NAME", "Name of the sandbox; without one it is thrown away after `run`"),
    Option("replace", help="Replace an existing sandbox of that name"),
    Option(
        "replace-with-timeout",
        None,
        "DURATION",
        "As --replace, with that long for the old one to end",
        convert=values.duration,
    ),
    Option("quiet", "q", help="Show no progress"),
)

#: Their presence is what `run` warns about when the sandbox exists already.
CREATION = (
    Option("label", None, "KEY[=VALUE]", "Label to find it by", True, values.label),
    Option("cpus", "c", "N", "Virtual CPUs", convert=values.count),
    Option("memory", "m", "SIZE", "Memory, e.g. 512M or 1G", convert=values.size),
    Option("tmpfs", None, "PATH[:SIZE][:OPTIONS]", "File system in memory", True, values.tmpfs),
    Option("workdir", "w", "PATH", "Directory that commands start in"),
    Option("shell", None, "PATH", "Shell of the sandbox (default /bin/sh)", convert=values.shell),
    Option(
        "env", "e", "KEY[=VALUE]", "Environment variable; without a value, the caller's", True, values.env
    ),
    Option(
        "security",
        None,
        "PROFILE",
        "Security profile: default or restricted",
        convert=values.one_of("security profile", "default", "restricted"),
    ),
    Option(
        "script",
        None,
        "NAME=BODY",
        "Script on the guest's PATH; \\n and the like are decoded",
        True,
        values.script,
    ),
    Option("script-raw", None, "NAME=BODY", "Script, verbatim", True, values.script_raw),
    Option("script-path", None, "NAME:PATH", "Script from a file of the host", True, values.script_path),
    Option("entrypoint", None, "COMMAND", "Replace the image's entrypoint by this word"),
    Option("hostname", "H", "NAME", "Host name in the guest (default: the sandbox's name)"),
    Option("user", "u", "USER", "User that commands run as: name, uid or uid:gid"),
    Option(
        "pull",
        None,
        "POLICY",
        "When to pull: always, if-missing or never",
        convert=values.one_of("pull policy", "always", "if-missing", "never"),
    ),
    Option("oci-upper-size", None, "SIZE", "Size of the writable layer", convert=values.size),
    Option(
        "log-level",
        None,
        "LEVEL",
        "Log level of the sandbox's runtime: error, warn, info, debug or trace",
        convert=values.one_of("log level", *LOG_LEVELS),
    ),
    Option("max-duration", None, "DURATION", "Longest life of the machine", convert=values.whole_seconds),
    Option(
        "idle-timeout", None, "DURATION", "Stop after so long without activity", convert=values.whole_seconds
    ),
    Option(
        "pause-after", None, "DURATION", "Pause while so long without activity", convert=values.whole_seconds
    ),
    Option("init", None, "PATH", "Program of the image that becomes PID 1, or auto", convert=values.init),
    Option("init-arg", None, "STR", "Argument of the init", True, hyphen=True),
    Option("init-env", None, "KEY=VALUE", "Environment variable of the init", True, values.init_env),
    Option("no-net", help="No network"),
    later("volume", "v", "SPEC"),
    later("mount-dir", None, "SPEC"),
    later("mount-file", None, "SPEC"),
    later("mount-disk", None, "SPEC"),
    later("mount-named", None, "SPEC"),
    later("copy", None, "SRC:DST"),
    later("copy-file", None, "SRC:DST"),
    later("copy-dir", None, "SRC:DST"),
    later("mkdir", None, "PATH"),
    later("rm", None, "PATH"),
    later("port", "p", "SPEC"),
    later("net-default", None, "ACTION"),
    later("net-default-egress", None, "ACTION"),
    later("net-default-ingress", None, "ACTION"),
    later("net-rule", None, "RULE"),
    later("net-ipv4-pool", None, "CIDR"),
    later("net-ipv6-pool", None, "CIDR"),
    later("max-connections", None, "N"),
    later("trust-host-cas"),
    later("dns-nameserver", None, "ADDRESS"),
    later("dns-query-timeout-ms", None, "MS"),
    later("no-dns-rebind-protection"),
    later("tls-intercept"),
    later("tls-intercept-port", None, "PORT"),
    later("tls-bypass", None, "DOMAIN"),
    later("no-block-quic"),
    later("tls-intercept-ca-cert", None, "PATH"),
    later("tls-intercept-ca-key", None, "PATH"),
    later("tls-upstream-ca-cert", None, "PATH"),
    later("secret", None, "SPEC"),
    later("on-secret-violation", None, "ACTION"),
)
