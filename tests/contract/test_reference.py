"""The reference device keeps the contract in every configuration, and says no to whoever breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from langchain_accel.devices.base import Device, Plan, Rank, Spec
from langchain_accel.devices.reference import Options, load
from langchain_accel.errors import ModelRejected, PlanRejected, UndeclaredShape
from tests.contract.device_contract import DeviceContract
from tests.contract.plain_llama import PlainLlama
from tests.tiny_checkpoint import make_tiny_checkpoint

ROWS, MAX_LEN = 4, 64


def load_reference(folder: Path, options: Options | None = None, *, rows: int = ROWS, max_len: int = MAX_LEN) -> Device:
    """Load the reference device with a small arena."""
    plan = Plan(device="reference", model=str(folder), rows=rows, max_len=max_len)
    return load(plan, options or Options(), Rank())


class ReferenceContract(DeviceContract):
    """The contract, applied to the reference device with `options`."""

    options = Options()

    @pytest.fixture(autouse=True)
    def _model(self, tiny: Path, plain: PlainLlama) -> None:
        self.folder, self.plain = tiny, plain

    def load(self) -> Device:
        return load_reference(self.folder, self.options)

    def oracle(self, tokens: Sequence[int]) -> npt.NDArray[np.floating]:
        return self.plain.logits(tokens)


class TestEverythingOn(ReferenceContract):
    """All capabilities, the shapes the device declares by itself."""


class TestNothingButPrefillAndDecode(ReferenceContract):
    """No resumes, copies, drafts or attended lengths: a device that only appends."""

    options = Options(attended_lens=(), resumes=False, copies=False, drafts=0)


class TestFixedGraph(ReferenceContract):
    """One prefill shape of one lane, one decode shape of all rows: a compiled graph that can resume."""

    options = Options(prefill_shapes=((1, 16),), decode_shapes=(ROWS,), attended_lens=(), copies=False, drafts=0)


class TestFixedGraphWithoutResumes(ReferenceContract):
    """As before, and a prompt must fit one prefill."""

    options = Options(prefill_shapes=((1, 48),), decode_shapes=(ROWS,), resumes=False, copies=False, drafts=0)


class TestManyAttendedLengths(ReferenceContract):
    """Attended lengths that no shape aligns with, single-token prefills, longer drafts."""

    options = Options(
        prefill_shapes=((1, 1), (1, 24), (2, 8), (3, 24)), attended_lens=(5, 8, 23, 24, 40, MAX_LEN), drafts=7
    )


def test_defaults_declare_everything(tiny: Path) -> None:
    spec = load_reference(tiny, rows=6, max_len=200).spec
    assert spec == Spec(
        rows=6,
        max_len=200,
        vocab_size=320,
        prefill_shapes=((1, 8), (1, 32), (1, 128), (4, 8), (4, 32), (4, 128)),
        decode_shapes=(1, 2, 4, 6),
        attended_lens=(32, 128, 200),
        resumes=True,
        copies=True,
        drafts=4,
    )


def test_without_resumes_a_prompt_as_long_as_a_row_is_declared(tiny: Path) -> None:
    assert load_reference(tiny, Options(resumes=False), max_len=200).spec.max_prompt == 199


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_logits_equal_those_of_transformers(tmp_path: Path, model_type: str, dtype: str, *, tied: bool) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    make_tiny_checkpoint(tmp_path, model_type=model_type, dtype=dtype, tied=tied, seed=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(0, 320, 40)
    with torch.no_grad():
        want = model(torch.tensor(tokens[None])).logits[0, -1].numpy()
    device = load_reference(tmp_path)
    for token in range(len(tokens)):
        got = device.decode(tokens[token : token + 1], np.array([token]), np.array([0]))
    np.testing.assert_allclose(got[0], want, atol=1e-4)


def test_progress_is_reported(tiny: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load(Plan("reference", str(tiny)), Options(), Rank(), lambda *report: seen.append(report))
    assert seen == [("reading weights", 0, 1), ("reading weights", 1, 1)]


# What is refused at the row step


def ints(*values: object) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


ONE = np.zeros((1, 8), np.int64)
"""Tokens of one prefill lane, in a declared shape."""


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda d: d.prefill(np.zeros((2, 8), np.int64), ints(1, 1), ints(0, 0), ints(1, 1)), "a row appears twice"),
        (lambda d: d.decode(ints(0, 0), ints(0, 0), ints(2, 2)), "a row appears twice"),
        (lambda d: d.decode(ints(0), ints(0), ints(ROWS)), "row 4 of 4"),
        (lambda d: d.decode(ints(0), ints(0), ints(-1)), "row -1 of 4"),
        (lambda d: d.prefill(ONE, ints(8), ints(MAX_LEN - 7), ints(0)), "columns 57 [+] 8 of 64"),
        (lambda d: d.decode(ints(0), ints(MAX_LEN), ints(0)), "columns 64 [+] 1 of 64"),
        (lambda d: d.decode(ints(0), ints(-1), ints(0)), "columns -1"),
        (lambda d: d.prefill(ONE, ints(0), ints(0), ints(0)), "0 real tokens"),
        (lambda d: d.prefill(ONE, ints(9), ints(0), ints(0)), "9 real tokens in a lane of 8"),
        (lambda d: d.prefill(ONE + 320, ints(1), ints(0), ints(0)), "tokens 320...320 of a vocabulary of 320"),
        (lambda d: d.prefill(ONE - 1, ints(1), ints(0), ints(0)), "tokens -1"),
        (lambda d: d.prefill(ONE.astype(np.int32), ints(1), ints(0), ints(0)), "int32"),
        (lambda d: d.prefill(ONE, ints(1, 1), ints(0), ints(0)), "1 lanes"),
        (lambda d: d.decode(ints(0), ints(1), ints(0)), "row 0 starts at 1, but has 0 columns"),
        (lambda d: d.verify(ints([0, 0]), ints(2), ints(3), ints(1)), "row 1 starts at 3, but has 0 columns"),
        (lambda d: d.copy_row(0, 1, 1), "copy 1 columns, 0 are written"),
        (lambda d: d.copy_row(0, 0, 1), "copy 0 to 0"),
        (lambda d: d.copy_row(0, ROWS, 1), "copy 0 to 4"),
        (lambda d: d.forget(ROWS), "row 4 of 4"),
    ],
)
def test_a_broken_contract_is_refused(tiny: Path, step: Callable[[Device], object], message: str) -> None:
    options = Options(prefill_shapes=((1, 8), (2, 8)))
    with pytest.raises(ValueError, match=message):
        step(load_reference(tiny, options))


def test_columns_behind_a_write_and_forgotten_columns_cannot_be_read(tiny: Path) -> None:
    device = load_reference(tiny)
    device.prefill(ONE, ints(8), ints(0), ints(0))
    device.decode(ints(0), ints(3), ints(0))
    with pytest.raises(ValueError, match="row 0 starts at 5, but has 4 columns"):
        device.decode(ints(0), ints(5), ints(0))
    with pytest.raises(ValueError, match="copy 5 columns, 4 are written"):
        device.copy_row(0, 1, 5)
    device.copy_row(0, 1, 4)
    device.forget(0)
    device.decode(ints(0), ints(4), ints(1))
    with pytest.raises(ValueError, match="row 0 starts at 4, but has 0 columns"):
        device.decode(ints(0), ints(4), ints(0))


def test_what_is_switched_off_is_refused(tiny: Path) -> None:
    device = load_reference(tiny, Options(resumes=False, copies=False, drafts=0))
    device.prefill(ONE, ints(8), ints(0), ints(0))
    with pytest.raises(ValueError, match="never resumes"):
        device.prefill(ONE, ints(1), ints(8), ints(0))
    with pytest.raises(ValueError, match="without copies"):
        device.copy_row(0, 1, 4)
    with pytest.raises(UndeclaredShape, match="verify"):
        device.verify(ints([0]), ints(1), ints(8), ints(0))


@pytest.mark.parametrize(
    "step",
    [
        lambda d: d.prefill(np.zeros((1, 9), np.int64), ints(1), ints(0), ints(0)),
        lambda d: d.prefill(np.zeros((2, 8), np.int64), ints(1, 1), ints(0, 0), ints(0, 1)),
        lambda d: d.prefill(ints(0), ints(1), ints(0), ints(0)),
        lambda d: d.decode(ints(0, 0, 0), ints(0, 0, 0), ints(0, 1, 2)),
        lambda d: d.decode(ints([0]), ints(0), ints(0)),
        lambda d: d.verify(ints([0, 0, 0, 0, 0]), ints(1), ints(0), ints(0)),
        lambda d: d.verify(ints([0], [0], [0]), ints(1, 1, 1), ints(0, 0, 0), ints(0, 1, 2)),
    ],
)
def test_undeclared_shapes_are_refused(tiny: Path, step: Callable[[Device], object]) -> None:
    with pytest.raises(UndeclaredShape, match="was never declared; declared are"):
        step(load_reference(tiny))


def test_a_second_thread_is_refused(tiny: Path) -> None:
    device = load_reference(tiny)
    with ThreadPoolExecutor(1) as other:
        for step in (lambda: device.decode(ints(0), ints(0), ints(0)), lambda: device.forget(0), device.close):
            with pytest.raises(ValueError, match="another thread"):
                other.submit(step).result()
    device.decode(ints(0), ints(0), ints(0))


def test_a_closed_device_is_refused(tiny: Path) -> None:
    device = load_reference(tiny)
    device.close()
    for step in (
        lambda: device.prefill(ONE, ints(1), ints(0), ints(0)),
        lambda: device.decode(ints(0), ints(0), ints(0)),
        lambda: device.copy_row(0, 1, 1),
        lambda: device.forget(0),
    ):
        with pytest.raises(ValueError, match="the device is closed"):
            step()


def test_logits_are_lent_until_the_next_call(tiny: Path) -> None:
    device = load_reference(tiny)
    logits = device.decode(ints(0), ints(0), ints(0))
    assert np.isfinite(logits).all()
    device.decode(ints(0), ints(1), ints(0))
    assert np.isnan(logits).all()


# What is refused at load


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no readable config.json in"),
        (lambda f: (f / "config.json").write_text("{"), "no readable config.json in"),
        (lambda f: (f / "config.json").write_text("[]"), "do not make a whole llama or qwen2 or qwen3 model"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "do not make .*'vocab_size'"),
        (lambda f: (f / "model.safetensors").unlink(), "no [*].safetensors file in"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read as safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"not a header"), "cannot be read as safetensors"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
            "cannot be read as safetensors",
        ),
        (lambda f: edit_config(f, model_type="gpt2"), "model_type 'gpt2'; .* serves only llama, qwen2, qwen3"),
        (lambda f: edit_config(f, hidden_act="gelu"), "hidden_act 'gelu'"),
        (lambda f: edit_config(f, use_sliding_window=True), "use_sliding_window True"),
        (lambda f: edit_config(f, rope_scaling={"type": "linear", "factor": 2.0}), "rope_type 'linear'"),
        (lambda f: edit_config(f, rope_parameters={"rope_type": "llama3"}), "rope_type 'llama3'"),
        (lambda f: edit_config(f, num_hidden_layers=3), "input_layernorm.weight"),
        (lambda f: edit_config(f, vocab_size=321), "do not make a whole"),
        (lambda f: edit_config(f, intermediate_size=65, hidden_size=64), "do not make a whole"),
        (lambda f: edit_config(f, num_attention_heads=3), "do not make a whole"),
    ],
)
def test_a_broken_checkpoint_is_refused(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(make_tiny_checkpoint(tmp_path))
    with pytest.raises(ModelRejected, match=message):
        load_reference(tmp_path)


def test_a_missing_tiny_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"no readable config\.json in .*nowhere"):
        load_reference(tmp_path / "nowhere")


def test_weights_in_another_format_are_refused(tmp_path: Path) -> None:
    file = make_tiny_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"dtype": "F32"', b'"dtype": "I32"', 1))
    with pytest.raises(ModelRejected, match="is stored as I32"):
        load_reference(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(decode_shapes=(1, 2)), "decode_shapes must ascend and end with rows=4"),
        (Options(prefill_shapes=()), "prefill_shapes must be non-empty"),
        (Options(attended_lens=(32,)), "attended_lens must ascend and end with max_len=64"),
    ],
)
def test_options_no_scheduler_could_serve_are_refused(tiny: Path, options: Options, message: str) -> None:
    with pytest.raises(PlanRejected, match=message):
        load_reference(tiny, options)


def test_bfloat16_is_refused(tiny: Path) -> None:
    with pytest.raises(PlanRejected, match="dtype='auto'"):
        load(Plan("reference", str(tiny), dtype="bfloat16"), Options(), Rank())
