"""A stand-in for Intel's `habana_frameworks` on a CPU: the real optimum-habana runs on it unmodified.

    sys.path.insert(0, habana.SITE)     # or PYTHONPATH, for another process: like a folder of installed packages

Written from the public interface alone. What it keeps of the vendor's semantics:

- A real `hpu` device type: tensors report `hpu:0`, mixing them with host tensors raises (outside lazy mode, where the
  bridge takes host tensors), and their content reaches the host by a copy only, which is counted.
- Lazy mode (`PT_HPU_LAZY_MODE=1` when it is imported) gathers operations into recipes, which end at `mark_step` and at
  reads by the host; they are counted by content. In eager mode every operation is a recipe of its own.
- `wrap_in_hpu_graph` records the operations of one forward per shapes of tensors and values of everything else, and
  replays them: Python does not run again. A graph has its own input buffers and one set of output buffers, which the
  next replay overwrites; tensors that are no arguments are fixed by address; a read by the host during capture raises.
- `torch.compile(backend="hpu_backend")` counts one compilation per signature, and needs eager mode.
- Fused kernels in plain torch, and an `hccl` process group over gloo, whose collectives graphs record.

Not modelled: speed, memory limits, numerics of the hardware, FP8, the fork of DeepSpeed.
"""

from __future__ import annotations

from pathlib import Path

SITE = str(Path(__file__).parent)
"""Folder that makes the vendor's packages importable, and their metadata found, when it is on `sys.path`."""
