"""What the xeon device accepts, what it refuses and with which words, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from langchain_accel.devices import processors, xeon
from langchain_accel.devices.base import Plan, Rank, silent
from langchain_accel.devices.torch_rows import arena, linears, proof
from langchain_accel.devices.torch_rows.positions import position_limit
from langchain_accel.devices.torch_rows.shapes import decode_shapes, prefill_shapes
from langchain_accel.errors import DeviceUnavailable, ModelRejected, PlanRejected
from tests.tiny_models import ARCHITECTURES, POSITIONS, make

ONE = xeon.Options(threads=1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def plan(folder: Path, **changes: Any) -> Plan:
    return Plan("xeon", str(folder), **{"rows": 2, "max_len": 64, "dtype": "float32", **changes})


def edit(folder: Path, **entries: Any) -> Path:
    """Change entries of a folder's config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(ModelRejected) as caught:
        xeon.load(plan(folder, **changes), ONE)
    return str(caught.value)


class TestFolder:
    def test_missing(self, tmp_path: Path) -> None:
        assert f"{tmp_path / 'nowhere'} is not a folder" in refused(tmp_path / "nowhere")

    def test_without_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        assert "has no config.json" in refused(folder)

    def test_broken_config(self, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        assert "config.json cannot be used" in refused(folder)

    def test_unknown_model_type(self, folder: Path) -> None:
        message = refused(edit(folder, model_type="perceiver-of-tomorrow"))
        assert "perceiver-of-tomorrow" in message

    def test_own_code_needs_trust(self, folder: Path) -> None:
        edit(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
        (folder / "own.py").write_text("raise SystemExit('the code ran')\n")
        message = refused(folder)
        assert "trust_remote_code=True" in message
        assert str(folder) in message

    def test_only_pickled_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        assert "save_pretrained" in refused(folder)

    def test_cut_short(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        message = refused(folder)
        assert str(weights) in message
        assert "cut short" in message

    def test_missing_tensor(self, folder: Path) -> None:
        """Mutant: the loading report is not looked at, and random numbers answer."""
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        message = refused(folder)
        assert "model.layers.1.mlp.up_proj.weight" in message
        assert "missing" in message

    def test_other_shape(self, folder: Path) -> None:
        message = refused(edit(folder, intermediate_size=80))
        assert "weights cannot be loaded" in message or "mismatched" in message


class TestArchitecture:
    @pytest.mark.parametrize(
        ("entries", "words"),
        [
            ({"model_type": "t5"}, "encoder-decoder"),
            ({"model_type": "mamba"}, "recurrent state"),
            ({"model_type": "rwkv"}, "recurrent state"),
            ({"model_type": "recurrent_gemma"}, "recurrent state"),
            ({"model_type": "qwen3_next"}, "recurrent state"),
            ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "['conv']"),
            ({"model_type": "qwen2_vl"}, "images"),
            ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
            ({"model_type": "llama4_text", "attention_chunk_size": 32}, "set max_len <= 32"),
        ],
    )
    def test_refused_by_its_config(self, folder: Path, entries: dict[str, Any], words: str) -> None:
        """Nothing is loaded for these: the folder's weights belong to another model."""
        message = refused(edit(folder, architectures=None, **entries))
        assert words in message
        assert "cannot be served" in message

    @pytest.mark.parametrize(
        ("model_type", "entries", "words"),
        [
            ("gptj", {"n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "by other means"),
            ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}, "s_aux"),
            ("diffllama", {}, "other logits"),
            ("bert", {}, "is_causal=False"),
        ],
    )
    def test_refused_by_the_self_check(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        model_type: str,
        entries: dict[str, Any],
        words: str,
    ) -> None:
        """Attention that cannot be replaced, that wants more than ours gives, or that comes out different."""
        base = ARCHITECTURES["llama"][1]
        monkeypatch.setattr("tests.tiny_models.ARCHITECTURES", {model_type: (model_type, {**base, **entries})})
        assert words in refused(make(model_type, tmp_path))

    def test_wrong_logits_are_refused(self, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Mutant: the check compares the device with itself."""
        honest = arena.attend
        monkeypatch.setattr(arena, "attend", lambda *args, **kwargs: honest(*args, **kwargs) * 1.01)
        assert "refused rather than answered wrongly" in refused(llama)

    def test_a_window_the_attention_is_not_told_of_is_refused(self, llama: Path) -> None:
        """No 12-token prompt shows a window of 32: the calls are compared with the config.

        Mutant: windows are not compared.
        """
        device = xeon.load(plan(llama), ONE)
        model = device._model  # type: ignore[attr-defined]
        model.config.sliding_window = 32
        with pytest.raises(ModelRejected, match="set max_len <= 32"):
            proof.check_layers(model, device._attention, max_len=64)  # type: ignore[attr-defined]
        proof.check_layers(model, device._attention, max_len=32)  # type: ignore[attr-defined]
        device.close()

    def test_alibi_is_rounded_as_falcon_rounds_it(self, tmp_path: Path) -> None:
        """Past 256 columns, and with slopes that are no powers of two, bfloat16 ALiBi differs from exact ALiBi.

        Mutant: exact ALiBi.
        """
        folder = make("falcon-alibi", tmp_path, num_attention_heads=12)
        prompt = np.random.default_rng(0).integers(5, 300, 300)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.inference_mode():
            expected = model(torch.from_numpy(prompt)[None]).logits[0].numpy()
        device = xeon.load(plan(folder, max_len=300), ONE)
        actual = device.verify(prompt[None], np.array([300]), np.array([0]), np.array([0]))[0]
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
        device.close()


class TestPlan:
    def test_too_many_columns(self, llama: Path) -> None:
        with pytest.raises(PlanRejected, match=f"max_len=4096 is more than the {POSITIONS} positions"):
            xeon.load(plan(llama, max_len=4096), ONE)

    @pytest.mark.parametrize(
        ("model_type", "entries", "limit"),
        [
            ("llama", {"max_position_embeddings": 100}, 100),
            ("gpt2", {"n_positions": 77}, 77),
            ("mpt", {"max_seq_len": 55}, 55),
            ("bloom", {}, None),
            ("falcon", {"alibi": True}, None),
            ("falcon", {"alibi": False, "max_position_embeddings": 99}, 99),
            (
                "qwen2",
                {
                    "max_position_embeddings": 100,
                    "rope_scaling": {
                        "rope_type": "yarn",
                        "rope_theta": 1e4,
                        "factor": 4.0,
                        "original_max_position_embeddings": 100,
                    },
                },
                400,
            ),
            (
                "phi3",
                {
                    "hidden_size": 48,
                    "num_attention_heads": 4,
                    "max_position_embeddings": 400,
                    "original_max_position_embeddings": 100,
                    "rope_scaling": {
                        "rope_type": "longrope",
                        "rope_theta": 1e4,
                        "short_factor": [1.0] * 6,
                        "long_factor": [2.0] * 6,
                    },
                },
                100,
            ),
            (
                "llama",
                {
                    "max_position_embeddings": 100,
                    "rope_scaling": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
                },
                100,
            ),
        ],
    )
    def test_position_limit(self, model_type: str, entries: dict[str, Any], limit: int | None) -> None:
        assert position_limit(AutoConfig.for_model(model_type, **entries))[0] == limit

    def test_too_little_memory(self, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Refused before any weight is read."""
        monkeypatch.setattr(xeon, "available", lambda: 2**20)
        monkeypatch.setattr("langchain_accel.devices.torch_rows.loading.load_model", pytest.fail)
        with pytest.raises(PlanRejected, match="GiB are free"):
            xeon.load(plan(llama), ONE)

    def test_ranks(self, llama: Path) -> None:
        with pytest.raises(PlanRejected, match="tensor_parallel_size=2"):
            xeon.load(plan(llama, tensor_parallel_size=2), ONE)
        with pytest.raises(PlanRejected, match="as many processes"):
            xeon.load(plan(llama), ONE, Rank(0, 2))

    @pytest.mark.parametrize("wrong", [{"threads": 0}, {"threads": -2}, {"prefill_chunk": 8}])
    def test_options(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(PlanRejected, match=next(iter(wrong))):
            xeon.Options(**wrong)


class TestSpec:
    @pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 12, 13, 16, 20, 32, 48, 64, 100, 256])
    def test_decode_shapes_pad_at_most_a_quarter(self, rows: int) -> None:
        shapes = decode_shapes(rows)
        assert shapes[-1] == rows
        for lanes in range(1, rows + 1):
            shape = next(size for size in shapes if size >= lanes)
            assert (shape - lanes) / shape <= 0.25

    @pytest.mark.parametrize(("rows", "longest"), [(1, 2), (1, 16), (3, 40), (8, 256), (16, 1000)])
    def test_prefill_shapes_fit_the_arena(self, rows: int, longest: int) -> None:
        shapes = prefill_shapes(rows, longest)
        assert (1, longest) in shapes
        assert all(batch <= rows and length <= longest for batch, length in shapes)
        assert list(shapes) == sorted(set(shapes))

    def test_of_a_loaded_device(self, llama: Path) -> None:
        device = xeon.load(plan(llama, rows=9, max_len=100), xeon.Options(threads=1, prefill_chunk=48))
        spec = device.spec
        assert (spec.rows, spec.max_len, spec.vocab_size, spec.chunk) == (9, 100, 384, 48)
        assert spec.resumes
        assert spec.copies
        assert spec.drafts > 0
        assert spec.attended_lens == ()
        device.close()

    def test_smallest_arena(self, llama: Path) -> None:
        device = xeon.load(plan(llama, rows=1, max_len=2), ONE)
        tokens = np.array([[7]])
        one, zero = np.array([1]), np.array([0])
        assert device.prefill(tokens, one, zero, zero).shape == (1, 384)
        assert device.decode(np.array([8]), one, zero).shape == (1, 384)
        device.close()


class TestLife:
    def test_progress(self, llama: Path) -> None:
        seen: list[tuple[str, int, int]] = []
        device = xeon.load(plan(llama), ONE, progress=lambda *step: seen.append(step))
        device.close()
        stages = [stage for stage, done, _ in seen if done == 0]
        assert stages[0] == "loading weights"
        assert all((stage, total, total) in seen for stage, _, total in seen)

    def test_nothing_is_printed(self, llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
        xeon.load(plan(llama), ONE).close()
        out, err = capfd.readouterr()
        assert out + err == ""

    def test_close_twice(self, llama: Path) -> None:
        device = xeon.load(plan(llama), ONE)
        device.close()
        device.close()

    def test_threads_are_the_engine_threads_own(self, llama: Path) -> None:
        """Neither the loading thread's neighbours nor threads started later get its number of threads.

        Mutant: `torch.set_num_threads` alone, which becomes the default of every later thread.
        """
        seen: dict[str, int] = {}

        def in_thread(name: str, work: Callable[[], int]) -> None:
            thread = threading.Thread(target=lambda: seen.__setitem__(name, work()))
            thread.start()
            thread.join()

        def serve() -> int:
            device = xeon.load(plan(llama), xeon.Options(threads=3))
            count: int = torch.get_num_threads()
            in_thread("later", torch.get_num_threads)
            device.close()
            seen["after close"] = torch.get_num_threads()
            return count

        here = torch.get_num_threads()
        in_thread("before", torch.get_num_threads)
        in_thread("engine", serve)
        assert seen["engine"] == 3
        assert torch.get_num_threads() == here
        assert seen["later"] == seen["after close"] == seen["before"]

    def test_a_model_that_fails_its_check_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mutant seen to fail: what was opened handed to a device that is never made."""

        rejected = ModelRejected("unlike itself")

        def fail(*_: object) -> None:
            raise rejected

        monkeypatch.setattr("langchain_accel.devices.torch_rows.device.check_layers", fail)
        here = torch.get_num_threads()
        with pytest.raises(ModelRejected, match="unlike itself"):
            xeon.load(plan(make("phi", tmp_path)), xeon.Options(threads=here + 2))
        assert torch.get_num_threads() == here

    def test_two_devices_do_not_meet(self, llama: Path, tmp_path: Path) -> None:
        """Mutant: both models share one registered attention."""
        lone = xeon.load(plan(llama), ONE)
        zero, three = np.array([0]), np.array([3])
        tokens = np.array([[5, 6, 7]])
        alone = lone.prefill(tokens, three, zero, zero).copy()
        other = xeon.load(plan(make("mistral", tmp_path)), ONE)
        other.prefill(tokens + 9, three, zero, zero)
        np.testing.assert_array_equal(lone.prefill(tokens, three, zero, zero), alone)
        other.close()
        np.testing.assert_array_equal(lone.prefill(tokens, three, zero, zero), alone)
        lone.close()

    def test_other_devices_need_no_torch(self, llama: Path) -> None:
        """Without torch the module imports, its options can be made, and loading says what to install."""
        code = f"""
            import sys
            sys.modules["torch"] = None
            from langchain_accel.devices import base, memory, xeon
            from langchain_accel.errors import DeviceUnavailable
            try:
                xeon.load(base.Plan("xeon", {str(llama)!r}), xeon.Options())
            except DeviceUnavailable as error:
                assert 'pip install "langchain-accel[xeon]"' in str(error)
            else:
                raise SystemExit("loaded without torch")
        """
        assert issubclass(DeviceUnavailable, ImportError)
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


class TestBfloat16:
    def test_packed_linears_compute_the_same(self, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(xeon, "cpu_flags", lambda: {"avx512_bf16"})
        logits = []
        for packed in (False, True):
            options = xeon.Options(threads=1, packed=packed)
            device = xeon.load(plan(llama, dtype="bfloat16"), options)
            kinds = {type(module) for module in device._model.modules()}  # type: ignore[attr-defined]
            assert (linears.PackedLinear in kinds) == (packed and torch.ops.mkldnn._is_mkldnn_bf16_supported())
            tokens = np.arange(5, 15)[None]
            logits.append(device.prefill(tokens, np.array([10]), np.array([0]), np.array([0])).copy())
            device.close()
        error = np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0])
        assert logits[0].dtype == np.float32
        assert error < 0.02

    def test_nothing_is_packed_where_bfloat16_is_emulated(self, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(xeon, "cpu_flags", lambda: {"avx512f"})
        monkeypatch.setattr(linears, "replace", pytest.fail)
        xeon.load(plan(llama, dtype="bfloat16"), ONE).close()

    def test_every_linear_is_replaced_once_and_a_tied_head_never(self, tmp_path: Path) -> None:
        """Mutant: the tied head is packed, which keeps its weight twice."""
        seen: list[torch.nn.Linear] = []
        for name, heads in (("llama", 1), ("llama-tied", 0)):
            seen.clear()
            model = AutoModelForCausalLM.from_pretrained(make(name, tmp_path / name))

            def swap(linear: torch.nn.Linear) -> torch.nn.Module:
                seen.append(linear)
                return torch.nn.Identity()

            linears.replace(model, swap, silent)
            assert len(seen) == 2 * 7 + heads
            assert isinstance(model.lm_head, torch.nn.Identity) == bool(heads)

    def test_float32_is_left_alone(self) -> None:
        linear = torch.nn.Linear(4, 4)
        assert linears.pack(linear) is linear


class TestMachine:
    def test_fastest_dtype(self) -> None:
        assert processors.fastest_dtype({"avx2", "avx512f", "avx512_vnni"}) == "float32"
        assert processors.fastest_dtype({"avx512_bf16"}) == "bfloat16"
        assert processors.fastest_dtype({"amx_bf16", "amx_tile"}) == "bfloat16"

    def test_flags(self, tmp_path: Path) -> None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text("model name\t: Xeon\nflags\t\t: fpu amx_bf16 sse\n")
        assert processors.cpu_flags(tmp_path) == {"fpu", "amx_bf16", "sse"}
        assert processors.cpu_flags(tmp_path / "nowhere") == frozenset()

    @pytest.mark.parametrize(
        ("siblings", "quota", "asked", "expected"),
        [
            (["0,4", "1,5", "0,4", "1,5"], None, None, 2),
            ([None] * 4, None, None, 4),
            ([None] * 4, "max 100000", None, 4),
            ([None] * 4, "250000 100000", None, 3),
            ([None] * 4, "10000 100000", None, 1),
            ([None] * 4, None, "2", 2),
            ([None] * 4, None, "64", 4),
        ],
    )
    def test_cores(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        siblings: list[str | None],
        quota: str | None,
        asked: str | None,
        expected: int,
    ) -> None:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(len(siblings))))
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if asked:
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
        for processor, names in enumerate(siblings):
            if names:
                topology = tmp_path / f"sys/devices/system/cpu/cpu{processor}/topology"
                topology.mkdir(parents=True)
                (topology / "thread_siblings_list").write_text(f"{names}\n")
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
        group = tmp_path / "sys/fs/cgroup/job"
        group.mkdir(parents=True)
        if quota:
            (group / "cpu.max").write_text(f"{quota}\n")
        assert processors.cores(tmp_path) == expected

    def test_cores_of_control_groups_version_1(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text("4:cpu,cpuacct:/job\n3:memory:/job\n")
        for group, quota in (("cpu/job", "-1"), ("cpu", "300000")):
            folder = tmp_path / "sys/fs/cgroup" / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.cfs_quota_us").write_text(quota)
            (folder / "cpu.cfs_period_us").write_text("100000")
        assert processors.cores(tmp_path) == 3
