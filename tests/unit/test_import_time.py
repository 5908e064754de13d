"""``import microsandbox`` costs next to nothing, because every program and every supervisor pays it."""

import statistics
import subprocess
import sys
import time

#: Seconds above a bare interpreter; measured: 2 to 3 ms.
BOUND = 0.060
HEAVY = (
    "asyncio",
    "httpx",
    "rich",
    "cbor2",
    "msgspec",
    "dataclasses",
    "typing",
    "sqlite3",
    "microsandbox.errors",
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_loads_nothing_that_is_not_needed_yet():
    code = "import sys; before = set(sys.modules); import microsandbox; print(*set(sys.modules) - before)"
    loaded = set(run(code).split())
    assert "microsandbox" in loaded
    assert loaded & set(HEAVY) == set()


def test_importing_takes_little_longer_than_starting_python():
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    pairs = [(seconds("pass"), seconds("import microsandbox")) for _ in range(9)]
    extra = statistics.median(loaded - bare for bare, loaded in pairs)
    assert extra < BOUND, f"import microsandbox takes {extra * 1e3:.1f} ms more than a bare interpreter"


def test_a_value_type_does_not_load_the_runtime():
    code = (
        "import sys; from microsandbox import Network, PullPolicy, Stdin, MountConfig; "
        "print('asyncio' in sys.modules, 'microsandbox.sandbox.sandbox' in sys.modules)"
    )
    assert run(code).split() == ["False", "False"]
