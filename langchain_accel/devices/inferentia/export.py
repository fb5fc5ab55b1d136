"""Compiles a model for Neuron cores, once, and saves with it everything that serving needs.

`python -m langchain_accel.devices.inferentia.export MODEL OUT` does it ahead of time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from langchain_accel.devices import folders
from langchain_accel.devices.base import Plan, Progress, silent
from langchain_accel.devices.inferentia import artefact, cache, configs, stack
from langchain_accel.devices.inferentia.artefact import Compiled
from langchain_accel.devices.inferentia.options import Options, translated
from langchain_accel.devices.inferentia.plan import INSTANCES, Instance, Layout, Numbers, check, check_cores
from langchain_accel.errors import AccelError, DeviceUnavailable, ModelRejected, PlanRejected

ONE_AT_A_TIME = threading.Lock()
"""Held while this process exports or loads: the library sets up process-wide state for both."""

_WORK_DIR = "BASE_COMPILE_WORK_DIR"
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def export(
    plan: Plan,
    options: Options,
    output: Path | None = None,
    *,
    push_to_hub: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Compile a model for a plan, unless that was done before, and return the folder that serves as `model=`.

    Works on a machine without Neuron devices, where `options.instance` names what to compile for. The first export
    of a shape takes minutes to an hour; a second one is found in the cache.

    Args:
        plan: what to compile; `plan.model` is a local folder.
        options: this device's own settings.
        output: where to put it; absent or empty. None leaves it in the cache.
        push_to_hub: id of a repository to upload the folder to, made if absent.
        progress: told about each stage.

    Raises:
        DeviceUnavailable: the Neuron packages are not installed.
        ModelRejected: the model cannot be used.
        PlanRejected: the plan does not load, does not fit, or `output` is in use.
    """
    plan, options = translated(plan, options)
    if output is not None:
        folders.refuse_used(output)
    named = INSTANCES.get(options.instance or "")
    stack.require(named.target if named else None)
    folder = prepare(plan, options, stack.planned(options.instance, serve=False), progress, output)
    if push_to_hub is not None:
        progress(f"uploading to {push_to_hub}", 0, 1)
        folders.upload(folder, push_to_hub)
        progress(f"uploading to {push_to_hub}", 1, 1)
    return folder


def prepare(plan: Plan, options: Options, instance: Instance, progress: Progress, output: Path | None = None) -> Path:
    """Return an exported model for this plan: the model folder itself, an entry of the cache, or a new one.

    Raises:
        ModelRejected: the model cannot be used.
        PlanRejected: the plan does not load or fit, or it must be compiled and `options.export` is False.
    """
    source = Path(plan.model)
    if artefact.is_artefact(source):
        check_cores(plan.tensor_parallel_size, instance)
        asked = compiled_for(plan, instance, artefact.read(source).get("torch_dtype", "bfloat16"))
        artefact.check(source, asked)
        return source
    asked = compiled_for(plan, instance, "bfloat16")
    config = configs.read_config(source, plan.max_len)
    layout = Layout(plan.rows, plan.max_len, plan.tensor_parallel_size, _ITEM_BYTES[asked.torch_dtype])
    check(Numbers.of(config.to_dict()), layout, instance, options.core_share)
    if not any(source.glob("*.safetensors")):
        msg = f"{source} has no safetensors weights; convert them with model.save_pretrained(folder)"
        raise ModelRejected(msg)

    progress("reading the model", 0, 1)
    name = cache.key({"layout": 1, "model": cache.digests(source), "compiled": asdict(asked)})
    progress("reading the model", 1, 1)
    root = cache.folder(options.cache_dir)
    known = root / name
    if output is not None:
        folders.make_whole(
            output,
            lambda folder: (
                _copy(known, folder) if known.is_dir() else _compile(source, config, asked, folder, progress)
            ),
        )
        return output
    if not options.export and not known.is_dir():
        msg = (
            f"nothing was exported for this plan, and export=False forbids to do it now (a compilation can take an "
            f"hour); run: {artefact.command(plan.model, asked)}, and give OUT as the model"
        )
        raise PlanRejected(msg)
    waited, stage = [], "waiting for another process that exports this model"

    def waiting() -> None:
        waited.append(stage)
        progress(stage, 0, 1)

    try:
        folder = cache.find_or_make(
            root, name, lambda folder: _compile(source, config, asked, folder, progress), waiting
        )
    except OSError as error:
        msg = f"exported models are kept in {root}, which cannot be used: {error}; set cache_dir to another folder"
        raise PlanRejected(msg) from error
    if waited:
        progress(stage, 1, 1)
    return folder


