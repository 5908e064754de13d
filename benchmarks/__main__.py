"""The figures of docs/performance.md, measured here and now: ``python -m benchmarks [SUBJECT ...]``.

Every subject is a module and a process of its own; ``python -m benchmarks.SUBJECT --help`` lists its options.
"""

import argparse
import subprocess
import sys

SUBJECTS = {
    "basics": "start of the command, image load, cold boot, exec, throughput, memory (the default)",
    "start": "create + exec from a memory template against a cold boot",
    "pool": "a sandbox from a pool against making one",
    "podman": "msb run against podman run",
    "exec": "exec in a running sandbox against podman exec",
    "idle": "memory and CPU of a sandbox that does nothing",
    "runtime": "stop, following logs, a flood of output, metrics of 50 sandboxes (minutes)",
    "many": "100 sandboxes at once (minutes)",
    "rate": "creates per second for a minute, and what they leave behind",
}


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:<8} {what}" for name, what in SUBJECTS.items()),
    )
    parser.add_argument("subject", nargs="*", help="what to measure, in this order: see below")
    chosen = parser.parse_args().subject or ["basics"]
    if unknown := [name for name in chosen if name not in SUBJECTS]:
        parser.error(f"no such subject: {', '.join(unknown)} (there are {', '.join(SUBJECTS)})")
    subprocess.run(["uname", "-srm"], check=True)
    print("\n| What | Figure | Promise |\n|---|---|---|", flush=True)
    failed = [
        name for name in chosen if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode
    ]
    if failed:
        sys.exit(f"not as promised: {', '.join(failed)}")


if __name__ == "__main__":
    main()
