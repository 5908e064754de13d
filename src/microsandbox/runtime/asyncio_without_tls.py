"""``asyncio`` for supervisors, which speak over Unix sockets: without OpenSSL, half of its cost."""

from __future__ import annotations

import sys


def import_asyncio() -> None:
    """Import it unless that was done, as in a Python built without ``ssl``; others may import that later."""
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment] # documented: importing it raises ImportError
    try:
        import asyncio  # noqa: F401 - to have been imported
    finally:
        del sys.modules["ssl"]
