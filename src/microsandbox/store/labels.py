"""Labels of sandboxes, for readers that leave the catalogue as it is: nothing is made, nothing migrated.

SQLite makes ``-wal`` and ``-shm`` for readers of a catalogue that nobody has open, also with ``mode=ro``, and
leaves them. Without a log all is in the file itself, so it is read as one that does not change
(``immutable``), and once more if it did; with a log, SQLite may use its index but not write to it
(``readonly_shm``). What is left is an empty ``-wal``, when the last writer closes the catalogue between the
look for its log and the opening.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from microsandbox.store.database import DatabaseError

#: Seconds to wait for a writer, which keeps readers out for moments only.
_BUSY_TIMEOUT = 0.05
#: The catalogue may be opened, written to or closed during one; all take a second at most.
_ATTEMPTS = 20
_BETWEEN_ATTEMPTS = 0.002


def read_labels(catalogue: Path, sandbox_ids: Iterable[int]) -> dict[int, dict[str, str]]:
    """The labels of those sandboxes that have some. Raises DatabaseError."""
    wanted = json.dumps([*sandbox_ids])
    reason: Exception | str = "it changes all the time"
    for attempt in range(_ATTEMPTS):
        time.sleep(_BETWEEN_ATTEMPTS if attempt else 0)
        try:
            resting = _resting(catalogue)
            labels = _query(catalogue, "immutable=1" if resting else "mode=ro&readonly_shm=1", wanted)
            if resting is None or _resting(catalogue) == resting:
                return labels
        except FileNotFoundError as error:
            raise DatabaseError(f"{catalogue}: {error.strerror}") from error
        except (sqlite3.Error, OSError) as error:
            reason = error
    raise DatabaseError(f"{catalogue}: {reason}")


def _resting(catalogue: Path) -> tuple[int, ...] | None:
    """The state of a catalogue that has no log, None with one. Raises OSError."""
    try:
        if catalogue.with_name(f"{catalogue.name}-wal").stat().st_size:
            return None
    except FileNotFoundError:
        pass
    found = catalogue.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _query(catalogue: Path, mode: str, sandbox_ids: str) -> dict[int, dict[str, str]]:
    query = (
        "SELECT sandbox_id, key, value FROM sandbox_label "
        "WHERE sandbox_id IN (SELECT value FROM json_each(?))"
    )
    labels: dict[int, dict[str, str]] = {}
    uri = f"{catalogue.absolute().as_uri()}?{mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT)) as connection:
        for sandbox_id, key, value in connection.execute(query, (sandbox_ids,)):
            labels.setdefault(sandbox_id, {})[key] = value
    return labels
