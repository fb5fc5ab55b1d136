"""Small devices that show what the runtime asks of a device, and how it takes it when a device misbehaves."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from langchain_accel.devices import reference
from langchain_accel.devices.base import Device, Plan, Rank, Spec, silent
from langchain_accel.runtime.engine import Engine
from langchain_accel.runtime.request import Request, SamplingParams, State
from langchain_accel.runtime.sampling import Sampler
from langchain_accel.runtime.shapes import Shape
from langchain_accel.runtime.stream import Completion, Mailbox
from langchain_accel.runtime.text import Text

GUARD = 30.0
"""Seconds after which a test that waits for something gives up; nothing ever takes that long."""


STEPS = ("prefill", "decode", "verify")


class Call(NamedTuple):
    """One call of a device: what it was asked to do, on which rows, from which columns on, with which lengths."""

    kind: str
    batch: int = 0
    length: int = 0
    rows: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @property
    def ends(self) -> list[int]:
        return [start + length for start, length in zip(self.starts, self.lengths, strict=True)]


class Wrapper:
    """A device around another one; `before` sees every call that computes or copies, and may raise or wait."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.spec = device.spec
        self.closed = 0

    def before(self, call: Call) -> None:
        """Look at a call that is about to happen."""

    def prefill(self, tokens: Any, lengths: Any, starts: Any, rows: Any) -> Any:
        self.before(Call("prefill", *tokens.shape, *(tuple(each.tolist()) for each in (rows, starts, lengths))))
        return self.device.prefill(tokens, lengths, starts, rows)

    def decode(self, tokens: Any, positions: Any, rows: Any) -> Any:
        batch = len(tokens)
        self.before(Call("decode", batch, 1, tuple(rows.tolist()), tuple(positions.tolist()), (1,) * batch))
        return self.device.decode(tokens, positions, rows)

    def verify(self, tokens: Any, lengths: Any, starts: Any, rows: Any) -> Any:
        self.before(Call("verify", *tokens.shape, *(tuple(each.tolist()) for each in (rows, starts, lengths))))
        return self.device.verify(tokens, lengths, starts, rows)

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.before(Call("copy", rows=(source, target), lengths=(length,)))
        self.device.copy_row(source, target, length)

    def forget(self, row: int) -> None:
        self.before(Call("forget", rows=(row,)))
        self.device.forget(row)

    def close(self) -> None:
        self.closed += 1
        self.device.close()


class Recorder(Wrapper):
    """Counts steps and records calls."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.calls: list[Call] = []

    def before(self, call: Call) -> None:
        self.calls.append(call)

    @property
    def steps(self) -> list[Call]:
        return [call for call in self.calls if call.kind in STEPS]


class Gate(Recorder):
    """Blocks every step while it is shut."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._change = threading.Condition()
        self._permits: float = float("inf")
        self._blocked = False

    def before(self, call: Call) -> None:
        super().before(call)
        if call.kind in STEPS:
            with self._change:
                self._blocked = self._permits == 0
                self._change.notify_all()
                assert self._change.wait_for(lambda: self._permits > 0, GUARD), "nobody opened the gate"
                self._permits -= 1
                self._blocked = False
                self._change.notify_all()

    def shut(self) -> None:
        """Let the next step wait."""
        self._permit(0)

    def open(self) -> None:
        """Let everything pass."""
        self._permit(float("inf"))

    def wait_for_step(self) -> None:
        """Return when a step waits at the gate."""
        with self._change:
            assert self._change.wait_for(lambda: self._blocked, GUARD), "no step came to the gate"

    def let_one_pass(self) -> None:
        """Return when one step has passed the gate."""
        self.wait_for_step()
        self._permit(1)
        with self._change:
            assert self._change.wait_for(lambda: self._permits == 0, GUARD)

    def _permit(self, count: float) -> None:
        with self._change:
            self._permits = count
            self._change.notify_all()


