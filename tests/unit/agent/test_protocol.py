"""Frames and messages: what is read back is what was written, and garbage is refused, never believed."""

import time

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microsandbox.agent.protocol import (
    MAX_LENGTH,
    Flag,
    Frame,
    FrameSplitter,
    MessageType,
    ProtocolError,
    decode,
    encode,
    flags_of,
)

ids = st.integers(0, 2**32 - 1)
flags = st.integers(0, 255)


@given(st.lists(st.tuples(ids, flags, st.binary(max_size=300)), max_size=8), st.integers(1, 64))
def test_frames_survive_any_cut_of_the_stream(values, step):
    frames = [Frame.build(*value) for value in values]
    stream = b"".join(frame.raw for frame in frames)
    splitter, found = FrameSplitter(), []
    for start in range(0, len(stream), step):
        found += splitter.feed(stream[start : start + step])
    assert found == frames
    assert [(frame.id, frame.flags, frame.body) for frame in found] == values


@pytest.mark.parametrize("length", [0, 4, MAX_LENGTH + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_as_soon_as_it_is_seen(length):
    with pytest.raises(ProtocolError, match=f"frame length {length}"):
        FrameSplitter().feed(length.to_bytes(4, "big"))


def test_the_largest_frame_passes_and_one_byte_more_is_not_built():
    body = bytes(MAX_LENGTH - 5)
    [frame] = FrameSplitter().feed(Frame.build(1, 0, body).raw)
    assert frame.body == body
    with pytest.raises(ProtocolError):
        Frame.build(1, 0, body + b"x")


@given(st.binary(max_size=200))
def test_any_bytes_as_a_body_give_a_message_or_a_protocol_error(body):
    try:
        decode(body)
    except ProtocolError:
        return


@given(
    st.recursive(
        st.none() | st.integers() | st.binary() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_any_cbor_as_a_payload_gives_a_message_or_a_protocol_error(value):
    body = cbor2.dumps({"v": 5, "t": "core.exec.stdout", "p": cbor2.dumps(value)})
    try:
        message = decode(body)
    except ProtocolError:
        return
    assert message.payload == (value or {})


def test_deeply_nested_cbor_is_refused_without_a_crash():
    with pytest.raises(ProtocolError):
        decode(b"\x81" * 100_000)


def test_a_message_carries_the_flags_of_its_type():
    frame = encode(7, MessageType.EXEC_REQUEST, {"cmd": "true"})
    assert (frame.id, frame.flags) == (7, Flag.SESSION_START)
    assert decode(frame.body).payload == {"cmd": "true"}
    envelope = cbor2.loads(frame.body)
    assert envelope == {"v": 5, "t": "core.exec.request", "p": cbor2.dumps({"cmd": "true"})}


def test_a_unit_message_has_a_null_payload():
    assert cbor2.loads(cbor2.loads(encode(0, MessageType.SHUTDOWN).body)["p"]) is None


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("core.shutdown", 4),
        ("core.error", 1),
        ("core.exec.request", 2),
        ("core.exec.started", 0),
        ("core.exec.exited", 1),
        ("core.exec.failed", 1),
        ("core.fs.request", 2),
        ("core.fs.response", 1),
        ("core.fs.data", 0),
        ("core.tcp.connect", 2),
        ("core.tcp.closed", 1),
        ("core.tcp.failed", 1),
        ("core.flow", 0),
    ],
)
def test_flags_by_type(kind, flag):
    assert flags_of(MessageType(kind)) == flag


@pytest.mark.parametrize(
    "hostile",
    [
        bytes.fromhex("c5821a00100000")
        + b"\xc2\x5a\x00\x04\x00\x00"
        + b"\xff" * (256 << 10),  # a big fraction
        b"\xc2\x5a\x00\x10\x00\x00" + b"\xff" * (1 << 20),
        b"\x81" * 100_000 + b"\x00",
        cbor2.dumps(cbor2.CBORTag(999, 1)),
    ],
)
def test_what_takes_minutes_to_decode_is_refused_at_once(hostile):
    started = time.monotonic()
    with pytest.raises(ProtocolError):
        decode(cbor2.dumps({"v": 5, "t": "core.exec.exited", "p": hostile}))
    assert time.monotonic() - started < 1
