"""From a model folder to a Gaudi device, by way of optimum-habana."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from langchain_accel.devices.base import Device, Plan, Progress, Rank
from langchain_accel.devices.gaudi import fp8, spec, steps, verified
from langchain_accel.devices.gaudi.arena import Arena
from langchain_accel.devices.gaudi.checks import check_fits, dtype_of, read_config
from langchain_accel.devices.gaudi.device import GaudiRows
from langchain_accel.devices.gaudi.options import Options
from langchain_accel.devices.torch_rows import loading
from langchain_accel.errors import ModelRejected

_PROBE = 17  # columns of a first prefill: a number that no other axis of a KV cache has


def open_optimum(plan: Plan, rank: Rank, hpu: Any, progress: Progress) -> Device:
    """Load a model that transformers, taken over by optimum-habana, finds the class for.

    Args:
        plan: what to load, options included.
        rank: which of its ranks this process is.
        hpu: torch's module of that name.
        progress: told about loading.

    Raises:
        ModelRejected: the model cannot be used, or was not verified.
        PlanRejected: it does not fit.
    """
    options: Options = plan.options
    folder, dtype = Path(plan.model), dtype_of(plan)
    config = read_config(plan)
    verified.check(config, plan.max_len, allow_unverified=options.allow_unverified)
    check_fits(plan, config, dtype, hpu)
    if options.quant_config is not None:
        from habana_frameworks.torch import core

        core.hpu_set_env()  # before anything is on the device
    progress("loading weights", 0, 1)
    with ExitStack() as opened:
        if rank.size == 1:
            model = loading.load_model(
                folder,
                config,
                dtype,
                trust_remote_code=plan.trust_remote_code,
                attn_implementation="eager",  # with others, some models read their mask on the host
            ).to("hpu")
        else:
            from langchain_accel.devices.gaudi.sharding import load_share

            model = load_share(plan, config, dtype, rank, opened)
        _check_class(model)
        if options.quant_config is not None:
            model = fp8.quantised(model, options.quant_config)
        progress("loading weights", 1, 1)
        device = _open(model, plan, config.vocab_size, progress)
        device.on_close(opened.pop_all().close)
    return device


def _check_class(model: Any) -> None:
    """Refuse a class that is transformers' own: optimum-habana's steps would be computed wrongly by it.

    Raises:
        ModelRejected: says how that comes about.
    """
    if not type(model).__module__.startswith("optimum.habana."):
        msg = (
            f"{type(model).__name__} is transformers' own class: optimum-habana has none for this model type, or the "
            "class was in use in this process before; load it in a process of its own, as the model classes do"
        )
        raise ModelRejected(msg)


def _open(model: Any, plan: Plan, vocab_size: int, progress: Progress) -> GaudiRows:
    """Make the arena after what the model itself returns, then get the steps ready for the mode."""
    options: Options = plan.options
    settings = steps.keywords(
        model,
        lazy=options.runs == "lazy",
        flash_attention=options.flash_attention,
        softmax_bf16=options.softmax_bf16,
    )
    serves = spec(plan, options, vocab_size)
    prefill = steps.Prefill(model, settings)
    try:
        with torch.no_grad():
            ones = torch.ones((1, _PROBE), dtype=torch.long, device="hpu")
            _, past = prefill.run(ones, ones, ones.cumsum(-1) - 1)
            arena = Arena(past, _PROBE, plan.rows, plan.max_len)
            decode, shift = steps.Decode(model, settings, arena), steps.Shift(arena)
            # Once before anything is captured: tables of positions grow to their size here.
            each = torch.ones((plan.rows, 1), dtype=torch.long, device="hpu")
            decode(each, torch.ones((plan.rows, plan.max_len), dtype=torch.long, device="hpu"), each, each[0, 0])
    except ModelRejected:
        raise
    except Exception as error:
        msg = f"{type(model).__name__} does not run as row steps: {type(error).__name__}: {error}"
        raise ModelRejected(msg) from error
    prefill.arena = arena
    if options.runs == "compile":
        _compile(model)
    run = _captured if options.runs == "lazy" else _as_it_is
    device = GaudiRows(
        _as_it_is(prefill) if options.limit_hpu_graphs else run(prefill), run(decode), run(shift), serves
    )
    device.warm(progress)
    return device


def _captured(step: torch.nn.Module) -> Callable[..., Any]:
    from habana_frameworks.torch.hpu import wrap_in_hpu_graph

    wrapped: Callable[..., Any] = wrap_in_hpu_graph(step)
    return wrapped


def _as_it_is(step: Callable[..., Any]) -> Callable[..., Any]:
    return step


def _compile(model: Any) -> None:
    """Compile the decoder, as optimum-habana's own examples do."""
    options = {"force_static_compile": True, "keep_input_mutations": True}
    decoder = torch.compile(model.base_model, backend="hpu_backend", options=options)
    setattr(model, model.base_model_prefix, decoder)
