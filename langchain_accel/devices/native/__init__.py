"""Whole decoder steps in native code, for models of Llama's family."""
