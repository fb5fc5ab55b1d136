"""Whole decoder steps in native code, for models of Llama's family with 8-bit weights."""
