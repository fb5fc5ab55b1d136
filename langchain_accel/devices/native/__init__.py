"""Whole decoder steps in native code, for models like Llama and like GPT-NeoX."""
