"""Will a plan fit into this machine's memory? Arithmetic on file headers and config numbers; no weights are read."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from langchain_accel.errors import ModelRejected, PlanRejected

_GIB = 2**30
_LENGTH = struct.Struct("<Q")  # a safetensors file begins with the length of its JSON header
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes that a plan takes of one card's memory, or of the machine's for one rank.

    Attributes:
        weights: of the weights.
        column: of one KV-cache column of one row.
        working: of a step's own tensors.
    """

    weights: int
    column: int
    working: int

    def total(self, rows: int, max_len: int) -> int:
        """Return all of it, with a KV cache of `rows` x `max_len` columns."""
        return self.weights + self.working + rows * max_len * self.column


def weight_bytes(folder: Path, item_bytes: int) -> int:
    """Return the bytes of a folder's weights once its floating-point tensors are cast to `item_bytes` each.

    Raises:
        ModelRejected: there are no safetensors files, one that the index names is missing, or one is cut short.
    """
    total = 0
    for path in weight_files(folder):
        for tensor in _header(path).values():
            kind = tensor["dtype"]
            size = item_bytes if kind in _FLOATS else _ITEM_BYTES.get(kind, 1)
            total += prod(tensor["shape"]) * size
    return total


def held_dtype(folder: Path) -> str:
    """Return the dtype of most of a folder's weights, `"float32"`, `"float16"` or `"bfloat16"`.

    Raises:
        ModelRejected: the files cannot be used, or hold none of these.
    """
    held: dict[str, int] = {}
    for path in weight_files(folder):
        for tensor in _header(path).values():
            held[tensor["dtype"]] = held.get(tensor["dtype"], 0) + prod(tensor["shape"])
    most = max(held, key=lambda kind: held[kind], default="")
    if most not in _DTYPES:
        msg = f"{folder} holds weights as {most or 'nothing'}; give a checkpoint in {', '.join(_DTYPES.values())}"
        raise ModelRejected(msg)
    return _DTYPES[most]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder.

    Raises:
        ModelRejected: there are none, or one that the index names is missing.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            msg = f"{index} is not an index of safetensors files: {error}"
            raise ModelRejected(msg) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            msg = f"{folder} lacks {', '.join(missing)}, named by {_INDEX}; fetch the missing files"
            raise ModelRejected(msg)
        return [folder / name for name in names]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    pickled = any(folder.glob("*.bin"))
    hint = (
        "its .bin files run code when read and are not opened; convert them with model.save_pretrained(folder)"
        if pickled
        else "fetch model.safetensors, or all the shards and their index"
    )
    msg = f"{folder} has no {_SINGLE} and no {_INDEX}; {hint}"
    raise ModelRejected(msg)


