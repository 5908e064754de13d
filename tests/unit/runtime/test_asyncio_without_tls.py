"""A supervisor's asyncio knows no TLS; whoever needs it later still has it."""

import subprocess
import sys

CODE = """
import sys
from microsandbox.runtime.asyncio_without_tls import import_asyncio
import_asyncio()
import microsandbox.runtime.supervisor, microsandbox.runtime.launch, microsandbox.runtime.template_builder
print("_ssl" in sys.modules)
import ssl
ssl.create_default_context()
import asyncio

async def main():
    process = await asyncio.create_subprocess_exec("true")
    print(await process.wait())

asyncio.run(main())
"""


def test_a_supervisor_does_not_load_openssl_and_can_still_do_so():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "0"], done.stderr
