"""Every law of the contract fails on a device that breaks it: the mutants its docstring names.

A mutant is the reference device with one rule broken, without the checks and the poison that would give it away at
once: real devices have neither. Columns that were never written hold garbage, as in any arena.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from langchain_accel.devices import reference
from langchain_accel.devices.base import Device, Plan, Spec, silent
from tests.contract.device_contract import DeviceContract
from tests.contract.plain_llama import PlainLlama

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

LAWS: dict[str, Callable[..., None]] = {
    name: law for name, law in vars(DeviceContract).items() if name.startswith("test_")
}


class Careless(reference._Reference):
    """The reference device without checks or poison: it must still pass every law."""

    def __init__(self, model: Any, spec: Spec) -> None:
        super().__init__(model, spec)
        garbage = np.random.default_rng(0)
        self.keys[:], self.values[:] = garbage.normal(0, 2, (2, *self.keys.shape))

    def _check(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> None:
        pass

    def _fill(self, row: int, end: int) -> None:
        self.filled[row] = end

    def columns_left(self, starts: Ints) -> Ints:
        """Columns from `starts` to the ends of the rows."""
        return self.spec.max_len - starts

    def swap(self, target: int, source: int, columns: slice) -> None:
        """Let `target` hold what `source` holds in these columns."""
        self.keys[:, target, columns] = self.keys[:, source, columns]
        self.values[:, target, columns] = self.values[:, source, columns]


# What the device says about itself


class BoastsOfALongerChunk(Careless):
    """Declares a prefill that no row can hold."""

    def __init__(self, model: Any, spec: Spec) -> None:
        super().__init__(model, replace(spec, prefill_shapes=((1, spec.max_len + 1),)))


class ReturnsFloat64(Careless):
    """Forgets to narrow its logits."""

    def _lend(self, hidden: Array) -> Array:
        return super()._lend(hidden).astype(np.float64)


class SqueezesASingleLane(Careless):
    """Drops the batch axis where the batch is one."""

    def _lend(self, hidden: Array) -> Array:
        return super()._lend(hidden).squeeze()


class SortsItsArgumentsInPlace(Careless):
    """Puts lanes in order of rows, in the caller's array."""

    def decode(self, tokens: Ints, positions: Ints, rows: Ints) -> Array:
        logits = super().decode(tokens, positions, rows)
        rows.sort()
        return logits


class ClosesOnce(Careless):
    """Releases what it has already released."""

    def close(self) -> None:
        del self.model


# One step


