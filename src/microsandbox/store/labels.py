"""Labels of sandboxes, for readers that leave the catalogue as it is: nothing is made, nothing migrated."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from microsandbox.store.database import DatabaseError

#: Seconds to wait for a writer, which keeps readers out for moments only.
_BUSY_TIMEOUT = 1.0


def read_labels(catalogue: Path, sandbox_ids: Iterable[int]) -> dict[int, dict[str, str]]:
    """The labels of those sandboxes that have some. Raises DatabaseError."""
    query = (
        "SELECT sandbox_id, key, value FROM sandbox_label "
        "WHERE sandbox_id IN (SELECT value FROM json_each(?))"
    )
    labels: dict[int, dict[str, str]] = {}
    try:
        uri = f"{catalogue.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT)) as connection:
            for sandbox_id, key, value in connection.execute(query, (json.dumps([*sandbox_ids]),)):
                labels.setdefault(sandbox_id, {})[key] = value
    except sqlite3.Error as error:
        raise DatabaseError(f"{catalogue}: {error}") from error
    return labels
