"""A process of its own in which mindformers' `generate()` answers prompts on the model that this package loads.

python -m tests.hardware.ascend_oracle '{"model": ..., "target": ..., "tokens": ..., "prompts": [...]}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from langchain_accel.devices import ascend
from langchain_accel.devices.base import Plan


def _writing_nothing_negative(forward: Any, strips: Any) -> Any:
    """Ascend's kernel skips the slots of padding, which are -1; the CPU's stand-in knows none that are not there."""

    def called(*arguments: Any, slot_mapping: Any = None, **keywords: Any) -> Any:
        slots = np.where(slot_mapping < 0, strips.pool * strips.block_size - 1, slot_mapping).astype(np.int32)
        return forward(*arguments, slot_mapping=slots, **keywords)

    return called


def main() -> None:
    """Answer greedily, one prompt after the other, and print all tokens as one line of JSON."""
    asked = json.loads(sys.argv[1])
    options = ascend.Options(target=asked["target"], compile_cache=False)
    device: Any = ascend.load(
        Plan("ascend", asked["model"], rows=4, max_len=asked["max_len"], options=options), options
    )
    model = device._network._model
    if hasattr(device._network, "_use"):  # a Llama: without pieces of prompts, and away from the phases in use
        device._network._use("oracle", chunks=False)
        model._set_network_phase("oracle")
    if asked["target"] == "cpu":
        import mindspore

        model.argmax = mindspore.ops.argmax
        model.forward = _writing_nothing_negative(model.forward, device._strips)
    answers = [
        model.generate([prompt], do_sample=False, max_new_tokens=asked["tokens"], eos_token_id=[-1], pad_token_id=0)[0][
            len(prompt) :
        ]
        for prompt in asked["prompts"]
    ]
    print("\nORACLE " + json.dumps([[int(token) for token in answer] for answer in answers]), flush=True)


if __name__ == "__main__":
    main()
