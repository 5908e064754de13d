"""What stands between clients and a machine that is paused: their frames wait here until it goes on.

QEMU takes some input for a machine that does not run, and then no more; a supervisor that went on handing
it over would stop reading its clients, and with them whoever wants to let the machine go on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from enum import Enum, auto

from msgspec import Struct, field

from microsandbox.agent.protocol import Frame
from microsandbox.runtime.guest_link import GuestLink

#: Bytes of one client that wait before it is not read any more.
WAITING_LIMIT = 1 << 20


class Passage(Enum):
    """What becomes of a frame for the guest."""

    OPEN = auto()  # it passes
    ON_DEMAND = auto()  # it waits, and the machine is asked to go on
    SHUT = auto()  # it waits, whatever that takes; new sessions are refused


class _Waiting(Struct):
    """What one client has said meanwhile."""

    frames: list[Frame] = field(default_factory=list)
    size: int = 0


class Gate:
    """Frames for the guest, passed on or kept, in order for each client."""

    def __init__(self, guest: GuestLink) -> None:
        self._guest = guest
        self._waiting: defaultdict[Hashable, _Waiting] = defaultdict(_Waiting)
        self._known: set[Hashable] = set()
        #: Called for each frame that waits ``ON_DEMAND``.
        self.on_demand: Callable[[], None] = lambda: None
        self.passage = Passage.OPEN

    def send(self, client: Hashable, frame: Frame) -> None:
        if self.passage is Passage.OPEN:
            self._known.add(client)
            self._guest.send(frame)
            return
        waiting = self._waiting[client]
        waiting.frames.append(frame)
        waiting.size += len(frame.raw)
        if self.passage is Passage.ON_DEMAND:
            self.on_demand()

    def open(self) -> None:
        """Let pass what waits, and all that follows."""
        self.passage = Passage.OPEN
        kept, self._waiting = self._waiting, defaultdict(_Waiting)
        self._known.update(kept)
        for waiting in kept.values():
            for frame in waiting.frames:
                self._guest.send(frame)

    def takes(self, client: Hashable) -> bool:
        """Whether the client may say more for the time being."""
        if self.passage is Passage.OPEN:
            return self._guest.writable
        return client not in self._waiting or self._waiting[client].size < WAITING_LIMIT

    def forget(self, client: Hashable) -> bool:
        """Drop what a client that has left had waiting, and say whether the guest has heard of it."""
        self._waiting.pop(client, None)
        known = client in self._known
        self._known.discard(client)
        return known
