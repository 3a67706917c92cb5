"""The entry of a rank's process, which torch's elastic launcher starts; it imports nothing heavy."""

from __future__ import annotations

import os
import pickle
from multiprocessing.connection import Connection


def start(work: bytes, links: list[Connection], moment: float, visible: str | None = None) -> None:
    """Run a rank. work: its job and request, pickled: see launch.run; the others as for distributed.work.

    visible: the GPUs of the first machine, of which the first rank's own is the first: it sees them all, as after
    training it may divide the model over them.

    The launcher says which GPU is this process's only after it has started. Libraries may look for GPUs when they are
    imported, so they are imported here.
    """
    if visible is not None and os.environ["RANK"] == "0":
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    job, request = pickle.loads(work)
    from harness.job.training import distributed

    distributed.work(job, request, links, moment)
