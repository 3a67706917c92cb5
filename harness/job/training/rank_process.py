"""The entry of a rank's process, which torch's elastic launcher starts; it imports nothing heavy."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection


def start(work: bytes, links: list[Connection], moment: float) -> None:
    """Run a rank. work: its job and request, pickled: see launch.run; the others as for distributed.work.

    The launcher says which GPU is this process's only after it has started. Libraries may look for GPUs when they are
    imported, so they are imported here.
    """
    job, request = pickle.loads(work)
    from harness.job.training import distributed

    distributed.work(job, request, links, moment)
