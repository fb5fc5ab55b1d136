"""A stand-in for the AWS Neuron packages on a CPU: the real optimum-neuron runs on it unmodified.

    from tests.standins import neuron

    neuron.install("inf2.8xlarge", compile_cache_folder=folder)  # before anything of optimum.neuron is imported

Written from the public interface of the packages alone. What it keeps of their semantics:

- `ModelBuilder.trace` captures one graph per example input. Shapes and dtypes are burnt in; a call whose list of input
  shapes was not captured raises.
- Weights are not in the graph: the executor wants `nxd_model.initialize(one checkpoint per rank, start rank)`.
- KV caches are state of the device, aliased to outputs, zero at `initialize`, never seen by the host.
- One shard of weights per rank. All ranks run the same graph in lockstep, and collectives combine them.
- `model.pt` is a genuine TorchScript archive, written and read by torch's own functions.
- A compile cache on disk, with counters of compilations and hits.

It is stricter than hardware in one thing: an index out of range raises, where hardware clamps it and damages a
neighbour. Not modelled: speed, memory limits, numerics of the hardware, mixture-of-experts and training classes.
"""

from tests.standins.neuron.install import install
from tests.standins.neuron.machine import COMPILER_VERSION, COUNTERS, set_instance

__all__ = ["COMPILER_VERSION", "COUNTERS", "install", "set_instance"]
