"""Write a reader again with wider heads, which computes the same.

    python tools/reader/widen.py FOLDER INTO --head 112

Stacks of some vendors (optimum-habana 1.21, optimum-neuron 0.4.5) take a head's width for the model's divided by the
heads' number. What is added to queries, keys and values is 0; rotary pairs keep their speeds, as the base grows with
their number; queries grow by what scores are divided by.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.reader.train import export


def widen(model: LlamaForCausalLM, head: int) -> LlamaForCausalLM:
    """Return a model of the same numbers, with heads of `head` instead of fewer."""
    config = model.config
    before, heads = config.head_dim, config.num_attention_heads
    wide = config.to_dict()
    wide["head_dim"] = head
    wide["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": config.rope_parameters["rope_theta"] ** (head / before),
    }
    widened = LlamaForCausalLM(type(config)(**wide))
    widened.generation_config = model.generation_config

    def placed(weight: Tensor, halves: int, times: float = 1.0) -> Tensor:
        """Rows of each head, or of each of its rotary halves, with zeros below."""
        parts = weight.view(heads * halves, before // halves, -1)
        return times * torch.nn.functional.pad(parts, (0, 0, 0, (head - before) // halves)).flatten(0, 1)

    weights = dict(model.state_dict())
    for name, weight in weights.items():
        if name.endswith("q_proj.weight"):
            weights[name] = placed(weight, 2, (head / before) ** 0.5)
        elif name.endswith("k_proj.weight"):
            weights[name] = placed(weight, 2)
        elif name.endswith("v_proj.weight"):
            weights[name] = placed(weight, 1)
        elif name.endswith("o_proj.weight"):
            weights[name] = placed(weight.T, 1).T.contiguous()
    widened.load_state_dict(weights)
    return widened.eval()


def main() -> None:
    """Widen a folder's model into another folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("into", type=Path)
    parser.add_argument("--head", type=int, required=True, help="width of a head")
    args = parser.parse_args()
    model = LlamaForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
    shutil.copytree(args.folder, args.into)
    export(widen(model, args.head), args.into)


if __name__ == "__main__":
    main()
