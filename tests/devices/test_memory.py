"""Bytes from headers and config numbers, bytes that are free, and the plan that would fit."""

from __future__ import annotations

import json
import re
import struct
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from langchain_accel.devices.memory import available, check_memory, column_bytes, weight_bytes, weight_files
from langchain_accel.errors import ModelRejected, PlanRejected

GIB = 2**30


class TestWeights:
    def test_floats_are_cast_and_the_rest_is_not(self, tmp_path: Path) -> None:
        tensors = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16), "c": np.zeros(2, np.int64)}
        save_file(tensors, tmp_path / "model.safetensors")
        assert weight_bytes(tmp_path, 2) == (15 + 7) * 2 + 16
        assert weight_bytes(tmp_path, 4) == (15 + 7) * 4 + 16

    def test_shards(self, tmp_path: Path) -> None:
        for shard in ("one", "two"):
            save_file({shard: np.zeros(10, np.float32)}, tmp_path / f"{shard}.safetensors")
        index = {"weight_map": {"one": "one.safetensors", "two": "two.safetensors", "too": "two.safetensors"}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert weight_bytes(tmp_path, 2) == 40
        (tmp_path / "two.safetensors").unlink()
        with pytest.raises(ModelRejected, match=r"lacks two\.safetensors"):
            weight_bytes(tmp_path, 2)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
    def test_broken_index(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ModelRejected, match=r"index\.json is not an index"):
            weight_files(tmp_path)

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(ModelRejected, match=r"no model\.safetensors"):
            weight_files(tmp_path)
        (tmp_path / "pytorch_model.bin").touch()
        with pytest.raises(ModelRejected, match=r"\.bin files run code"):
            weight_files(tmp_path)

    @given(cut=st.integers(min_value=0, max_value=200))
    def test_no_cut_goes_unnoticed(self, tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
        path = tmp_path_factory.mktemp("cut") / "model.safetensors"
        save_file({"a": np.arange(40, dtype=np.float32)}, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: min(cut, len(whole) - 1)])
        with pytest.raises(ModelRejected, match="fetch it again"):
            weight_bytes(path.parent, 2)

    @pytest.mark.parametrize("header", [b"[]", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"\xff\xfe"])
    def test_no_safetensors_file(self, tmp_path: Path, header: bytes) -> None:
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ModelRejected, match="is not a safetensors file"):
            weight_bytes(tmp_path, 2)