def _header(path: Path) -> dict[str, Any]:
    """Read a safetensors header (https://huggingface.co/docs/safetensors/index#format) and check the file's length.

    Raises:
        ModelRejected: the file is no safetensors file, or shorter or longer than its header says.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > size:
                msg = f"header of {length} bytes in a file of {size}"
                raise ValueError(msg)  # noqa: TRY301
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = _LENGTH.size + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        msg = f"{path} is not a safetensors file ({error}); fetch it again"
        raise ModelRejected(msg) from error
    if end != size:
        msg = f"{path} has {size} bytes where its header asks for {end}: it was cut short or damaged; fetch it again"
        raise ModelRejected(msg)
    return header


def first(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """Return the first of several config entries that is set: families name the same number differently."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def head_counts(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return attention heads and key/value heads of a config; zeros where it hides them."""
    heads = first(config, "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", default=0)
    kv_heads = first(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        kv_heads = 1
    return heads, kv_heads


def column_bytes(config: Mapping[str, Any], item_bytes: int, ranks: int = 1) -> int:
    """Return the bytes of one KV-cache column of one row: keys and values of every layer; 0 where a config hides them.

    Args:
        config: a model config as a mapping, with the defaults of its class filled in.
        item_bytes: bytes of one number.
        ranks: processes that share the key/value heads; the one head of multi-query attention stays whole on each.
    """
    layers = first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    heads, kv_heads = head_counts(config)
    hidden = first(config, "hidden_size", "n_embd", "d_model")
    if not (layers and heads and hidden):
        return 0
    width = first(config, "head_dim", default=hidden // heads)
    widths = 2 * width
    if config.get("kv_lora_rank"):  # multi-head latent attention keeps whole keys and values here
        kv_heads = heads
        widths = config["qk_nope_head_dim"] + config["qk_rope_head_dim"] + config["v_head_dim"]
    return int(layers * max(1, kv_heads // ranks) * widths * item_bytes)


def even_demand(config: Mapping[str, Any], *, weights: int, item_bytes: int, ranks: int, working: int = 0) -> Demand:
    """Return what each of several ranks takes that share weights and KV heads evenly.

    Args:
        config: as for `column_bytes`.
        weights: bytes of all weights.
        item_bytes: bytes of one number of the KV cache.
        ranks: how many they are.
        working: bytes of a step's own tensors, on each.
    """
    return Demand(weights // ranks, column_bytes(config, item_bytes, ranks), working)


def available(root: Path = Path("/")) -> int:
    """Return the bytes this process may still take: what the machine has free, within its control groups.

    Args:
        root: where `proc` and `sys` are.
    """
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for group in control_groups("memory", root):
        limit = _number(group, "memory.max", "memory.limit_in_bytes")
        used = _number(group, "memory.current", "memory.usage_in_bytes")
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used + _reclaimable(group)))
    return free


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of the control groups that hold this process, for one controller, innermost first.

    Both versions are looked up, https://docs.kernel.org/admin-guide/cgroup-v2.html. Inside a container the path in
    `/proc/self/cgroup` may lie outside what is mounted; its parents up to the mount are tried as well.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_dir():
                yield folder
            if folder == mount:
                break


def _number(group: Path, *names: str) -> int | None:
    """Read the first of a group's files that exists; None for no file or no limit."""
    for name in names:
        try:
            text = (group / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() else None
    return None


def _reclaimable(group: Path) -> int:
    """Bytes of file pages that a control group counts as used but gives up when asked."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    counts = dict(line.split()[:2] for line in lines)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def check_memory(*, weights: int, column: int, working: int, rows: int, max_len: int, free: int) -> None:
    """Refuse a plan that does not fit, and say what would.

    Args:
        weights: bytes of the weights.
        column: bytes of one KV-cache column of one row.
        working: bytes of a step's own tensors.
        rows: rows of the arena.
        max_len: columns of a row.
        free: bytes that may be taken.

    Raises:
        PlanRejected: with all the numbers, and the largest `rows` and `max_len` that fit.
    """
    cache = rows * max_len * column
    needed = weights + working + cache
    if needed <= free:
        return
    columns = max(0, free - weights - working) // max(column, 1)
    if columns // max_len:
        fits = f"set rows <= {columns // max_len}, or max_len <= {columns // rows}"
    elif columns // rows >= 2:  # noqa: PLR2004  a prompt and an answer token
        fits = f"set max_len <= {columns // rows}"
    elif columns >= 2:  # noqa: PLR2004
        fits = f"set rows=1 and max_len <= {columns}"
    else:
        fits = "no rows or max_len would fit: take a smaller model, a narrower dtype, or a machine with more memory"
    msg = (
        f"this plan needs {needed / _GIB:.2f} GiB of memory (weights {weights / _GIB:.2f}, KV cache of {rows} rows x "
        f"{max_len} columns {cache / _GIB:.2f}, working memory {working / _GIB:.2f}) and {free / _GIB:.2f} GiB are "
        f"free; {fits}"
    )
    raise PlanRejected(msg)
