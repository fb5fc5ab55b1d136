"""Imported by the tokenizer of a model that no test uses; the real torchvision wants a GPU build of torch."""