class TestColumns:
    @pytest.mark.parametrize(
        ("config", "numbers"),
        [
            ({"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 6}, 2 * 6 * 16),
            (
                {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2},
                2 * 2 * 16,
            ),
            (
                {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "head_dim": 32},
                3 * 6 * 64,
            ),
            ({"n_layer": 2, "n_embd": 64, "n_head": 4}, 2 * 4 * 32),
            ({"n_layers": 2, "d_model": 64, "n_heads": 4}, 2 * 4 * 32),
            ({"n_layer": 2, "n_embd": 64, "n_head": 4, "multi_query": True}, 2 * 32),
            (
                {
                    "num_hidden_layers": 1,
                    "hidden_size": 64,
                    "num_attention_heads": 8,
                    "num_kv_heads": 2,
                    "multi_query": True,
                    "new_decoder_architecture": True,
                },
                2 * 16,
            ),
            ({"model_type": "of tomorrow"}, 0),
        ],
    )
    def test_numbers_per_column(self, config: dict[str, object], numbers: int) -> None:
        assert column_bytes(config, 2) == numbers * 2


def machine(root: Path, free: int, groups: str, files: dict[str, str]) -> Path:
    """Lay out the parts of `/proc` and `/sys` that are read."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 999999999 kB\nMemAvailable: {free // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class TestAvailable:
    def test_here(self) -> None:
        assert 0 < available() < 2**50

    def test_without_groups(self, tmp_path: Path) -> None:
        root = machine(tmp_path, 8 * GIB, "", {})
        assert available(root) == 8 * GIB
        (root / "proc/self/cgroup").unlink()
        assert available(root) == 8 * GIB

    @pytest.mark.parametrize(
        "files",
        [
            {"a/b/memory.max": "max\n", "a/b/memory.current": "1\n"},
            {"a/b/memory.max": f"{64 * GIB}\n", "a/b/memory.current": f"{GIB}\n"},
        ],
    )
    def test_a_group_that_does_not_limit(self, tmp_path: Path, files: dict[str, str]) -> None:
        assert available(machine(tmp_path, 8 * GIB, "0::/a/b\n", files)) == 8 * GIB

    def test_a_limit_and_one_of_a_parent(self, tmp_path: Path) -> None:
        files = {
            "a/b/memory.max": f"{6 * GIB}",
            "a/b/memory.current": f"{3 * GIB}",
            "a/b/memory.stat": f"anon {2 * GIB}\ninactive_file {GIB}\n",
        }
        root = machine(tmp_path, 8 * GIB, "0::/a/b\n", files)
        assert available(root) == 4 * GIB
        machine_files = {"a/memory.max": f"{5 * GIB}", "a/memory.current": f"{4 * GIB}"}
        for name, text in machine_files.items():
            (root / "sys/fs/cgroup" / name).write_text(text)
        assert available(root) == GIB

    def test_a_path_outside_the_container(self, tmp_path: Path) -> None:
        """The mount's own files are used where the path in `/proc/self/cgroup` is not mounted."""
        files = {"memory.max": f"{2 * GIB}", "memory.current": "0"}
        assert available(machine(tmp_path, 8 * GIB, "0::/kubepods/pod1\n", files)) == 2 * GIB

    def test_version_1(self, tmp_path: Path) -> None:
        files = {
            "memory/a/memory.limit_in_bytes": f"{4 * GIB}",
            "memory/a/memory.usage_in_bytes": f"{3 * GIB}",
            "memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": f"{5 * GIB}",
        }
        assert available(machine(tmp_path, 8 * GIB, "9:cpu:/a\n3:memory:/a\n", files)) == 2 * GIB

    def test_more_used_than_allowed(self, tmp_path: Path) -> None:
        files = {"memory.max": f"{GIB}", "memory.current": f"{2 * GIB}"}
        assert available(machine(tmp_path, 8 * GIB, "0::/\n", files)) == 0


class TestCheck:
    def test_fits(self) -> None:
        check_memory(weights=10, column=2, working=4, rows=3, max_len=5, free=10 + 4 + 30)

    def test_numbers_are_named(self) -> None:
        with pytest.raises(PlanRejected) as caught:
            check_memory(weights=3 * GIB, column=2**20, working=0, rows=8, max_len=1024, free=5 * GIB)
        for part in ("11.00 GiB", "weights 3.00", "8 rows x 1024 columns 8.00", "5.00 GiB are free", "rows <= 2"):
            assert part in str(caught.value)
        assert "max_len <= 256" in str(caught.value)

    def test_nothing_fits(self) -> None:
        with pytest.raises(PlanRejected, match="smaller model"):
            check_memory(weights=3 * GIB, column=2**20, working=0, rows=8, max_len=1024, free=2 * GIB)

    @given(
        weights=st.integers(0, 1000),
        column=st.integers(1, 50),
        working=st.integers(0, 100),
        rows=st.integers(1, 20),
        max_len=st.integers(2, 200),
        free=st.integers(0, 5000),
    )
    def test_what_is_offered_is_the_most_that_fits(
        self, weights: int, column: int, working: int, rows: int, max_len: int, free: int
    ) -> None:
        """Mutant: the working memory is forgotten in the offer."""
        numbers = {"weights": weights, "column": column, "working": working, "free": free}
        try:
            check_memory(**numbers, rows=rows, max_len=max_len)
        except PlanRejected as rejected:
            message = str(rejected)
        else:
            assert weights + working + prod((rows, max_len, column)) <= free
            return
        for offer in re.findall(r"rows(?: <=|=) ?(\d+)(?: and max_len <= (\d+))?", message):
            fitting = {"rows": int(offer[0]), "max_len": int(offer[1] or max_len)}
            check_memory(**numbers, **fitting)
        if found := re.search(r"(?:set|or) max_len <= (\d+)", message):
            check_memory(**numbers, rows=rows, max_len=int(found[1]))
            with pytest.raises(PlanRejected):
                check_memory(**numbers, rows=rows, max_len=int(found[1]) + 1)
