"""torch's threads for one calling thread, without touching those of the process's other threads."""

from __future__ import annotations

import threading

import torch


def use_threads(count: int) -> int:
    """Let torch run `count` threads for calls from this thread, and return how many it ran before.

    OpenMP keeps the number per calling thread, but `torch.set_num_threads` also makes it the default of threads that
    have not called torch yet. The default is set back from a thread of its own.
    """
    before: int = torch.get_num_threads()
    torch.set_num_threads(count)
    restore = threading.Thread(target=torch.set_num_threads, args=(before,))
    restore.start()
    restore.join()
    return before
