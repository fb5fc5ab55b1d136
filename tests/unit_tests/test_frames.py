"""Laws of the frames between an engine and its ranks: what is sent arrives, and nothing else is taken for a frame."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_accel.runtime import frames
from langchain_accel.runtime.channel import Channel
from langchain_accel.runtime.frames import BadFrame, Decoder, Frame, Kind, encode


@st.composite
def any_array(draw: st.DrawFn) -> Any:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=frames.MAX_DIMENSIONS)))
    dtype = draw(st.sampled_from([np.int64, np.float32]))
    size = int(np.prod(shape))
    if dtype is np.int64:
        values = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=size, max_size=size))
    else:
        values = draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
    array = np.array(values, dtype).reshape(shape)
    return draw(st.sampled_from([array, array.T, np.asfortranarray(array)]))


any_frame = st.builds(
    Frame,
    kind=st.sampled_from(Kind),
    call=st.integers(0, 2**32 - 1),
    arrays=st.lists(any_array(), max_size=frames.MAX_ARRAYS).map(tuple),
    text=st.text(max_size=40),
)


def same(one: Frame, other: Frame) -> bool:
    return (one.kind, one.call, one.text, len(one.arrays)) == (
        other.kind,
        other.call,
        other.text,
        len(other.arrays),
    ) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one.arrays, other.arrays, strict=True)
    )


@settings(max_examples=100, deadline=None)
@given(sent=st.lists(any_frame, min_size=1, max_size=3), pieces=st.lists(st.integers(1, 50), min_size=1))
def test_frames_arrive_as_they_were_sent_however_they_are_cut(sent: list[Frame], pieces: list[int]) -> None:
    """Mutants to catch: no padding after an array; only one frame taken from what was fed; order "F" sent as is."""
    data = b"".join(map(encode, sent))
    decoder, received = Decoder(), []
    while data:
        piece = pieces[len(received) % len(pieces)] + len(received)
        received += decoder.feed(data[:piece])
        data = data[piece:]
    assert not decoder.partial
    assert len(received) == len(sent)
    assert all(map(same, sent, received))
    for frame in received:
        assert all(array.flags.writeable for array in frame.arrays), "torch takes no array that cannot be written"


@settings(max_examples=100, deadline=None)
@given(frame=any_frame, data=st.data())
def test_a_frame_with_a_wrong_byte_is_another_frame_or_none(frame: Frame, data: st.DataObject) -> None:
    """Whatever the byte, nothing but `BadFrame` is raised, and no array reaches outside the frame.

    Mutants to catch: the size of an array not checked; text that is no UTF-8 not caught; a kind that does not exist
    passed on.
    """
    whole = bytearray(encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    decoder = Decoder()
    try:
        for other in decoder.feed(bytes(whole)):
            assert other.kind in list(Kind)
            assert sum(array.nbytes for array in other.arrays) <= len(whole)
    except BadFrame:
        pass


@settings(max_examples=100, deadline=None)
@given(garbage=st.binary(min_size=24, max_size=200))
def test_garbage_is_refused_at_once(garbage: bytes) -> None:
    """Mutant to catch: the magic bytes not looked at."""
    if garbage[:2] != frames.MAGIC:
        with pytest.raises(BadFrame, match="a frame begins with"):
            Decoder().feed(garbage)


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (2, 9, "version"),
        (3, 200, "none of ours"),
        (4, 9, "none of ours"),
        (23, 1, "none of ours"),
        (15, 1, "none of ours"),
        (24, 77, "no array"),
        (25, 5, "no array"),
        (32, 200, "needs"),
        (39, 127, "needs"),
        (24 + 8 + 7, 255, "needs"),
    ],
)
def test_a_header_past_the_limits_is_refused_before_its_body_is_waited_for(place: int, value: int, why: str) -> None:
    """Mutants to catch: no limit of the body's size; no limit of the arrays."""
    whole = bytearray(encode(Frame(Kind.DECODE, 1, (np.arange(3),))))
    whole[place] = value
    with pytest.raises(BadFrame, match=why):
        Decoder().feed(bytes(whole[:24] if place < 24 else whole))


def test_what_an_array_may_not_be_is_refused_when_sent() -> None:
    for array in (np.zeros(3), np.zeros((1,) * 5, np.int64), np.array(["a"]), np.array([{}])):
        with pytest.raises(BadFrame, match="a frame takes 8 arrays of int64 or float32"):
            encode(Frame(Kind.DECODE, 1, (array,)))
    with pytest.raises(BadFrame):
        encode(Frame(Kind.DECODE, 1, (np.arange(1),) * 9))
    with pytest.raises(BadFrame, match="the limit is"):
        encode(Frame(Kind.DECODE, 1, (np.zeros(frames.MAX_BODY // 8, np.int64),)))


def test_sizes_that_overflow_do_not_fool_the_reader() -> None:
    """Four dimensions of 2**62 multiply to more than a machine word holds."""
    body = struct.pack("<BB6x4Q", 1, 4, *[2**62] * 4)
    header = struct.pack("<2sBBB3xIIQ", b"LA", 1, int(Kind.DECODE), 1, 1, 0, len(body))
    with pytest.raises(BadFrame, match="needs"):
        Decoder().feed(header + body)


def ends() -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return Channel(ours), theirs


def test_a_channel_ends_with_its_other_end() -> None:
    """Between two frames that is an end, within one it is a fault. Mutant to catch: always an end."""
    for rest, error in ((b"", EOFError), (encode(Frame(Kind.DONE, 1))[:-1], BadFrame)):
        channel, other = ends()
        other.sendall(encode(Frame(Kind.DONE, 7, text="first")) + rest)
        other.close()
        frame = channel.receive()
        assert frame is not None
        assert (frame.call, frame.text) == (7, "first")
        with pytest.raises(error):
            channel.receive()
        channel.close()


def test_a_channel_that_has_nothing_does_not_wait() -> None:
    channel, other = ends()
    assert channel.receive() is None
    other.sendall(encode(Frame(Kind.DONE, 1)) * 2)
    assert channel.receive() is not None
    assert channel.pending
    assert channel.receive() is not None
    assert not channel.pending
    assert channel.receive() is None
    channel.close()
    other.close()


def test_a_frame_larger_than_the_socket_is_sent_whole_or_not_in_time() -> None:
    """Mutants to catch: the rest of a short `send` dropped; no limit for the wait."""
    large = Frame(Kind.PREFILL, 1, (np.arange(500_000),))
    channel, other = ends()
    with pytest.raises(TimeoutError, match="has not read"):
        channel.send(large, 0.05)
    channel.close()
    other.close()
    channel, other = ends()
    received: list[Frame] = []

    def read() -> None:
        decoder = Decoder()
        while not received:
            received.extend(decoder.feed(other.recv(2**16)))

    reader = threading.Thread(target=read)
    reader.start()
    channel.send(large, 30)
    reader.join(30)
    assert same(received[0], large)
    channel.close()
    other.close()
