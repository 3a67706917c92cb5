"""The machines that train one cell together (train.nodes): which of them this one is, and where they meet.

Each runs the same command. As for torchrun, NODE_RANK is a machine's number, and MASTER_ADDR and MASTER_PORT are an
address and a free port of the first. In a job of Slurm, srun says all that.
"""

from __future__ import annotations

import os
import re

from harness.errors import UserError
from harness.protocol import Rendezvous

SECONDS = 300.0  # for all machines to join
VARIABLES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
PORTS = range(20000, 30000)  # below those that systems give to clients


def rendezvous(nodes: int) -> Rendezvous | None:
    """Where the `nodes` machines of a cell meet; None for a cell of one machine.

    Raises UserError if the environment does not say that, or says what can't be.
    """
    if nodes == 1:
        return None
    environment = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    variables = (_of_slurm(nodes) or {}) | environment
    if missing := [name for name in VARIABLES if name not in variables]:
        raise UserError(
            f"train.nodes={nodes} requires hydra/launcher=slurm, or the same command on {nodes} machines with "
            f"{', '.join(VARIABLES)} in the environment, got no {', '.join(missing)}."
        )
    number, port = _number("NODE_RANK", variables, range(nodes)), _number("MASTER_PORT", variables, range(1, 2**16))
    return Rendezvous(nodes, number, variables["MASTER_ADDR"], port, SECONDS)


def spare() -> bool:
    """Whether this is another machine than the first of a job that Slurm gave several, for a cell that needs one."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and int(os.environ.get("SLURM_NODEID", 0)) > 0


def _of_slurm(nodes: int) -> dict[str, str] | None:
    """What srun says, by the names above; None if this is no job of Slurm. Jobs that share a machine differ in port."""
    if "SLURM_NODEID" not in os.environ:
        return None
    count = int(os.environ["SLURM_JOB_NUM_NODES"])
    if count != nodes:
        raise UserError(f"train.nodes must be {count}, the nodes of this Slurm job, got {nodes}.")
    return {
        "NODE_RANK": os.environ["SLURM_NODEID"],
        "MASTER_ADDR": first_host(os.environ["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(PORTS[int(os.environ["SLURM_JOB_ID"]) % len(PORTS)]),
    }


def first_host(listed: str) -> str:
    """The first host of Slurm's list of nodes: n03 of ``n[03-05,9],m1``."""
    first = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", listed)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _number(name: str, variables: dict[str, str], allowed: range) -> int:
    text = variables[name]
    if not text.isdecimal() or int(text) not in allowed:
        raise UserError(f"{name} must be a number from {allowed[0]} to {allowed[-1]}, got {text}.")
    return int(text)
