"""The labels of sandboxes: asked of the catalogue once for each run, and kept while it goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from microsandbox.metrics.registry import Entry
from microsandbox.store.database import DatabaseError
from microsandbox.store.labels import read_labels

log = logging.getLogger(__name__)

#: Keys and values, sorted by key.
LabelSet = tuple[tuple[str, str], ...]


class Labels:
    """Labels by run id, without the excluded keys.

    A catalogue that cannot be read costs the labels, not the measurements: it is warned of once, and asked
    again the next time.
    """

    def __init__(self, database: Path, excluded: frozenset[str] = frozenset()) -> None:
        self._database, self._excluded = database, excluded
        self._known: dict[int, LabelSet] = {}
        self._warned = False

    def of(self, entries: Sequence[Entry]) -> dict[int, LabelSet]:
        """The labels of these, of which others are forgotten."""
        known = {entry.run_id: self._known[entry.run_id] for entry in entries if entry.run_id in self._known}
        missing = [entry for entry in entries if entry.run_id not in known]
        if missing:
            try:
                found = read_labels(self._database, [entry.sandbox_id for entry in missing])
            except DatabaseError as error:
                if not self._warned:
                    log.warning("sandboxes have no labels: %s", error)
                self._warned = True
            else:
                self._warned = False
                known |= {entry.run_id: self._kept(found.get(entry.sandbox_id, {})) for entry in missing}
        self._known = known
        return known

    def _kept(self, labels: dict[str, str]) -> LabelSet:
        return tuple(sorted(item for item in labels.items() if item[0] not in self._excluded))
