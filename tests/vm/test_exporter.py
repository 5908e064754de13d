"""What a real sandbox uses, as monitoring systems get it from msb-metrics."""

import re

import pytest

from microsandbox import Sandbox
from tests.exporter.conftest import Prometheus, ended, programs

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("clean")]


@pytest.fixture
def start(session_home):
    with programs() as start:
        yield start


async def test_a_sandbox_is_on_standard_output_and_in_prometheus(busybox, name, start, tmp_path):
    async with await Sandbox.create(name, image=busybox, labels={"team": "core"}) as sandbox:
        await sandbox.metrics()
        page = start("prometheus", "--listen", "127.0.0.1:0")
        scraping = Prometheus(tmp_path, page.process.stderr.readline().split("/")[2])
        with ended(scraping.process):
            busy = await sandbox.shell_stream("while :; do :; done")
            own = f'sandbox_name="{name}",team="core"'
            scraping.wait_for(f"microsandbox_cpu_utilization_ratio{{{own}}} > 0.2")
            [(_, memory)] = scraping.query(f"microsandbox_memory_usage_bytes{{{own}}}")
            assert 8 << 20 < memory < 1 << 30
            [(_, limit)] = scraping.query(f"microsandbox_memory_limit_bytes{{{own}}}")
            assert limit == 512 << 20
            lines = start("stdout", "--collect-interval", "500ms", "--flush-interval", "500ms")
            line = lines.process.stdout.readline()
            await busy.kill()
        found = re.fullmatch(
            rf"\S+ sandbox={name} id=\d+ cpu=(\d\.\d{{6}}) mem=[\d.]+ MiB / 512\.0 MiB disk_r=.* "
            r"uptime=[\d.]+s labels=\{team=core\}\n",
            line,
        )
        assert found and float(found[1]) > 0.2, line
        assert page.stop()[0] == lines.stop()[0] == 0
