"""The agent's decoders survive any bytes: libFuzzer with address and undefined-behaviour sanitizers.

Each fuzzer runs for MSB_FUZZ_SECONDS (default 3) from the seeds in corpus/, which the host's encoder made.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.corpus import CORPUS, seeds

GUEST = Path(__file__).resolve().parents[2] / "guest"
SECONDS = int(os.environ.get("MSB_FUZZ_SECONDS", "3"))
FUZZERS = {
    "cbor": ["cbor.c"],
    "frame": ["cbor.c", "message.c", "wire.c"],
    "boot_config": ["cbor.c", "strlist.c", "limits.c", "boot_config.c"],
    "exec_request": ["cbor.c", "strlist.c", "limits.c", "exec_request.c"],
    "fs_request": ["cbor.c", "strlist.c", "fs_request.c"],
    "account": ["account.c"],
}
SANITIZERS = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]

needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")


def build(name: str, directory: Path) -> Path:
    program = directory / f"fuzz_{name}"
    sources = [GUEST / "fuzz" / f"fuzz_{name}.c", *(GUEST / source for source in FUZZERS[name])]
    command = ["clang", "-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", *SANITIZERS]
    done = subprocess.run(
        [*command, f"-I{GUEST}", "-o", program, *sources], capture_output=True, text=True, check=False
    )
    if "cannot find" in done.stderr and "clang_rt.fuzzer" in done.stderr:
        pytest.skip("clang has no libFuzzer runtime")
    assert done.returncode == 0, done.stderr
    return program


def test_the_committed_seeds_are_what_the_encoder_says_today():
    for fuzzer, contents in seeds().items():
        for name, content in contents.items():
            assert (CORPUS / fuzzer / name.strip()).read_bytes() == content, f"{fuzzer}/{name}"


@needs_clang
@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("name", FUZZERS)
def test_no_input_breaks(name, tmp_path):
    program = build(name, tmp_path)
    found = tmp_path / "found"
    found.mkdir()
    done = subprocess.run(
        [
            program,
            found,
            CORPUS / name,
            f"-max_total_time={SECONDS}",
            "-max_len=8192",
            "-timeout=10",
            "-verbosity=1",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr, "the fuzzer did not run to its end"
