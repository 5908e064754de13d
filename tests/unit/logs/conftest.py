import functools
import json
import time

import pytest

from microsandbox.runtime import log_files
from microsandbox.runtime.log_files import RotatingFile

NOON = 1767268800000  # 2026-01-01T12:00:00Z, in milliseconds


@functools.lru_cache(16)
def _second(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def stamp(milliseconds):
    seconds = _second(milliseconds // 1000)
    return f"{seconds}.{milliseconds % 1000:03d}Z"


class Logs:
    """A log directory, written to as a supervisor does. Times are milliseconds after noon."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir(parents=True)
        self.files = {}

    def write(self, name, data):
        if name not in self.files:
            self.files[name] = RotatingFile(self.directory / name)
        self.files[name].write(data)

    def printed(self, text, at=0, source="stdout", id=1, **more):
        line = {"t": stamp(NOON + at), "s": source, "d": text, "id": id, **more}
        if source == "system":
            del line["id"]
        self.write("exec.log", json.dumps(line).encode() + b"\n")

    def rotate(self, name="exec.log"):
        self.files[name]._rotate()

    def close(self):
        for file in self.files.values():
            file.close()


@pytest.fixture
def logs(tmp_path):
    logs = Logs(tmp_path / "logs")
    yield logs
    logs.close()


@pytest.fixture
def small_files(monkeypatch):
    """Files are rotated at a kilobyte."""
    monkeypatch.setattr(log_files, "MAX_BYTES", 1000)
