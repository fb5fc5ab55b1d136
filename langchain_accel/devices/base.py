"""The cut line between the shared runtime and a device: the row step.

A *row* is one lane of a fixed arena of `rows x max_len` KV-cache columns. The runtime knows rows, columns and
which tokens a row still remembers; how the KV cache is stored, how a graph is captured and how ranks talk stay
private to the device. Only numpy crosses the line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from langchain_accel.errors import PlanRejected

IntArray = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

Progress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`: called from the loading thread while weights load and shapes warm up."""


def silent(stage: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a loaded device serves. Every array shape it will ever see follows from these numbers.

    Attributes:
        rows: lanes of the KV arena; also the largest number of requests running at once.
        max_len: columns of a row; prompt and answer of one request share them.
        vocab_size: width of the logits; may exceed the tokenizer's vocabulary.
        prefill_shapes: declared `(batch, length)` pairs, ascending by batch, then length.
        decode_shapes: declared decode batch sizes, ascending; the largest must be `rows`.
        attended_lens: declared attended lengths in columns, ascending, the last one `max_len`; empty where the
            device reads exactly the filled part of a row and no shape depends on it.
        resumes: a prefill may start past column 0 (prefix reuse, chunked prompts).
        copies: `copy_row` exists (a shared prefix serves several rows).
        drafts: columns per row that `verify` accepts; 0 where there is no `verify`.
    """

    rows: int
    max_len: int
    vocab_size: int
    prefill_shapes: tuple[tuple[int, int], ...]
    decode_shapes: tuple[int, ...]
    attended_lens: tuple[int, ...] = ()
    resumes: bool = False
    copies: bool = False
    drafts: int = 0

    def __post_init__(self) -> None:
        """Refuse a spec that no scheduler could serve.

        Raises:
            PlanRejected: a list is empty, unsorted or does not cover the arena.
        """
        if not self.prefill_shapes or list(self.prefill_shapes) != sorted(set(self.prefill_shapes)):
            msg = f"prefill_shapes must be non-empty, ascending and without repeats, got {self.prefill_shapes}"
            raise PlanRejected(msg)
        if self.prefill_shapes[0][0] != 1:
            msg = f"prefill_shapes need at least one shape of batch 1, got {self.prefill_shapes}"
            raise PlanRejected(msg)
        if max(batch for batch, _ in self.prefill_shapes) > self.rows:
            msg = f"a prefill shape of {self.prefill_shapes} holds more rows than the arena's {self.rows}"
            raise PlanRejected(msg)
        if list(self.decode_shapes) != sorted(set(self.decode_shapes)) or self.decode_shapes[-1:] != (self.rows,):
            msg = f"decode_shapes must ascend and end with rows={self.rows}, got {self.decode_shapes}"
            raise PlanRejected(msg)
        if self.attended_lens and (
            list(self.attended_lens) != sorted(set(self.attended_lens)) or self.attended_lens[-1] != self.max_len
        ):
            msg = f"attended_lens must ascend and end with max_len={self.max_len}, got {self.attended_lens}"
            raise PlanRejected(msg)

    @property
    def chunk(self) -> int:
        """Longest prefill of one row in one step, in tokens."""
        return max(length for batch, length in self.prefill_shapes if batch == 1)

    @property
    def max_prompt(self) -> int:
        """Longest prompt in tokens: one column is kept for an answer; without `resumes` it must fit one prefill."""
        return self.max_len - 1 if self.resumes else min(self.max_len - 1, self.chunk)

    def attended(self, columns: int) -> int:
        """Return the smallest declared attended length that covers `columns` columns, or 0 where none is declared."""
        return next((length for length in self.attended_lens if length >= columns), 0)


class Device(Protocol):
    """A loaded model with its KV arena. One thread owns it; no method is re-entrant.

    Shapes: `B` is a declared batch, `L` a declared length. A lane whose `lengths` is smaller than `L` is padded on
    the right with arbitrary valid tokens; a device must neither keep nor attend those columns. No row appears twice
    in one call. A padding lane is an ordinary lane of length 1 on a real row, at that row's own tail.
    """

    spec: Spec

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """Write `tokens[i, :lengths[i]]` at columns `starts[i]...` of `rows[i]`.

        Args:
            tokens: `[B, L]` token ids.
            lengths: `[B]` real tokens per lane, 1 to L.
            starts: `[B]` first column per lane; columns before it were written earlier and are attended.
            rows: `[B]` row per lane.

        Returns:
            `[B, vocab_size]` float32 logits at each lane's last real token. Valid until the next call.
        """
        ...

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """Write one token per lane and return `[B, vocab_size]` float32 logits, valid until the next call.

        Args:
            tokens: `[B]` token ids.
            positions: `[B]` column each token is written to; all columns before it are attended.
            rows: `[B]` row per lane.
        """
        ...

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """As `prefill`, with `[B, L, vocab_size]` logits at every token; only where `spec.drafts` > 0.

        Columns past the last accepted token are overwritten by the caller's next step.
        """
        ...

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy columns `0...length - 1` of row `source` to row `target`; only where `spec.copies`."""
        ...

    def forget(self, row: int) -> None:
        """Drop what `row` remembers: nobody will read or resume its columns."""
        ...

    def close(self) -> None:
        """Release weights, KV arena and processes. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user asked to load. Two identical plans in one process share one engine.

    Attributes:
        device: name of the device, the module under `langchain_accel.devices`.
        model: folder with the checkpoint (config, safetensors, tokenizer), or a hub id. Devices are given a folder.
        revision: branch, tag or commit of a hub id.
        rows: requests served at once; rows of the KV arena.
        max_len: columns of a row: tokens of prompt and answer together.
        dtype: `"auto"`, `"float32"` or `"bfloat16"`; `"auto"` lets the device choose what its hardware is fast at.
        tensor_parallel_size: ranks that share the weights.
        placement: where ranks run: `"local"`, as processes of this machine, or `"ray"`, on the nodes of a Ray cluster.
        replicas: whole copies of the model, each with ranks and rows of its own, behind one engine.
        trust_remote_code: run Python code that comes with the checkpoint.
        queue_limit: requests that may wait for a row; more are refused.
        options: the device's own frozen `Options`; `None` for its defaults.
    """

    device: str
    model: str
    revision: str | None = None
    rows: int = 8
    max_len: int = 2048
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    placement: str = "local"
    replicas: int = 1
    trust_remote_code: bool = False
    queue_limit: int = 1024
    options: Any = None

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            PlanRejected: a number is not positive, or the dtype or the placement is unknown.
        """
        for name in ("rows", "max_len", "tensor_parallel_size", "replicas", "queue_limit"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise PlanRejected(msg)
        if self.max_len < 2:  # noqa: PLR2004
            msg = f"max_len must hold at least one prompt and one answer token, got {self.max_len}"
            raise PlanRejected(msg)
        if self.dtype not in ("auto", "float32", "bfloat16"):
            msg = f"dtype must be 'auto', 'float32' or 'bfloat16', got {self.dtype!r}"
            raise PlanRejected(msg)
        if self.placement not in ("local", "ray"):
            msg = f"placement must be 'local' or 'ray', got {self.placement!r}"
            raise PlanRejected(msg)


@dataclass(frozen=True, slots=True)
class Rank:
    """Which of how many processes this device instance is, and where they meet.

    Attributes:
        index: 0 to `size - 1`; rank 0 answers, the others follow.
        size: processes that hold one model together.
        local_index: its place among the ranks of its machine.
        local_size: ranks on its machine; smaller than `size` where several machines hold the model.
        address: `host:port` where rank 0 opens the rendezvous of the ranks' collectives; empty for a single rank.
    """

    index: int = 0
    size: int = 1
    local_index: int = 0
    local_size: int = 1
    address: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Which processes a device runs in. A device module may define `placement(plan, options) -> Placement`.

    Attributes:
        ranks: processes that hold one model together.
        isolated: run in a process of its own even with one rank: the vendor's stack changes its whole process.
        python: interpreter of that process; None for this one. A vendor's virtual environment needs its own.
        environment: variables that must be set before the process starts, as `(name, value)`.
        pinned: give each process a share of this process's cores for itself: right where ranks compute on the CPU.
        step_seconds: longest step; a rank that is alive but takes longer, like one that waits for a peer for ever, is
            lost. It must cover the compilation of a shape.
        load_seconds: longest load.
        silent_seconds: how long a rank may neither let Python run nor use its processor, as some libraries do while
            they wait for their peers; None for what suits others. A rank that ends is noticed at once either way.
        resources: what a rank takes of its node where Ray places it, as `(name, amount)`: `(("HPU", 1.0),)`, say.
    """

    ranks: int = 1
    isolated: bool = False
    python: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    pinned: bool = False
    step_seconds: float = 1800.0
    load_seconds: float = 7200.0
    silent_seconds: float | None = None
    resources: tuple[tuple[str, float], ...] = (("CPU", 1.0),)
