"""One end of the stream socket between an engine and a rank."""

from __future__ import annotations

import select
import socket
from collections import deque

from langchain_accel.runtime.frames import BadFrame, Decoder, Frame, encode

_PIECE = 2**16


class Channel:
    """Sends and receives frames. Reads wait on a blocking socket and return at once on another."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._decoder = Decoder()
        self._frames: deque[Frame] = deque()

    def fileno(self) -> int:
        """Return the descriptor to poll; -1 once closed."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether `receive` would return a frame that was read already; no poll tells of those."""
        return bool(self._frames)

    def send(self, frame: Frame | bytes, seconds: float | None = None) -> None:
        """Send a frame, given as one or as its bytes.

        Args:
            frame: what to send.
            seconds: how long the other end may keep a non-blocking socket full; None: for ever.

        Raises:
            TimeoutError: the other end did not read in time.
            OSError: the other end is gone.
        """
        rest = memoryview(encode(frame) if isinstance(frame, Frame) else frame)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:  # noqa: PERF203 - the exception is how a full socket shows
                waiting = select.poll()
                waiting.register(self._socket, select.POLLOUT)
                if not waiting.poll(None if seconds is None else seconds * 1000):
                    msg = f"the other end has not read for {seconds:.0f} s"
                    raise TimeoutError(msg) from None

    def receive(self) -> Frame | None:
        """Return the next frame, or None where a non-blocking socket holds none that is whole.

        Raises:
            EOFError: the other end is closed.
            BadFrame: what it sent is no frame.
        """
        while not self._frames:
            try:
                data = self._socket.recv(_PIECE)
            except BlockingIOError:
                return None
            except ConnectionError as error:
                raise EOFError from error
            if not data:
                if self._decoder.partial:
                    msg = "the stream ends in the middle of a frame"
                    raise BadFrame(msg)
                raise EOFError
            self._frames += self._decoder.feed(data)
        return self._frames.popleft()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self._socket.close()
