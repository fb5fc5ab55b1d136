"""Tensor parallelism of torch models: two ranks answer as one does."""