def compiled_for(plan: Plan, instance: Instance, dtype: str) -> Compiled:
    """Return what a plan is compiled for; `dtype` is what `"auto"` stands for."""
    return Compiled(
        batch_size=plan.rows,
        sequence_length=plan.max_len,
        max_context_length=plan.max_len,
        tp_degree=plan.tensor_parallel_size,
        torch_dtype=dtype if plan.dtype == "auto" else plan.dtype,
        target=instance.target,
        optimum_neuron_version=stack.library(),
        neuronxcc_version=stack.compiler(),
        continuous_batching=plan.rows > 1,
    )


def _copy(known: Path, folder: Path) -> None:
    shutil.copytree(known, folder, dirs_exist_ok=True)


def _compile(source: Path, config: Any, asked: Compiled, folder: Path, progress: Progress) -> None:
    """Fill an empty folder with graphs, one shard of weights per core, and the files beside them."""
    import torch
    from optimum.neuron import NeuronModelForCausalLM

    config.dtype = getattr(torch, asked.torch_dtype)
    stage = "compiling (minutes to an hour)"
    progress(stage, 0, 3)
    with ONE_AT_A_TIME, _no_hub(), tempfile.TemporaryDirectory() as scratch:
        # The library empties its work folder at every export: two processes with the default one destroy each other.
        before = os.environ.get(_WORK_DIR)
        os.environ[_WORK_DIR] = f"{scratch}/"
        try:
            neuron_config = NeuronModelForCausalLM.get_neuron_config(
                str(source),
                config=config,
                instance_type=asked.target,
                batch_size=asked.batch_size,
                sequence_length=asked.sequence_length,
                tensor_parallel_size=asked.tp_degree,
            )
            neuron_config.on_device_sampling = False  # penalties, grammars, seeds and logprobs need the logits
            model = NeuronModelForCausalLM.export(str(source), neuron_config, config=config)
            progress(stage, 1, 3)
            model.save_pretrained(str(folder))
            progress(stage, 2, 3)
        except AccelError:
            raise
        except Exception as error:
            msg = f"optimum-neuron could not export this model: {type(error).__name__}: {error}"
            raise ModelRejected(msg) from error
        finally:
            os.environ.pop(_WORK_DIR) if before is None else os.environ.update({_WORK_DIR: before})
    folders.copy_beside(source, folder)
    if found := artefact.differences(artefact.read(folder), asked):
        msg = f"optimum-neuron exported something else than was asked: {'; '.join(found)}"
        raise DeviceUnavailable(msg)
    progress(stage, 3, 3)


@contextmanager
def _no_hub() -> Iterator[None]:
    """While it compiles, the library looks for compiled graphs on the hub, for a local folder too; ours stays local."""
    from optimum.neuron.models.inference.backend import pretrained_model

    asking = pretrained_model.hub_neuronx_cache
    pretrained_model.hub_neuronx_cache = lambda **_: nullcontext()
    try:
        yield
    finally:
        pretrained_model.hub_neuronx_cache = asking


def main(arguments: list[str] | None = None) -> int:
    """Export from the command line; 0, or 1 with the error on standard error."""
    parser = argparse.ArgumentParser(prog="python -m langchain_accel.devices.inferentia.export", description=__doc__)
    parser.add_argument("model", type=Path, help="folder with config.json, safetensors weights and tokenizer")
    parser.add_argument("output", type=Path, help="folder to write; absent or empty")
    parser.add_argument("--rows", type=int, default=8, help="requests served at once (default: %(default)s)")
    parser.add_argument("--max-len", type=int, default=2048, help="tokens per request (default: %(default)s)")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="NeuronCores (default: %(default)s)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--instance", help="instance type to compile for (default: this machine)")
    parser.add_argument("--push-to-hub", metavar="ID", help="upload the folder to this repository")
    asked = parser.parse_args(arguments)

    def say(stage: str, done: int, total: int) -> None:
        print(f"{stage}: {done} of {total}", file=sys.stderr)  # noqa: T201 - this is the command line

    plan = Plan(
        "inferentia",
        str(asked.model),
        rows=asked.rows,
        max_len=asked.max_len,
        dtype=asked.dtype,
        tensor_parallel_size=asked.tensor_parallel_size,
    )
    try:
        folder = export(
            plan, Options(instance=asked.instance), asked.output, push_to_hub=asked.push_to_hub, progress=say
        )
    except AccelError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(folder)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
