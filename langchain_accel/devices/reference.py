"""The reference device: a slow, obvious numpy transformer that defines the contract of the row step.

Every other device must give the same logits. This one also says no where a real device would silently go wrong: a
shape that was not declared, a column that was never written, a second thread. Computed in float64; forgotten columns
and logits kept past their lifetime hold NaN, so that a wrong read shows at once. Per row it knows one number:

    column    0                 filled[row]           max_len
              | written, readable |  NaN: never read  |

A write at `start...end - 1` needs `start <= filled[row]`, attends `0...end - 1`, and sets `filled[row] = end`: columns
behind a write belong to a past that is no longer there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from langchain_accel.devices.base import Device, IntArray, Logits, Placement, Plan, Progress, Rank, Spec, silent
from langchain_accel.errors import AccelError, ModelRejected, PlanRejected, UndeclaredShape

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
ARCHITECTURES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True)
class Options:
    """What the device declares. The defaults switch everything on; a test takes away what another device lacks.

    Attributes:
        prefill_shapes: declared `(batch, length)` pairs; None: a few that suit the plan.
        decode_shapes: declared decode (and verify) batches; None: powers of two up to the plan's rows.
        attended_lens: declared attended lengths; None: a few up to the plan's max_len; `()`: none, read what is filled.
        resumes: accept prefills that start past column 0.
        copies: offer `copy_row`.
        drafts: longest `verify` in columns per row; 0: no `verify`.
    """

    prefill_shapes: tuple[tuple[int, int], ...] | None = None
    decode_shapes: tuple[int, ...] | None = None
    attended_lens: tuple[int, ...] | None = None
    resumes: bool = True
    copies: bool = True
    drafts: int = 4


def placement(plan: Plan, options: Options) -> Placement:
    """Return a process for each rank asked for. Sharing nothing out, they serve to test what holds ranks together."""
    del options
    return Placement(ranks=plan.tensor_parallel_size)


def load(plan: Plan, options: Options, rank: Rank, progress: Progress = silent) -> Device:
    """Read a checkpoint folder into a device owned by the calling thread. Every rank holds and computes all of it.

    Raises:
        ModelRejected: the folder, a file or a tensor is missing or broken, or the architecture is not served.
        PlanRejected: the plan asks for bfloat16, or the options declare shapes that no scheduler could serve.
    """
    del rank  # A group of ranks gives the same logits as one: nothing to share out in a definition.
    if plan.dtype == "bfloat16":
        msg = "the reference device computes in float64, got dtype='bfloat16'; use dtype='auto'"
        raise PlanRejected(msg)
    try:
        model = _Model(Path(plan.model), progress)
        device = _Reference(model, _declare(plan, options, model.vocab_size))
        # One token through every tensor: files that do not fit together show here, not in a request.
        device.prefill(np.zeros(device.spec.prefill_shapes[0], np.int64), np.array([1]), np.array([0]), np.array([0]))
    except AccelError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"the files in {plan.model} do not make a whole {' or '.join(ARCHITECTURES)} model: {error!r}"
        raise ModelRejected(msg) from error
    device.forget(0)
    return device


class _Reference:
    """The device: an arena of keys and values `[layers, rows, max_len, kv_heads, head_dim]` and its strict rules."""

    def __init__(self, model: _Model, spec: Spec) -> None:
        self.spec = spec
        self.model = model
        self.keys, self.values = np.full(
            (2, model.layers, spec.rows, spec.max_len, model.kv_heads, model.head_dim), np.nan
        )
        self.filled = np.zeros(spec.rows, np.int64)
        self._owner = threading.get_ident()
        self._closed = False
        self._lent: Logits = np.zeros(0, np.float32)
        self._room: Logits | None = None

    def prefill(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.prefill`. Raises `UndeclaredShape`, and `ValueError` where the caller broke the contract."""
        _declared("prefill", tokens, self.spec.prefill_shapes)
        _require(self.spec.resumes or not starts.any(), "a prefill past column 0, but this device never resumes")
        hidden = self._step(tokens, lengths, starts, rows)
        return self._lend(hidden[np.arange(len(rows)), lengths - 1])

    def decode(self, tokens: IntArray, positions: IntArray, rows: IntArray) -> Logits:
        """See `Device.decode`. Raises `UndeclaredShape`, and `ValueError` where the caller broke the contract."""
        _declared("decode", tokens, [(batch,) for batch in self.spec.decode_shapes])
        return self._lend(self._step(tokens[:, None], np.ones_like(tokens), positions, rows)[:, 0])

    def verify(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Logits:
        """See `Device.verify`; any declared decode batch, up to `spec.drafts` columns. Raises as `decode`."""
        lengths_served = range(1, self.spec.drafts + 1)
        _declared("verify", tokens, [(batch, length) for batch in self.spec.decode_shapes for length in lengths_served])
        return self._lend(self._step(tokens, lengths, starts, rows))

    def copy_row(self, source: int, target: int, length: int) -> None:
        """See `Device.copy_row`. Raises `ValueError` where the caller broke the contract."""
        self._enter()
        _require(self.spec.copies, "copy_row on a device without copies")
        _require(source != target and {source, target} <= set(range(self.spec.rows)), f"copy {source} to {target}")
        _require(0 < length <= self.filled[source], f"copy {length} columns, {self.filled[source]} are written")
        for arena in (self.keys, self.values):
            arena[:, target, :length] = arena[:, source, :length]
        self._fill(target, length)

    def forget(self, row: int) -> None:
        """See `Device.forget`. Raises `ValueError` where the caller broke the contract."""
        self._enter()
        _require(0 <= row < self.spec.rows, f"row {row} of {self.spec.rows}")
        self._fill(row, 0)

    def close(self) -> None:
        """See `Device.close`. Raises `ValueError` when another thread closes first."""
        if not self._closed:
            self._enter()
            self._closed = True
            del self.model, self.keys, self.values

    def _step(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> Array:
        """Write and attend `[B, L]` tokens, return `[B, L, hidden]`. Tokens past `lengths` are computed and dropped."""
        self._enter()
        self._check(tokens, lengths, starts, rows)
        ends = starts + lengths
        positions = starts[:, None] + np.arange(tokens.shape[1])
        # A compiled graph reads a declared number of columns and masks; so does this device where lengths are declared.
        columns = np.arange(self.spec.attended(int(ends.max())) or int(ends.max()))
        seen = self._seen(columns, positions, ends)
        lane, token = np.nonzero(np.arange(tokens.shape[1]) < lengths[:, None])  # the real tokens, padding left out

        x = self.model.embed[tokens]
        for layer, keys, values in zip(self.model.blocks, self.keys, self.values, strict=True):
            query, key, value = self.model.project(layer, x, positions)
            keys[rows[lane], positions[lane, token]] = key[lane, token]
            values[rows[lane], positions[lane, token]] = value[lane, token]
            attended = _attend(query, keys[rows, : len(columns)], values[rows, : len(columns)], seen)
            x = self.model.finish(layer, x, attended)
        for row, end in zip(rows, ends, strict=True):
            self._fill(int(row), int(end))
        return x

    def _seen(self, columns: IntArray, positions: IntArray, ends: IntArray) -> BoolArray:
        """Return `[B, L, C]`: a token attends its own past, of which its lane has written the columns before `ends`."""
        return (columns <= positions[:, :, None]) & (columns < ends[:, None, None])

    def _check(self, tokens: IntArray, lengths: IntArray, starts: IntArray, rows: IntArray) -> None:
        """Hold the caller to the contract, lane by lane."""
        spec, (batch, longest) = self.spec, tokens.shape
        for array in (lengths, starts, rows):
            _require(array.shape == (batch,), f"{batch} lanes, but lengths, starts or rows of shape {array.shape}")
        for array in (tokens, lengths, starts, rows):
            _require(array.dtype == np.int64, f"expected int64 arrays, got {array.dtype}")
        low, high = tokens.min(), tokens.max()
        _require(low >= 0 and high < spec.vocab_size, f"tokens {low}...{high} of a vocabulary of {spec.vocab_size}")
        _require(len(set(rows.tolist())) == batch, f"a row appears twice in {rows.tolist()}")
        for row, start, length in zip(rows.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            _require(0 <= row < spec.rows, f"row {row} of {spec.rows}")
            _require(1 <= length <= longest, f"{length} real tokens in a lane of {longest}")
            _require(start >= 0 and start + length <= spec.max_len, f"columns {start} + {length} of {spec.max_len}")
            _require(start <= self.filled[row], f"row {row} starts at {start}, but has {self.filled[row]} columns")

    def _enter(self) -> None:
        """Begin a call: open, on the owner's thread; logits lent by the call before are no longer valid."""
        _require(not self._closed, "the device is closed")
        _require(threading.get_ident() == self._owner, "called from another thread than the one that loaded the device")
        self._lent.fill(np.nan)

    def logits_into(self, room: Logits) -> None:
        """Compute logits into `room`, flat and as large as the spec's largest, instead of into arrays of their own."""
        self._room = room

    def _lend(self, hidden: Array) -> Logits:
        logits = self.model.logits(hidden)
        self._lent = np.empty(logits.shape, np.float32) if self._room is None else _first(self._room, logits.shape)
        np.copyto(self._lent, logits, casting="same_kind")
        return self._lent

    def _fill(self, row: int, end: int) -> None:
        """Row `row` now holds columns `0...end - 1`; what an older past left behind them is poisoned."""
        self.keys[:, row, end : self.filled[row]] = np.nan
        self.values[:, row, end : self.filled[row]] = np.nan
        self.filled[row] = end


class _Model:
    """The weights in float64, and everything of a decoder block that does not touch the arena."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        config, rope = _read_config(folder)
        self.vocab_size, self.layers = int(config["vocab_size"]), int(config["num_hidden_layers"])
        self.heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)
        self.head_dim = int(config.get("head_dim") or hidden // self.heads)
        self.epsilon = float(config.get("rms_norm_eps", 1e-6))
        self.frequencies = float(rope["rope_theta"]) ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        tensors = _read_tensors(folder, progress)
        head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
        self.embed = tensors["model.embed_tokens.weight"].reshape(self.vocab_size, hidden)
        self.norm, self.head = tensors["model.norm.weight"], tensors[head].reshape(self.vocab_size, hidden)
        self.blocks = [
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in (f"model.layers.{layer}." for layer in range(self.layers))
        ]

    def project(self, block: dict[str, Array], x: Array, positions: IntArray) -> tuple[Array, Array, Array]:
        """Return query, key and value `[B, L, heads or kv_heads, head_dim]` of `x` `[B, L, hidden]`."""
        x = self.normed(x, block["input_layernorm.weight"])
        query, key, value = (
            _linear(block, f"self_attn.{name}_proj", x).reshape(*x.shape[:2], heads, self.head_dim)
            for name, heads in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        )
        if "self_attn.q_norm.weight" in block:  # qwen3
            query, key = (self.normed(y, block[f"self_attn.{n}_norm.weight"]) for y, n in ((query, "q"), (key, "k")))
        return self._rotated(query, positions), self._rotated(key, positions), value

    def finish(self, block: dict[str, Array], x: Array, attended: Array) -> Array:
        """Return `x` after the rest of the block: the output projection and the feed-forward layer."""
        x = x + _linear(block, "self_attn.o_proj", attended)
        y = self.normed(x, block["post_attention_layernorm.weight"])
        gate = _linear(block, "mlp.gate_proj", y)
        return x + _linear(block, "mlp.down_proj", gate / (1 + np.exp(-gate)) * _linear(block, "mlp.up_proj", y))

    def logits(self, hidden: Array) -> Array:
        """Return `[..., vocab_size]` logits of `[..., hidden]`."""
        logits: Array = self.normed(hidden, self.norm) @ self.head.T
        return logits

    def normed(self, x: Array, weight: Array) -> Array:
        """Return `x` scaled to a root mean square of one, times `weight`."""
        scaled: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * weight
        return scaled

    def _rotated(self, x: Array, positions: IntArray) -> Array:
        """Turn each pair of `[B, L, heads, head_dim]` by its position: the rotary embedding."""
        angles = (positions[..., None] * self.frequencies)[:, :, None]
        first, second = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(query: Array, keys: Array, values: Array, seen: BoolArray) -> Array:
    """Attend `[B, L, heads, head_dim]` to `[B, C, kv_heads, head_dim]` where `seen` `[B, L, C]` allows it."""
    batch, length, heads, width = query.shape
    kv_heads = keys.shape[2]
    # A column that no token sees may hold NaN, and 0 * NaN is NaN: masking the scores alone would not keep it out.
    unseen = ~np.any(seen, axis=1)  # [B, C]
    keys[unseen], values[unseen] = 0.0, 0.0
    query = query.reshape(batch, length, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    scores = query @ keys.transpose(0, 2, 3, 1)[:, :, None] / np.sqrt(width)  # [B, kv_heads, group, L, C]
    scores = np.where(seen[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = weights @ values.transpose(0, 2, 1, 3)[:, :, None]
    attended: Array = mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads * width)
    return attended


def _first(room: Logits, shape: tuple[int, ...]) -> Logits:
    return room[: int(np.prod(shape))].reshape(shape)


def _linear(block: dict[str, Array], name: str, x: Array) -> Array:
    y: Array = x @ block[f"{name}.weight"].T + block.get(f"{name}.bias", 0.0)
    return y


def _declare(plan: Plan, options: Options, vocab_size: int) -> Spec:
    """Fill in what the options leave open. Without resumes a prompt must fit one prefill, so one shape is as long."""
    lengths = _ladder(8, min(plan.max_len, 128) if options.resumes else plan.max_len, 4)
    shapes = tuple((batch, length) for batch in sorted({1, min(plan.rows, 4)}) for length in lengths)
    return Spec(
        rows=plan.rows,
        max_len=plan.max_len,
        vocab_size=vocab_size,
        prefill_shapes=shapes if options.prefill_shapes is None else options.prefill_shapes,
        decode_shapes=_ladder(1, plan.rows, 2) if options.decode_shapes is None else options.decode_shapes,
        attended_lens=_ladder(32, plan.max_len, 4) if options.attended_lens is None else options.attended_lens,
        resumes=options.resumes,
        copies=options.copies,
        drafts=options.drafts,
    )


def _ladder(first: int, last: int, factor: int) -> tuple[int, ...]:
    """Return `first`, `first * factor`, ... below `last`, and `last`."""
    return (first, *_ladder(first * factor, last, factor)) if first < last else (last,)


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json and what it says about the rotary embedding; refuse what would be computed wrongly."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        msg = f"no readable config.json in {folder}: {error}"
        raise ModelRejected(msg) from error
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for name, asked, served in (
        ("model_type", config.get("model_type"), ARCHITECTURES),
        ("hidden_act", config.get("hidden_act", "silu"), ("silu",)),
        ("use_sliding_window", bool(config.get("use_sliding_window")), (False,)),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), ("default",)),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,)),
    ):
        if asked not in served:
            msg = f"{folder} has {name} {asked!r}; the reference device serves only {', '.join(map(str, served))}"
            raise ModelRejected(msg)
    return config, {"rope_theta": config.get("rope_theta", 10000.0), **rope}


def _read_tensors(folder: Path, progress: Progress) -> dict[str, Array]:
    """Read every safetensors file of `folder` into float64."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        msg = f"no *.safetensors file in {folder}"
        raise ModelRejected(msg)
    deserialize: Any = safetensors.deserialize
    tensors: dict[str, Array] = {}
    for done, file in enumerate(files):
        progress("reading weights", done, len(files))
        try:
            stored = deserialize(file.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            msg = f"{file} cannot be read as safetensors: {error}"
            raise ModelRejected(msg) from error
        for name, tensor in stored:
            tensors[name] = _widened(name, tensor["dtype"], tensor["data"]).reshape(tensor["shape"])
    progress("reading weights", len(files), len(files))
    return tensors


def _widened(name: str, dtype: str, data: bytes) -> Array:
    """Return stored bytes as float64. bfloat16 is the upper half of a float32; numpy has no name for it."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype not in ("F16", "F32", "F64"):
        msg = f"tensor {name} is stored as {dtype}; only F16, BF16, F32 and F64 are served"
        raise ModelRejected(msg)
    return np.frombuffer(data, f"f{int(dtype[1:]) // 8}").astype(np.float64)


def _declared(step: str, tokens: IntArray, shapes: Sequence[tuple[int, ...]]) -> None:
    if tokens.shape not in shapes:
        msg = f"{step} of shape {tokens.shape} was never declared; declared are {shapes}"
        raise UndeclaredShape(msg)


def _require(holds: bool, broken: str) -> None:  # noqa: FBT001 - reads like an assert
    if not holds:
        msg = f"row step contract broken: {broken}"
        raise ValueError(msg)
