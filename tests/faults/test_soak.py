"""Every fault of the soak once, in short rounds of one plan; ``make soak`` goes on from there."""

import os
import subprocess
import sys

import pytest

from tests.soak.faults import FAULTS

pytestmark = [pytest.mark.vm, pytest.mark.fault]


@pytest.mark.skipif(os.geteuid() != 0, reason="the soak mounts a file system of its own")
def test_a_round_of_every_fault_leaves_nothing_behind():
    rounds = str(len(FAULTS))
    command = [sys.executable, "-m", "tests.soak", "--seed", "5", "--rounds", rounds, "--seconds", "3"]
    soak = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert all(f", {fault.name}: clean" in soak.stdout for fault in FAULTS)
