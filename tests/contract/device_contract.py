"""The laws of the row step, for any device: subclass `DeviceContract`, say how to load and what is right.

Each law names, in its docstring, the broken devices (mutants) that it was seen to catch: see `test_mutants.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from langchain_accel.devices.base import Device, Logits
from tests.contract.driver import Driver


class DeviceContract:
    """What every device owes the runtime. A law that needs a capability the device lacks is skipped, with the reason.

    Attributes:
        tolerance: how far logits may be from the oracle's.
        greedy: compare the choice only: the device's best token must be within `tolerance` of the oracle's best.
        vocabulary: token ids to draw from; None: all that the device has logits for.
        repeats: seeds per law with random choices. The laws ask for at least 3 rows, and at least 32
            columns of which drafts take no more than half.
    """

    tolerance: float = 1e-4
    greedy: bool = False
    vocabulary: int | None = None
    repeats: int = 3

    def load(self) -> Device:
        """Load a fresh device."""
        raise NotImplementedError

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        """Return the logits after the last of `tokens`, computed without the row step."""
        raise NotImplementedError

    @pytest.fixture
    def device(self) -> Iterator[Device]:
        """Give a loaded device. Where loading is slow, override it to share one: every law forgets all rows first."""
        device = self.load()
        yield device
        device.close()

    # What the device says about itself

    def test_spec_is_sane(self, device: Device) -> None:
        """The numbers fit together. Mutant: `BoastsOfALongerChunk`."""
        spec = device.spec
        assert 1 <= spec.chunk <= spec.max_len, f"a prefill of {spec.chunk} tokens does not fit {spec.max_len} columns"
        assert 1 <= spec.max_prompt < spec.max_len
        assert spec.vocab_size >= 1
        assert 0 <= spec.drafts <= spec.max_len
        assert all(length >= 1 for _, length in spec.prefill_shapes)
        assert all(length >= 1 for length in spec.attended_lens)

    def test_logits_are_finite_float32_of_the_declared_width(self, device: Device) -> None:
        """Mutants: `ReturnsFloat64`, `SqueezesASingleLane`."""
        drive = self.drive(device)
        batch, length = device.spec.prefill_shapes[-1]
        rows = range(device.spec.rows)
        tokens, lengths, starts, lanes = drive.arrays({row: drive.tokens(1) for row in rows[:batch]}, batch, length)
        self.well_formed(device.prefill(tokens, lengths, starts, lanes), batch, device.spec.vocab_size)
        for size in device.spec.decode_shapes:
            drive = self.drive(device)
            tokens, _, starts, lanes = drive.arrays({0: drive.tokens(1)}, size, 1)
            self.well_formed(device.decode(tokens[:, 0], starts, lanes), size, device.spec.vocab_size)
            if device.spec.drafts:
                lengths = np.ones(size, np.int64)
                tokens = np.repeat(tokens, device.spec.drafts, axis=1)
                logits = device.verify(tokens, lengths, starts, lanes)
                self.well_formed(logits[:, :1], size, 1, device.spec.vocab_size)
                assert logits.shape[1] == device.spec.drafts

    def test_arguments_are_left_alone(self, device: Device) -> None:
        """A step reads its arrays and does not write them. Mutant: `SortsItsArgumentsInPlace`."""
        drive = self.drive(device)
        rows = np.arange(device.spec.rows)[::-1].copy()
        arrays = (np.array(drive.tokens(len(rows)), np.int64), np.zeros(len(rows), np.int64), rows)
        before = [array.copy() for array in arrays]
        device.decode(*arrays)
        assert all((array == copy).all() for array, copy in zip(arrays, before, strict=True))

    def test_close_is_idempotent(self) -> None:
        """Mutant: `ClosesOnce`."""
        device = self.load()
        device.close()
        try:
            device.close()
        except Exception as error:
            msg = "the second close raised"
            raise AssertionError(msg) from error

    # One step

    def test_prefill_equals_the_oracle_in_every_shape(self, device: Device) -> None:
        """Mutants: `LogitsOfThePaddedToken`, `NoCausalMask`, `CausalMaskOffByOne`."""
        for batch, length in device.spec.prefill_shapes:
            drive = self.drive(device, seed=length)
            longest = min(length, device.spec.max_len)
            sizes = [longest, 1, *drive.random.integers(1, longest + 1, batch)][:batch]
            rows = drive.random.permutation(device.spec.rows)[:batch]
            lanes = {int(row): drive.tokens(int(size)) for row, size in zip(rows, sizes, strict=True)}
            for row, logits in drive.prefill(lanes, (batch, length)).items():
                self.agree(logits, drive.held[row])

    def test_decode_equals_the_oracle_step_by_step(self, device: Device) -> None:
        """Mutants: `DecodeSkipsTheNewestColumn`, `RotatesOnePositionLate`."""
        drive = self.drive(device)
        drive.write(1, drive.tokens(5))
        for _ in range(10):
            self.goes_on(drive, 1)

    def test_every_declared_attended_length_is_crossed(self, device: Device) -> None:
        """The first column past a declared length is attended as well. Mutant: `AttendsOneLengthTooShort`."""
        need(len(device.spec.attended_lens) > 1, "declares fewer than two attended lengths")
        for border in device.spec.attended_lens[:-1]:
            drive = self.drive(device)
            drive.write(0, drive.tokens(max(1, border - 1)))
            for _ in range(3):
                self.goes_on(drive, 0)

    def test_the_same_step_again_gives_the_same_logits(self, device: Device) -> None:
        """Writing the last token once more changes nothing. Mutant: `TrustsItsOwnCursor`."""
        drive = self.drive(device)
        drive.write(0, drive.tokens(6))
        token = drive.tokens(1)[0]
        for _ in range(3):
            self.agree(drive.decode({0: token})[0], drive.held[0])
            drive.truncate(0, 6)
        if device.spec.resumes:
            self.agree(drive.prefill({0: [token]})[0], drive.held[0])
            self.goes_on(drive, 0)

    def test_the_last_column_is_usable(self, device: Device) -> None:
        """Column `max_len - 1` is a column like any other. Mutant: `KeepsTheLastColumnForItself`."""
        drive = self.drive(device)
        drive.write(0, drive.tokens(device.spec.max_len - 3))
        for _ in range(3):
            self.goes_on(drive, 0)
        if device.spec.resumes:
            drive.forget(1)
            self.agree(drive.write(1, drive.tokens(device.spec.max_len)), drive.held[1])

    # Right padding

    def test_right_padding_is_never_attended(self, device: Device) -> None:
        """Whatever stands to the right of a lane's tokens, its logits are the same. Mutant: `AttendsRightPadding`."""
        shapes = [shape for shape in device.spec.prefill_shapes if shape[1] > 1]
        need(bool(shapes), "every declared prefill is one token long")
        for batch, length in shapes:
            for size in {1, length // 2, length - 1}:
                drive = self.drive(device, seed=size)
                lanes = {row: drive.tokens(min(size, device.spec.max_len)) for row in range(batch)}
                for _ in range(2):  # the driver pads with other tokens each time
                    for row, logits in drive.prefill(lanes, (batch, length)).items():
                        self.agree(logits, drive.held[row])
                        drive.forget(row)

    def test_right_padding_is_never_kept(self, device: Device) -> None:
        """What follows a padded prefill does not see the padding. Mutant: `KeepsRightPadding`."""
        for batch, length in device.spec.prefill_shapes:
            drive = self.drive(device, seed=length)
            size = max(1, min(length, device.spec.max_len) // 2)
            drive.prefill({row: drive.tokens(size) for row in range(batch)}, (batch, length))
            for _ in range(2):
                self.goes_on(drive, *range(batch))

    def test_right_padding_may_hang_over_the_end_of_a_row(self, device: Device) -> None:
        """A padded lane near `max_len` harms nothing. Mutant: `ShiftsBackWritesThatHangOver`."""
        need(device.spec.resumes, "never resumes, so no prefill starts near the end of a row")
        for batch, length in device.spec.prefill_shapes:
            drive = self.drive(device, seed=length)
            drive.fill(range(batch), device.spec.max_len - 2, device.spec.max_len - 2)
            lanes = {row: drive.tokens(1) for row in range(batch)}
            for row, logits in drive.prefill(lanes, (batch, length)).items():
                self.agree(logits, drive.held[row])
            self.goes_on(drive, *range(batch))

    # Lanes and rows

    def test_order_of_lanes_does_not_matter(self, device: Device) -> None:
        """Each lane gets its own row's logits. Mutant: `AnswersInOrderOfRows`."""
        drive = self.drive(device)
        self.all_hold(drive, 2, 10)
        for _ in range(3):
            self.goes_on(drive, *(int(row) for row in drive.random.permutation(device.spec.rows)))
        rows = list(reversed(range(device.spec.rows)))
        for batch, length in device.spec.prefill_shapes:
            drive = self.drive(device, seed=length)
            sizes = drive.random.integers(1, min(length, device.spec.max_len) + 1, batch)
            lanes = {row: drive.tokens(int(size)) for row, size in zip(rows[:batch], sizes, strict=True)}
            for row, logits in drive.prefill(lanes, (batch, length)).items():
                self.agree(logits, drive.held[row])

    def test_batched_equals_alone(self, device: Device) -> None:
        """A long neighbour does not show in a short row. Mutant: `LongestLaneSetsTheMask`."""
        drive = self.drive(device)
        sizes = [1 if row % 2 else device.spec.max_len // 2 for row in range(device.spec.rows)]
        for row, size in enumerate(sizes):
            drive.write(row, drive.tokens(size))
        for batch in device.spec.decode_shapes:
            self.goes_on(drive, *range(batch))
        for batch, length in device.spec.prefill_shapes if device.spec.resumes else ():
            for row, size in enumerate(sizes):
                drive.truncate(row, size)
            lanes = {row: drive.tokens(1 + row % min(length, device.spec.max_len // 4)) for row in range(batch)}
            for row, logits in drive.prefill(lanes, (batch, length)).items():
                self.agree(logits, drive.held[row])

    def test_writing_one_row_never_changes_another(self, device: Device) -> None:
        """Mutant: `WritesIntoTheNextRow`."""
        drive = self.drive(device)
        self.all_hold(drive, 4, 12)
        for row in range(device.spec.rows):
            drive.forget(row)
            drive.write(row, drive.tokens(device.spec.max_len // 2))
            self.goes_on(drive, *range(device.spec.rows))

    # Padding lanes

    def test_idle_rows_survive_padding_at_low_load(self, device: Device) -> None:
        """One row works, the others only remember and pad. Mutant: `PadsAbsentRowsAtColumnZero`."""
        drive = self.drive(device)
        self.all_hold(drive, 4, 12)
        for batch in device.spec.decode_shapes:
            self.agree(drive.decode({0: drive.tokens(1)[0]}, batch)[0], drive.held[0])
        if device.spec.resumes:
            for shape in device.spec.prefill_shapes:
                self.agree(drive.prefill({0: drive.tokens(1)}, shape)[0], drive.held[0])
        for row in range(device.spec.rows):
            self.goes_on(drive, row)

    def test_busy_rows_survive_padding_at_high_load(self, device: Device) -> None:
        """Every row works; a step without one of them pads on it. Mutant: `TrustsItsOwnCursor`."""
        for seed in range(self.repeats):
            drive = self.drive(device, seed)
            self.all_hold(drive, 1, 6)
            for _ in range(6):
                count = int(drive.random.integers(1, device.spec.rows + 1))
                self.goes_on(drive, *(int(row) for row in drive.random.permutation(device.spec.rows)[:count]))
            self.goes_on(drive, *range(device.spec.rows))

    def test_rows_amid_a_chunked_prefill_survive_padding(self, device: Device) -> None:
        """Between two chunks of a prompt other rows work and this one pads. Mutant: `ChunksContinueAtItsOwnCursor`."""
        need(device.spec.resumes, "never resumes, so no prompt is written in chunks")
        drive = self.drive(device)
        drive.fill([0], 4, 4)
        for chunk in range(3):
            logits = drive.prefill({1: drive.tokens(min(5, device.spec.chunk))})[1]
            self.agree(logits, drive.held[1])
            self.agree(drive.decode({0: drive.tokens(1)[0]}, device.spec.rows)[0], drive.held[0])
            shape = device.spec.prefill_shapes[-1 - chunk % len(device.spec.prefill_shapes)]
            self.agree(drive.prefill({0: drive.tokens(1)}, shape)[0], drive.held[0])
        self.goes_on(drive, 0, 1)

    # Resuming

    def test_chunked_equals_whole(self, device: Device) -> None:
        """Where a prompt is split does not matter. Mutant: `ResumedTokensAttendOnlyTheirChunk`."""
        need(device.spec.resumes, "never resumes")
        for seed in range(self.repeats):
            drive = self.drive(device, seed)
            tokens = drive.tokens(device.spec.max_len - 1)
            while tokens:
                size = int(drive.random.integers(1, min(len(tokens), device.spec.chunk) + 1))
                self.agree(drive.prefill({2: tokens[:size]})[2], drive.held[2])
                tokens = tokens[size:]
            self.goes_on(drive, 2)

    def test_resuming_a_finished_row_equals_starting_over(self, device: Device) -> None:
        """A remembered prompt and answer need not be computed again. Mutant: `ResumesAtColumnZero`."""
        need(device.spec.resumes, "never resumes")
        drive = self.drive(device)
        drive.write(1, drive.tokens(7))
        for _ in range(3):
            self.goes_on(drive, 1)
        self.agree(drive.write(1, drive.tokens(5)), drive.held[1])
        self.goes_on(drive, 1)

    def test_resuming_at_an_earlier_column_drops_the_rest(self, device: Device) -> None:
        """A row that diverges does not see what it once held. Mutant: `AttendsAllItEverHeld`."""
        need(device.spec.resumes, "never resumes")
        for seed in range(self.repeats):
            drive = self.drive(device, seed)
            drive.write(0, drive.tokens(16))
            for length in (11, 4, 0):
                drive.truncate(0, length)
                self.agree(drive.write(0, drive.tokens(2)), drive.held[0])
                self.goes_on(drive, 0)
                drive.write(0, drive.tokens(8))

    # Copying

    def test_a_copied_row_goes_on_as_its_source_would(self, device: Device) -> None:
        """Mutants: `CopiesOneColumnShort`, `CopiesTheOtherWayRound`."""
        need(device.spec.copies, "never copies")
        drive = self.drive(device)
        drive.write(2, drive.tokens(9))
        for length in (9, 5, 1):
            drive.forget(0)
            drive.copy(2, 0, length)
            self.goes_on(drive, 0)
            self.goes_on(drive, 0)

    def test_a_copy_that_diverges_leaves_its_source_alone(self, device: Device) -> None:
        """Mutant: `CopiesShareTheirColumns`."""
        need(device.spec.copies, "never copies")
        drive = self.drive(device)
        drive.write(0, drive.tokens(9))
        drive.copy(0, 1, 6)
        for _ in range(4):
            self.goes_on(drive, 1)
        self.goes_on(drive, 0)

    def test_a_copy_into_a_longer_row_replaces_what_it_held(self, device: Device) -> None:
        """Mutant: `CopiesOnlyWhatIsMissing`."""
        need(device.spec.copies, "never copies")
        drive = self.drive(device)
        drive.write(0, drive.tokens(5))
        drive.write(1, drive.tokens(14))
        drive.copy(0, 1, 5)
        self.goes_on(drive, 1)
        self.goes_on(drive, 0, 1)

    # Verifying drafts

    def test_verify_equals_as_many_decodes(self, device: Device) -> None:
        """Mutants: `VerifyAnswersOneTokenLate`, `VerifyWritesOneColumnLate`."""
        need(device.spec.drafts > 0, "takes no drafts")
        for batch in device.spec.decode_shapes:
            drive = self.drive(device, seed=batch)
            self.all_hold(drive, 1, 8)
            lanes = {row: drive.tokens(int(drive.random.integers(1, device.spec.drafts + 1))) for row in range(batch)}
            before = [list(held) for held in drive.held]
            for row, logits in drive.verify(lanes).items():
                for index in range(len(lanes[row])):
                    self.agree(logits[index], before[row] + lanes[row][: index + 1])
            self.goes_on(drive, *range(device.spec.rows))

    def test_rejected_drafts_leave_no_trace(self, device: Device) -> None:
        """The next step overwrites them. Mutant: `KeepsRejectedDrafts`."""
        need(device.spec.drafts > 1, "takes no drafts that could be rejected")
        for accepted in sorted({1, device.spec.drafts // 2, device.spec.drafts - 1}):
            drive = self.drive(device, seed=accepted)
            self.all_hold(drive, 3, 8)
            lengths = [len(held) for held in drive.held]
            drive.verify({row: drive.tokens(device.spec.drafts) for row in range(device.spec.rows)})
            for row, length in enumerate(lengths):
                drive.truncate(row, length + accepted)
            for _ in range(2):
                self.goes_on(drive, *range(device.spec.rows))

    def test_drafts_may_hang_over_the_end_of_a_row(self, device: Device) -> None:
        """Fewer drafts than declared fit the last columns. Mutant: `ShiftsBackWritesThatHangOver`."""
        need(device.spec.drafts > 1, "takes no drafts")
        for seed in range(self.repeats):
            drive = self.drive(device, seed)
            self.all_hold(drive, device.spec.max_len - 2, device.spec.max_len - 2)
            lanes = {row: drive.tokens(1) for row in range(device.spec.rows)}
            for row, logits in drive.verify(lanes).items():
                self.agree(logits[0], drive.held[row])
            self.goes_on(drive, *lanes)

    # Forgetting

    def test_a_forgotten_row_starts_afresh(self, device: Device) -> None:
        """Mutant: `ForgetsNothing`."""
        drive = self.drive(device)
        drive.write(0, drive.tokens(12))
        for size in (3, 7):
            drive.forget(0)
            self.agree(drive.write(0, drive.tokens(size)), drive.held[0])
            self.goes_on(drive, 0)

    def test_forgetting_one_row_leaves_the_others(self, device: Device) -> None:
        """Mutant: `ForgetsTheNextRow`."""
        drive = self.drive(device)
        self.all_hold(drive, 3, 8)
        for row in range(device.spec.rows - 1):
            drive.forget(row)
            self.goes_on(drive, device.spec.rows - 1)

    # All of it at once

    def test_random_work_at_low_load_equals_the_oracle(self, device: Device) -> None:
        """One or two requests at a time; most rows are idle and remember. Mutant: `PadsAbsentRowsAtColumnZero`."""
        for seed in range(self.repeats):
            self.random_work(self.drive(device, seed), busy=2, steps=40)

    def test_random_work_at_high_load_equals_the_oracle(self, device: Device) -> None:
        """Rows are never idle for long. Mutants: `LongestLaneSetsTheMask`, `AnswersInOrderOfRows`."""
        for seed in range(self.repeats):
            self.random_work(self.drive(device, seed), busy=device.spec.rows, steps=40)

    # What the laws are written in

    def drive(self, device: Device, seed: int = 0) -> Driver:
        """Return a driver of the device, with every row forgotten."""
        return Driver(device, vocabulary=self.vocabulary, seed=seed)

    def agree(self, got: Logits, tokens: Sequence[int]) -> None:
        """Assert that `got` are the logits after the last of `tokens`."""
        want = self.oracle(tokens)
        got = got[: len(want)]
        assert np.isfinite(got).all(), f"logits after {len(tokens)} tokens are not finite"
        distance = want.max() - want[got.argmax()] if self.greedy else np.abs(got - want).max()
        assert distance <= self.tolerance, f"logits after {len(tokens)} tokens are off by {distance:.3g}"

    def well_formed(self, logits: Logits, *shape: int) -> None:
        """Assert that `logits` is a finite float32 array of this shape."""
        assert isinstance(logits, np.ndarray)
        assert logits.dtype == np.float32
        assert logits.shape == shape
        assert np.isfinite(logits).all()

    def goes_on(self, drive: Driver, *rows: int) -> None:
        """Decode a random token on these rows, in one step, and hold the logits against the oracle."""
        for row, logits in drive.decode({row: drive.tokens(1)[0] for row in rows}).items():
            self.agree(logits, drive.held[row])

    def all_hold(self, drive: Driver, shortest: int, longest: int) -> None:
        """Let every row hold some random tokens."""
        drive.fill(range(drive.spec.rows), shortest, longest)

    def random_work(self, drive: Driver, *, busy: int, steps: int) -> None:
        """Serve random requests, `busy` at a time: they join, reuse or copy what is held, work, and leave their row."""
        spec, chance = drive.spec, drive.random.random
        prompts: dict[int, list[int]] = {}  # tokens still to prefill, by row
        answers: dict[int, int] = {}  # tokens still to decode, by row
        for _ in range(steps):
            idle = [row for row in range(spec.rows) if row not in answers]
            if len(answers) < busy and idle and chance() < 0.7:
                row = idle[int(drive.random.integers(len(idle)))]
                prompts[row] = self.seat(drive, row, list(answers))
                room = spec.max_len - len(drive.held[row]) - len(prompts[row])
                answers[row] = int(drive.random.integers(1, min(room, 8) + 1))
            decoding = {row for row in answers if row not in prompts}
            if prompts and (not decoding or chance() < 0.5):
                self.prefill_some(drive, prompts)
            elif decoding:
                self.advance_all(drive, answers, decoding)

    def seat(self, drive: Driver, row: int, others: list[int]) -> list[int]:
        """Let a random request take `row`; return the tokens of its prompt that are not held there yet."""
        spec, integers = drive.spec, drive.random.integers
        sources = [other for other in others if drive.held[other]]
        if spec.copies and spec.resumes and sources and integers(2):
            source = sources[int(integers(len(sources)))]
            drive.copy(source, row, min(int(integers(1, len(drive.held[source]) + 1)), spec.max_len - 2))
        elif spec.resumes and integers(4):
            drive.truncate(row, min(int(integers(len(drive.held[row]) + 1)), spec.max_len - 2))
        else:
            drive.forget(row)
        longest = spec.max_len - 1 - len(drive.held[row])
        return drive.tokens(int(integers(1, min(longest, spec.max_prompt, spec.chunk * 2) + 1)))

    def prefill_some(self, drive: Driver, prompts: dict[int, list[int]]) -> None:
        """Prefill a chunk of one prompt, or of as many as one declared step takes."""
        rows = list(prompts) if drive.random.random() < 0.7 else list(prompts)[:1]
        longest = int(drive.random.integers(1, drive.spec.chunk + 1)) if drive.spec.resumes else drive.spec.chunk
        lanes = {row: prompts[row][:longest] for row in rows}
        while drive.fit(lanes) is None:
            lanes.popitem()
        for row, logits in drive.prefill(lanes).items():
            self.agree(logits, drive.held[row])
            prompts[row] = prompts[row][len(lanes[row]) :]
            if not prompts[row]:
                del prompts[row]

    def advance_all(self, drive: Driver, answers: dict[int, int], rows: set[int]) -> None:
        """Decode or verify on these rows; rows whose answer is complete leave."""
        if drive.spec.drafts and drive.random.random() < 0.3:
            lanes = {row: drive.tokens(min(drive.spec.drafts, answers[row])) for row in rows}
            before = {row: list(drive.held[row]) for row in rows}
            accepted = {row: int(drive.random.integers(1, len(lanes[row]) + 1)) for row in rows}
            for row, logits in drive.verify(lanes).items():
                drive.truncate(row, len(before[row]) + accepted[row])
                self.agree(logits[accepted[row] - 1], drive.held[row])
        else:
            accepted = dict.fromkeys(rows, 1)
            self.goes_on(drive, *rows)
        for row in rows:
            answers[row] -= accepted[row]
            if not answers[row]:
                del answers[row]
                if not drive.spec.resumes:
                    drive.forget(row)


def need(holds: bool, lacking: str) -> None:
    """Skip the law unless the device can do what it is about."""
    if not holds:
        pytest.skip(f"the device {lacking}")
