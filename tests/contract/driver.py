"""Drives a raw device by the rules of the row step, and remembers which tokens each row holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from langchain_accel.devices.base import Device, Logits


class Driver:
    """Writes tokens at the tails of rows, in declared shapes, padded by the tail rule.

    Right padding is random tokens, never zeros, so that a device that reads it is found out. Padding lanes run on the
    rows that hold most, so that a device that writes them anywhere but at the tail does harm.

    Attributes:
        held: for each row the tokens whose keys and values stand in it.
    """

    def __init__(self, device: Device, *, vocabulary: int | None = None, seed: int = 0) -> None:
        self.device = device
        self.spec = device.spec
        self.random = np.random.default_rng(seed)
        self.vocabulary = vocabulary or device.spec.vocab_size
        self.held: list[list[int]] = [[] for _ in range(device.spec.rows)]
        for row in range(device.spec.rows):
            device.forget(row)

    def tokens(self, count: int) -> list[int]:
        """Return `count` random token ids."""
        return [int(token) for token in self.random.integers(0, self.vocabulary, count)]

    def prefill(self, lanes: Mapping[int, Sequence[int]], shape: tuple[int, int] | None = None) -> dict[int, Logits]:
        """Write each row's tokens at its tail in one step; return each row's logits after its last token."""
        shape = shape or self.fit(lanes)
        assert shape is not None, f"no declared prefill takes lanes of {[len(lane) for lane in lanes.values()]} tokens"
        logits = self.device.prefill(*self.arrays(lanes, *shape, empty_only=not self.spec.resumes))
        return self._wrote(lanes, logits)

    def decode(self, lanes: Mapping[int, int], batch: int | None = None) -> dict[int, Logits]:
        """Write one token at the tail of each row, in the smallest declared batch or in `batch`."""
        batch = batch or next(batch for batch in self.spec.decode_shapes if batch >= len(lanes))
        tokens, _, starts, rows = self.arrays({row: [token] for row, token in lanes.items()}, batch, 1)
        logits = self.device.decode(tokens[:, 0], starts, rows)
        return self._wrote({row: [token] for row, token in lanes.items()}, logits)

    def verify(self, lanes: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        """Write each row's tokens at its tail in one step; return each row's logits after every token."""
        batch = next(batch for batch in self.spec.decode_shapes if batch >= len(lanes))
        logits = self.device.verify(*self.arrays(lanes, batch, self.spec.drafts))
        return {row: got[: len(lanes[row])] for row, got in self._wrote(lanes, logits).items()}

    def write(self, row: int, tokens: Sequence[int]) -> Logits:
        """Write any number of tokens at the row's tail, in as many steps as that takes."""
        left = list(tokens)
        while left:
            if self.spec.resumes or not self.held[row]:
                size = min(self.spec.chunk, len(left))
                logits = self.prefill({row: left[:size]})[row]
            else:
                size = 1
                logits = self.decode({row: left[0]})[row]
            left = left[size:]
        return logits

    def fill(self, rows: Iterable[int], shortest: int, longest: int) -> None:
        """Let each row hold `shortest` to `longest` new random tokens."""
        for row in rows:
            self.forget(row)
            self.write(row, self.tokens(int(self.random.integers(shortest, longest + 1))))

    def truncate(self, row: int, length: int) -> None:
        """Treat everything from column `length` on as never written; the device is not told."""
        del self.held[row][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the first `length` tokens of `source`."""
        self.device.copy_row(source, target, length)
        self.held[target] = self.held[source][:length]

    def forget(self, row: int) -> None:
        """Drop what `row` holds."""
        self.device.forget(row)
        self.held[row] = []

    def fit(self, lanes: Mapping[int, Sequence[int]]) -> tuple[int, int] | None:
        """Return the smallest declared prefill that takes these lanes and can be padded, or None."""
        longest = max(len(tokens) for tokens in lanes.values())
        # Where a prefill always starts at column 0, a padding lane would overwrite a row that holds something.
        spare = sum(self.spec.resumes or not held for row, held in enumerate(self.held) if row not in lanes)
        for batch, length in self.spec.prefill_shapes:
            if length >= longest and len(lanes) <= batch <= len(lanes) + spare:
                return batch, length
        return None

    def arrays(
        self, lanes: Mapping[int, Sequence[int]], batch: int, length: int, *, empty_only: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return `tokens, lengths, starts, rows` of a step: the lanes in their order, then padding lanes."""
        others = [row for row in range(self.spec.rows) if row not in lanes and not (empty_only and self.held[row])]
        others.sort(key=lambda row: -len(self.held[row]))
        padding = others[: batch - len(lanes)]
        for row in padding:
            self.truncate(row, self.spec.max_len - 1)  # a full row pays for padding with its last column
        contents = [list(tokens) for tokens in lanes.values()] + [self.tokens(1) for _ in padding]
        rows = [*lanes, *padding]
        assert len(rows) == batch, "not enough rows to pad with"
        tokens = np.array([content + self.tokens(length - len(content)) for content in contents], np.int64)
        lengths = np.array([len(content) for content in contents], np.int64)
        starts = np.array([len(self.held[row]) for row in rows], np.int64)
        return tokens, lengths, starts, np.array(rows, np.int64)

    def _wrote(self, lanes: Mapping[int, Sequence[int]], logits: Logits) -> dict[int, Logits]:
        for row, tokens in lanes.items():
            self.held[row] += tokens
        return {row: logits[lane].copy() for lane, row in enumerate(lanes)}  # valid until the next call only
