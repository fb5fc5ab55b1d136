"""Matrix products and whole decoder steps for x86 processors, on numpy arrays; weights in 32, 16, 8 or 4 bits.

    linear = pack(weight, dtype="int8")       # [outputs, inputs] float32, or bfloat16 as uint16
    model = Model(Numbers(...), layers, ends, threads=4)
    logits = model.step(tokens, rows, columns, wanted)
    numbers = Parts(threads=4).linear(linear, tokens)  # one product, for a model whose steps another library runs

Kernels for AVX2, AVX512-VNNI and AMX are built in, and what the processor has is chosen when a model is made; the
environment variable LANGCHAIN_ACCEL_INSTRUCTIONS (`avx2`, `avx512vnni` or `amx`) overrides the choice. `amx_emulated`
computes AMX's registers in plain code, slowly: it is there for the tests.
"""

from __future__ import annotations

from langchain_accel_kernels._model import Ends, Layer, Model, Norm, Numbers
from langchain_accel_kernels._packing import PACKED, PackedLinear, instructions, pack, packed_bytes
from langchain_accel_kernels._parts import COLUMNS, Cache, Parts, linear

__all__ = [
    "COLUMNS",
    "PACKED",
    "Cache",
    "Ends",
    "Layer",
    "Model",
    "Norm",
    "Numbers",
    "PackedLinear",
    "Parts",
    "instructions",
    "linear",
    "pack",
    "packed_bytes",
]

__version__ = "0.1.0"
