"""Row steps for causal language models of transformers, in torch: the base that torch devices share.

A step packs the lanes of a call into one sequence, runs the model's own forward on it, and takes only attention
into its own hands: keys and values go to the arena, and each lane attends to its own row.
"""
