"""The Xeon device and its peers, measured side by side on one machine in one run.

`setup` makes a virtual environment for each peer, `run` measures, `table` and `plot` show what came out. Each peer
answers in a process of its own (`peers/`), so that their pins, threads and allocators do not meet.
"""
