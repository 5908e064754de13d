"""The first words to a guest that goes on from a template: its configuration, ready to be sent.

It is encoded by the owner, so that the supervisor need not import anything to send it. Only the time of day,
which must be fresh, is put in at the last moment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from microsandbox.agent.protocol import MessageType, encode

#: Bytes that a socket takes before anybody reads.
_LIMIT = 64 << 10
#: Stands for the time of day; CBOR writes an integer of that size as eight bytes.
_NO_TIME = 0x7E57_C10C_7E57_C10C


def first_words(config: Mapping[str, Any]) -> tuple[bytes, bytes] | None:
    """What comes before and after the time; None when it is too long to be sent at once."""
    body = {**config, "unix_time_nanos": _NO_TIME, "entropy": os.urandom(64)}
    head, found, tail = encode(0, MessageType.BOOT_CONFIG, body).raw.partition(_NO_TIME.to_bytes(8))
    assert found
    return (head, tail) if len(head) + len(tail) < _LIMIT else None
