"""Seeds of the agent's fuzzers: what the host's encoder says. ``python -m tests.fuzz.corpus`` writes them."""

from __future__ import annotations

from pathlib import Path

import cbor2

from microsandbox.agent.protocol import MessageType, encode

CORPUS = Path(__file__).parent / "corpus"

EXEC_REQUESTS = {
    "plain": {"cmd": "ls", "args": ["-l", "/"], "env": ["A=1", "PATH=/bin"], "cwd": None, "user": None},
    "terminal": {"cmd": "sh", "args": [], "env": [], "cwd": "/tmp", "tty": True, "rows": 50, "cols": 132},
    "limits": {
        "cmd": "/bin/true",
        "args": [],
        "env": [],
        "user": "app:1000",
        "rlimits": [
            {"resource": "nofile", "soft": 10, "hard": 20},
            {"resource": "CPU", "soft": 1, "hard": 2**64 - 1},
        ],
    },
}

FS_OPERATIONS = {
    "real-path": {"RealPath": {"path": "/tmp/../etc"}},
    "stat": {"Stat": {"path": "/etc/passwd", "follow_symlink": False}},
    "set-stat": {
        "SetStat": {
            "path": "/f",
            "follow_symlink": True,
            "attrs": {"mode": 0o644, "uid": 1, "gid": 2, "size": None, "atime": -5, "mtime": 2**40},
        }
    },
    "symlink": {"Symlink": {"target": "../x", "link_path": "/l"}},
    "mkdir": {"Mkdir": {"path": "/a/b/c", "mode": 0o700}},
    "remove": {"RemoveDir": {"path": "/a", "recursive": True}},
    "rename": {"Rename": {"src": "/a", "dst": "/b"}},
    "open": {
        "OpenFile": {
            "path": "/f",
            "options": {
                "read": True,
                "write": True,
                "append": False,
                "create": True,
                "truncate": False,
                "mode": 0o600,
            },
        }
    },
    "read-dir": {"ReadDir": {"handle": 7, "limit": 512}},
    "read": {"Read": {"handle": 2**63, "offset": 2**40, "len": None}},
    "write": {"Write": {"handle": 1, "offset": 0, "len": 1 << 20}},
    "close": {"CloseHandle": {"handle": 1}},
}

BOOT_CONFIGS = {
    "whole": {
        "hostname": "box",
        "machine_id": "0123456789abcdef" * 2,
        "root": {
            "lower": "/dev/vda",
            "lower_fstype": "squashfs",
            "upper": "/dev/vdb",
            "upper_fstype": "ext4",
        },
        "tmpfs": [{"path": "/tmp", "size_mib": 64}, {"path": "/a/b", "size_mib": None}],
        "env": ["A=1"],
        "user": "app",
        "scripts": [{"name": "hello", "content": b"#!/bin/sh\n"}],
        "rlimits": [{"resource": "nofile", "soft": 1024, "hard": 4096}],
        "security_profile": "restricted",
        "unix_time_nanos": 1_800_000_000_000_000_000,
        "entropy": bytes(range(64)),
    },
    "init": {"hostname": "box", "init": {"cmd": "/sbin/init", "args": ["-x", ""], "env": ["A=1"]}},
}

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nwheel:x:10:root,app\n"


def seeds() -> dict[str, dict[str, bytes]]:
    """The content of every seed, by fuzzer and name."""
    requests = {f"request-{name}": {"op": operation} for name, operation in FS_OPERATIONS.items()}
    fs = {name: cbor2.dumps(payload) for name, payload in requests.items()}
    commands = {name: cbor2.dumps(payload) for name, payload in EXEC_REQUESTS.items()}
    boots = {name: cbor2.dumps(payload) for name, payload in BOOT_CONFIGS.items()}
    frames = {
        "shutdown": encode(0, MessageType.SHUTDOWN).raw,
        "session": b"".join(
            (
                encode(1, MessageType.EXEC_REQUEST, EXEC_REQUESTS["plain"]).raw,
                encode(1, MessageType.EXEC_STDIN, {"data": b"input"}).raw,
                encode(1, MessageType.FLOW, {"paused": True}).raw,
                encode(1, MessageType.EXEC_SIGNAL, {"signal": 9}).raw,
            )
        ),
    }
    accounts = {
        name.replace(":", "-"): "\0".join((name, PASSWD, GROUP)).encode()
        for name in ("root", "app:wheel", "1000", "77:88", "ghost", " app ")
    }
    return {
        "cbor": {"indefinite": b"\x9f\xbf\x61a\x01\xff\xff", "tag": b"\xc1\x1a\x00\x00\x00\x01", **boots},
        "frame": frames,
        "boot_config": boots,
        "exec_request": commands,
        "fs_request": fs,
        "account": accounts,
    }


def write() -> None:
    for fuzzer, contents in seeds().items():
        directory = CORPUS / fuzzer
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (directory / name.strip()).write_bytes(content)


if __name__ == "__main__":
    write()