class LogitsOfThePaddedToken(Careless):
    """Takes the logits of the last token of the lane, padding or not."""

    def prefill(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        return self._lend(self._step(tokens, lengths, starts, rows)[:, -1])


class NoCausalMask(Careless):
    """Lets the tokens of one prefill see one another."""

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        return np.broadcast_to(columns < ends[:, None, None], (*positions.shape, len(columns)))


class CausalMaskOffByOne(Careless):
    """Lets a token see the next one."""

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        return super()._seen(columns, positions + 1, ends)


class DecodeSkipsTheNewestColumn(Careless):
    """Does not attend what the step before wrote, as if it were not there yet."""

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        seen = super()._seen(columns, positions, ends)
        return seen & (columns != positions[:, :, None] - 1) if positions.shape[1] == 1 else seen


class RotatesOnePositionLate(Careless):
    """Counts positions of decoded tokens from 1, those of prompts from 0."""

    def __init__(self, model: Any, spec: Spec) -> None:
        super().__init__(copy.copy(model), spec)
        late: Any = lambda block, x, at: model.project(block, x, at + (at.shape[1] == 1))
        vars(self.model)["project"] = late


class AttendsOneLengthTooShort(Careless):
    """Chooses the attended length for the columns before the step, not for those after it."""

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        return super()._seen(columns, positions, ends) & (columns < self.spec.attended(int(ends.max()) - 1))


class TrustsItsOwnCursor(Careless):
    """Decodes at the column after the last one it wrote to a row, wherever it is told to write."""

    def decode(self, tokens: Ints, positions: Ints, rows: Ints) -> Array:
        return super().decode(tokens, np.minimum(self.filled[rows], self.spec.max_len - 1), rows)


class KeepsTheLastColumnForItself(Careless):
    """Never writes the last column."""

    def _step(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        return super()._step(tokens, lengths, starts - (starts + lengths == self.spec.max_len), rows)


# Right padding


class AttendsRightPadding(Careless):
    """Keeps padded tokens and shows them to the real ones."""

    def _step(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        self.ends = starts + lengths
        return super()._step(tokens, np.minimum(tokens.shape[1], self.columns_left(starts)), starts, rows)

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        padding = (columns >= self.ends[:, None, None]) & (columns < ends[:, None, None])
        return super()._seen(columns, positions, ends) | padding


class KeepsRightPadding(Careless):
    """Goes on behind the padding of a prefill."""

    def prefill(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        hidden = self._step(tokens, np.minimum(tokens.shape[1], self.columns_left(starts)), starts, rows)
        return self._lend(hidden[np.arange(len(rows)), lengths - 1])

    def decode(self, tokens: Ints, positions: Ints, rows: Ints) -> Array:
        behind = np.where(positions == 0, 0, np.maximum(positions, self.filled[rows]))
        return super().decode(tokens, np.minimum(behind, self.spec.max_len - 1), rows)


class ShiftsBackWritesThatHangOver(Careless):
    """Moves a lane that does not fit, padding included, to the left until it does, as clamped updates do."""

    def _step(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        return super()._step(tokens, lengths, np.minimum(starts, self.spec.max_len - tokens.shape[1]), rows)


# Lanes and rows


class AnswersInOrderOfRows(Careless):
    """Returns logits in the order of its arena, not of the lanes."""

    def _step(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        return super()._step(tokens, lengths, starts, rows)[np.argsort(rows)]


class LongestLaneSetsTheMask(Careless):
    """One mask for all lanes: that of the longest."""

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        seen = super()._seen(columns, positions, ends)
        return np.broadcast_to(seen.any(axis=0), seen.shape)


class WritesIntoTheNextRow(Careless):
    """Its rows share columns."""

    def _step(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        hidden = super()._step(tokens, lengths, starts, rows)
        for row, start, length in zip(rows, starts, lengths, strict=True):
            self.swap((row + 1) % self.spec.rows, row, slice(start, start + length))
        return hidden


# Padding lanes


class PadsAbsentRowsAtColumnZero(Careless):
    """Always decodes the whole arena, and has rows of its own choice write at column 0."""

    def decode(self, tokens: Ints, positions: Ints, rows: Ints) -> Array:
        absent = np.setdiff1d(np.arange(self.spec.rows), rows)
        if len(absent):
            filled, zeros = self.filled.copy(), np.zeros(len(absent), np.int64)
            self._step(zeros[:, None], zeros + 1, zeros, absent)
            self.filled = filled
        return super().decode(tokens, positions, rows)


class ChunksContinueAtItsOwnCursor(Careless):
    """Writes the next chunk of a prompt behind the last column it wrote to the row."""

    def prefill(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        cursor = np.minimum(self.filled[rows], self.columns_left(lengths))
        return super().prefill(tokens, lengths, np.where(starts > 0, cursor, 0), rows)


# Resuming


class ResumedTokensAttendOnlyTheirChunk(Careless):
    """Ignores what earlier chunks wrote."""

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        seen = super()._seen(columns, positions, ends)
        return seen & (columns >= positions[:, :1, None]) if positions.shape[1] > 1 else seen


class ResumesAtColumnZero(Careless):
    """Ignores `starts`."""

    def prefill(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        return super().prefill(tokens, lengths, np.zeros_like(starts), rows)


class AttendsAllItEverHeld(Careless):
    """Attends up to the last column a row has held since it was forgotten: the stale ones too."""

    def __init__(self, model: Any, spec: Spec) -> None:
        super().__init__(model, spec)
        self.most = np.zeros(spec.rows, np.int64)

    def _step(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        self.stale = starts + lengths, self.most[rows]
        hidden = super()._step(tokens, lengths, starts, rows)
        self.most[rows] = np.maximum(self.most[rows], starts + lengths)
        return hidden

    def _seen(self, columns: Ints, positions: Ints, ends: Ints) -> Array:
        first, last = self.stale
        stale = (columns >= first[:, None, None]) & (columns < last[:, None, None])
        return super()._seen(columns, positions, ends) | stale

    def forget(self, row: int) -> None:
        super().forget(row)
        self.most[row] = 0


# Copying


class CopiesOneColumnShort(Careless):
    """Leaves out the last column."""

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.swap(target, source, slice(0, length - 1))
        self._fill(target, length)


class CopiesTheOtherWayRound(Careless):
    """Takes the source for the target."""

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.swap(source, target, slice(0, length))
        self._fill(target, length)


class CopiesShareTheirColumns(Careless):
    """Lets both rows point to the same columns, and never parts them when one writes."""

    def __init__(self, model: Any, spec: Spec) -> None:
        super().__init__(model, spec)
        self.source_of: dict[int, int] = {}

    def copy_row(self, source: int, target: int, length: int) -> None:
        super().copy_row(source, target, length)
        self.source_of[target] = source

    def _step(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        hidden = super()._step(tokens, lengths, starts, rows)
        for row in rows:
            if row in self.source_of:
                self.swap(self.source_of[row], row, slice(None))
        return hidden


class CopiesOnlyWhatIsMissing(Careless):
    """Takes what the target holds already for the same."""

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.swap(target, source, slice(self.filled[target], length))
        self._fill(target, length)


# Verifying drafts


class VerifyAnswersOneTokenLate(Careless):
    """Returns at each token the logits of the one before."""

    def verify(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        return np.roll(super().verify(tokens, lengths, starts, rows), 1, axis=1)


class VerifyWritesOneColumnLate(Careless):
    """Writes drafts one column to the right."""

    def verify(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        return super().verify(tokens, lengths, np.minimum(starts + 1, self.columns_left(lengths)), rows)


class KeepsRejectedDrafts(Careless):
    """Goes on behind the drafts, whether they were accepted or not."""

    def __init__(self, model: Any, spec: Spec) -> None:
        super().__init__(model, spec)
        self.verified: set[int] = set()

    def verify(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        self.verified = set(rows.tolist())
        return super().verify(tokens, lengths, starts, rows)

    def decode(self, tokens: Ints, positions: Ints, rows: Ints) -> Array:
        behind = np.minimum(self.filled[rows], self.spec.max_len - 1)
        positions = np.where([row in self.verified for row in rows.tolist()], behind, positions)
        self.verified -= set(rows.tolist())
        return super().decode(tokens, positions, rows)


# Forgetting


class ForgetsNothing(Careless):
    """Appends the next prompt to what the row held before it was forgotten."""

    def forget(self, row: int) -> None:
        pass

    def prefill(self, tokens: Ints, lengths: Ints, starts: Ints, rows: Ints) -> Array:
        behind = np.minimum(self.filled[rows], self.columns_left(lengths))
        return super().prefill(tokens, lengths, np.where(starts == 0, behind, starts), rows)


class ForgetsTheNextRow(Careless):
    """Clears one row too many."""

    def forget(self, row: int) -> None:
        super().forget(row)
        self.values[:, (row + 1) % self.spec.rows] = 0.0


MUTANTS = {mutant.__name__: mutant for mutant in Careless.__subclasses__()}


class Laws(DeviceContract):
    """The contract, applied to one kind of device. Not collected: its laws are called by the tests below."""

    def __init__(self, kind: type[Careless], folder: Path, plain: PlainLlama) -> None:
        self.kind, self.folder, self.plain = kind, folder, plain

    def load(self) -> Device:
        plan = Plan(device="reference", model=str(self.folder), rows=4, max_len=64)
        model = reference._Model(self.folder, silent)
        spec = reference._declare(plan, reference.Options(), model.vocab_size)
        return self.kind(model, spec)

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        return self.plain.logits(tokens)

    def apply(self, name: str) -> None:
        """Run one law on a freshly loaded device."""
        needs_device = "device" in LAWS[name].__annotations__
        LAWS[name](self, *([self.load()] if needs_device else []))


def named(law: str) -> list[str]:
    """Return the mutants that a law's docstring names."""
    return re.findall("`([A-Z][A-Za-z0-9]+)`", LAWS[law].__doc__ or "")


@pytest.mark.parametrize("law", LAWS)
def test_a_careless_device_that_breaks_nothing_passes(law: str, tiny: Path, plain: PlainLlama) -> None:
    Laws(Careless, tiny, plain).apply(law)


@pytest.mark.parametrize(("law", "mutant"), [(law, mutant) for law in LAWS for mutant in named(law)])
def test_law_fails_on_mutant(law: str, mutant: str, tiny: Path, plain: PlainLlama) -> None:
    with pytest.raises(AssertionError):
        Laws(MUTANTS[mutant], tiny, plain).apply(law)


def test_every_law_names_a_mutant_and_every_mutant_is_named() -> None:
    assert [law for law in LAWS if not named(law)] == []
    assert {mutant for law in LAWS for mutant in named(law)} == set(MUTANTS)