class Failing(Gate):
    """Raises on demand: `refuse` says for which calls which error. It has a gate as well."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.refuse: Callable[[Call], BaseException | None] = lambda call: None

    def before(self, call: Call) -> None:
        super().before(call)
        if error := self.refuse(call):
            raise error

    def fail_once(self, error: BaseException, kind: str) -> None:
        """Let the next call of a kind fail."""

        def refuse(call: Call) -> BaseException | None:
            if call.kind != kind:
                return None
            self.refuse = lambda call: None
            return error

        self.refuse = refuse


class Ledger:
    """Computes nothing, but keeps the books: it knows which tokens each row holds, and holds callers to the contract.

    The next token is a fixed function of all tokens in the row, so a token at a wrong place makes a wrong answer.

    Attributes:
        held: tokens that stand in each row.
        shapes: every shape seen.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.held: list[list[int]] = [[] for _ in range(spec.rows)]
        self.shapes: set[Shape] = set()

    def prefill(self, tokens: Any, lengths: Any, starts: Any, rows: Any) -> Any:
        assert tokens.shape in self.spec.prefill_shapes
        assert self.spec.resumes or not starts.any(), "a prefill past column 0 on a device that cannot resume"
        return self._step("prefill", tokens, lengths, starts, rows)

    def decode(self, tokens: Any, positions: Any, rows: Any) -> Any:
        assert len(tokens) in self.spec.decode_shapes
        return self._step("decode", tokens[:, None], np.ones_like(tokens), positions, rows)

    def copy_row(self, source: int, target: int, length: int) -> None:
        assert self.spec.copies
        assert source != target
        assert 0 < length <= len(self.held[source])
        self.held[target] = self.held[source][:length]

    def forget(self, row: int) -> None:
        self.held[row] = []

    def close(self) -> None:
        pass

    def _step(self, kind: Any, tokens: Any, lengths: Any, starts: Any, rows: Any) -> Any:
        assert all(array.dtype == np.int64 for array in (tokens, lengths, starts, rows))
        assert len(set(rows.tolist())) == len(rows) == len(lengths) == len(starts), "a row twice, or a lane missing"
        ends = starts + lengths
        assert ends.max() <= self.spec.max_len
        self.shapes.add(Shape(kind, *tokens.shape, self.spec.attended(int(ends.max()))))
        logits = np.zeros((len(rows), self.spec.vocab_size), np.float32)
        for lane, (row, start, length) in enumerate(zip(rows.tolist(), starts.tolist(), lengths.tolist(), strict=True)):
            assert 1 <= length <= tokens.shape[1]
            assert start <= len(self.held[row]), "a write behind columns that were never written"
            self.held[row][start:] = tokens[lane, :length].tolist()
            logits[lane, self.next_token(self.held[row])] = 1
        return logits

    def next_token(self, held: Sequence[int]) -> int:
        """Return the token that follows those in a row."""
        return zlib.crc32(np.array(held, np.int64).tobytes()) % self.spec.vocab_size

    def answer(self, prompt: Sequence[int], count: int) -> tuple[int, ...]:
        """Return the `count` tokens that follow a prompt."""
        held = list(prompt)
        for _ in range(count):
            held.append(self.next_token(held))
        return tuple(held[len(prompt) :])


class Letters:
    """A tokenizer for devices without a checkpoint: token 0 is `a`."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


def small_spec(**changes: Any) -> Spec:
    """Return a spec with everything on."""
    fields: dict[str, Any] = {
        "rows": 4,
        "max_len": 128,
        "vocab_size": 50,
        "prefill_shapes": ((1, 8), (1, 32), (2, 8), (4, 8)),
        "decode_shapes": (1, 2, 4),
        "attended_lens": (32, changes.get("max_len", 128)),
        "resumes": True,
        "copies": True,
    }
    return Spec(**{**fields, **changes})


def bare_request(prompt: Sequence[int], params: SamplingParams | None = None, *, vocab_size: int = 1000) -> Request:
    """Return a request outside any engine."""
    params = params or SamplingParams(max_tokens=4)
    return Request(
        prompt=np.array(prompt, np.int64),
        params=params,
        limit=params.max_tokens or 1,
        sampler=Sampler(params, prompt, stop_ids=frozenset(params.stop_token_ids), vocab_size=vocab_size),
        text=Text(lambda tokens: Letters().decode(tokens, skip_special_tokens=True), params.stop),
        mailbox=Mailbox(),
        submitted=0.0,
    )


def answer_of(request: Request) -> Completion:
    """Return the answer of a bare request that is complete."""
    from langchain_accel.runtime.stream import fold

    assert request.state is State.DONE
    deltas = request.mailbox.take(lambda: None, whole=True)
    assert deltas is not None
    return fold(deltas)


def ledger_engine(wrap: Callable[[Device], Device] = lambda device: device, **changes: Any) -> tuple[Engine, Any]:
    """Return an engine on a wrapped ledger, and the wrapper."""
    queue_limit = changes.pop("queue_limit", 1024)
    device = wrap(Ledger(small_spec(**changes)))
    return Engine(lambda progress: device, Letters(), eos_ids=frozenset(), queue_limit=queue_limit), device


@contextmanager
def on_reference(
    folder: Path,
    tokenizer: Any,
    eos_ids: frozenset[int] = frozenset(),
    *,
    wrap: Callable[[Device], Any] = lambda device: device,
    rows: int = 4,
    max_len: int = 256,
    queue_limit: int = 1024,
    **options: Any,
) -> Any:
    """Yield an engine on the reference device, and the wrapped device; both are closed after."""
    devices: list[Any] = []

    def load(progress: Any) -> Device:
        plan = Plan("reference", str(folder), rows=rows, max_len=max_len)
        devices.append(wrap(reference.load(plan, reference.Options(**options), Rank(), silent)))
        return devices[0]  # type: ignore[no-any-return]

    engine = Engine(load, tokenizer, eos_ids=eos_ids, queue_limit=queue_limit)
    try:
        yield engine, devices[0]
    finally:
        engine.close()
