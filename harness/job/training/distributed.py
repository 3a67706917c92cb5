"""Trains a cell on several devices: one process, a rank, for each device.

The job starts the ranks, and only listens. They train by accelerate: each with the whole model, averaging gradients
(ddp), or each with a share of it (fsdp). After the last step all ranks but the first end; the first merges, times and
scores the whole model alone. No rank waits for it, so no collective can time out in a long evaluation.

A rank that raises leaves the record, and the others are killed, as they could wait for it forever. If a rank dies
without an exception, the sweep is told, and leaves the record.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    fsdp2_prepare_model,
    gather_object,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.multiprocessing import _prctl_pr_set_pdeathsig

from harness.errors import UserError
from harness.job.measure import device
from harness.protocol import RunCell
from harness.record import Memory, Phase, Probe

Report = Callable[[dict], None]
PATIENCE = timedelta(days=365)  # time-out of collectives: dead ranks are noticed otherwise, slow ones are waited for
MOMENT = 0.5  # seconds to find out whether a rank raised because another had died


# The job's side


def run(count: int, job: Callable[..., Any], request: RunCell, report: Report) -> int:
    """Run ``job(request, report, rank)`` in `count` ranks, and pass on what the first reports.

    Returns the exit status. Raises UserError if a rank refuses its input, or if there are too few devices. No rank
    outlives this call.
    """
    device.check(count)
    # Not forked beside an accelerator: its libraries may have used the device, and then forks fail.
    context = get_context("spawn" if torch.accelerator.is_available() else "fork")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ranks: dict[Connection, BaseProcess] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in range(count):
                ours, theirs = context.Pipe()
                given = (number, count, Path(folder) / "meeting", theirs, job, request)
                ranks[ours] = context.Process(target=_work, args=given, name=f"rank {number}")
                with _device(number):
                    ranks[ours].start()
                theirs.close()
            return _follow(ranks, report)
        finally:
            for process in ranks.values():
                process.kill()
            for process in ranks.values():
                process.join()


def _device(number: int) -> AbstractContextManager[None]:
    """A context in which started processes see only the GPU `number` of those that this process may use.

    To them that GPU is the first, as to a cell on one device.
    """
    if not torch.cuda.is_available():
        return nullcontext()
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return device.seeing(str(number) if mine is None else mine.split(",")[number])


def _follow(ranks: dict[Connection, BaseProcess], report: Report) -> int:
    """Pass on the reports of the rank that leaves the record, until all have ended. Returns the exit status."""
    numbers = {link: number for number, link in enumerate(ranks)}
    speaker, talking, last = next(iter(ranks)), set(ranks), {"phase": "start"}
    while talking:
        link = wait(talking)[0]
        try:
            event = link.recv()
        except (EOFError, OSError):
            talking.remove(link)
            ranks[link].join()
            if code := ranks[link].exitcode:
                report(last | {"rank": numbers[link], "code": code})
                return 1
            continue
        if "refused" in event:
            raise UserError(event["refused"])
        if "broke" in event:
            if (dead := _died(ranks, talking - {link})) is not None:
                report(last | {"rank": numbers[dead], "code": ranks[dead].exitcode})
                return 1
            for other in talking - {link}:
                ranks[other].kill()
            speaker, talking = link, {link}
            link.send(True)
        elif link is speaker:
            last = event
            report(event)
    return 0


def _died(ranks: dict[Connection, BaseProcess], others: set[Connection]) -> Connection | None:
    """One of `others` that failed, or fails within MOMENT; a rank that raises does not end by itself."""
    ending = wait([ranks[link].sentinel for link in others], MOMENT)
    for link in others:
        if ranks[link].sentinel in ending:
            ranks[link].join()  # its sentinel is ready before its exit status
    return next((link for link in others if ranks[link].exitcode), None)


# A rank's side


@dataclass
class Rank:
    """One of `of` ranks. link: to the job. threads: CPU threads that the job has for all ranks."""

    number: int
    of: int
    link: Connection | None
    threads: int

    def report(self, event: dict) -> None:
        self.link.send(event)

    def records(self, status: str) -> bool:
        """Whether this rank leaves the record: the first of a cell that ended well, else the one that failed.

        A rank that failed because another had is killed in this call.
        """
        if status == "ok":
            return self.number == 0
        self.link.send({"broke": status})
        return self.link.recv()

    def leave(self) -> None:
        """Leave the other ranks after training: from here on one process works on one device."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)
        for name in (*self.environment, "ACCELERATE_USE_FSDP"):
            os.environ.pop(name, None)
        torch.set_num_threads(self.threads)

    def join(self, meeting: Path) -> None:
        """Join the other ranks, through the file `meeting`."""
        AcceleratorState._reset_state(True)  # a fork has its parent's, of one process
        os.environ |= self.environment
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            init_method=meeting.as_uri(),
            rank=self.number,
            world_size=self.of,
            timeout=PATIENCE,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables that accelerate reads. Each rank's device is the first that it sees."""
        numbers = {"RANK": self.number, "LOCAL_RANK": 0, "WORLD_SIZE": self.of, "LOCAL_WORLD_SIZE": self.of}
        return {name: str(value) for name, value in numbers.items()}

    def accelerator(self, sharded: bool, bf16: bool, cpu: bool = False) -> Accelerator:
        """The accelerator of this rank, on its CUDA device if there is one and not `cpu`."""
        cpu = cpu or not torch.cuda.is_available()
        made = Sharding(bf16, cpu) if sharded else _replicating(bf16, cpu)
        torch.set_num_threads(max(1, self.threads // self.of))  # accelerate has set another number
        return made


def _work(number: int, of: int, meeting: Path, link: Connection, job: Callable[..., Any], request: RunCell) -> None:
    """The process of a rank. It dies with the job, however that ends."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    rank = Rank(number, of, link, torch.get_num_threads())
    try:
        rank.join(meeting)
        job(request, rank.report, rank)
    except UserError as error:
        link.send({"refused": str(error)})
    sys.stderr.flush()
    os._exit(0)  # unloading libraries takes a second, and could fail


@contextmanager
def pretended(of: int) -> Iterator[Rank]:
    """A context in which this process is the first of `of` ranks, without the others.

    Collectives return made-up values, so it works for tensors without storage only.
    """
    rank = Rank(0, of, None, torch.get_num_threads())
    os.environ |= rank.environment
    torch.distributed.init_process_group("fake", rank=0, world_size=of)
    try:
        yield rank
    finally:
        rank.leave()


def _replicating(bf16: bool, cpu: bool) -> Accelerator:
    """DDP. Gradients are views of the all-reduce buckets; buffers are the same in every rank anyway."""
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=cpu, kwargs_handlers=[ddp])


class Sharding(Accelerator):
    """FSDP2 over the ranks, decoder layer by decoder layer, with the weights and the autocast of one device.

    Under bf16 accelerate would keep trained weights in fp32 and compute without autocast. So accelerate gets no mixed
    precision, and autocast is entered here.
    """

    def __init__(self, bf16: bool, cpu: bool):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        super().__init__(cpu=cpu, fsdp_plugin=plugin)
        # accelerate accepts the plugin on accelerators only, but its functions shard on a CPU as well
        self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin
        self._bf16 = bf16

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Shard `model`. Build its optimizer after that."""
        return fsdp2_prepare_model(self, model)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """All-reduce gradients after every micro-batch: whole ones would take the memory that sharding saves."""
        return nullcontext()

    def clip_grad_norm_(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        norm = super().clip_grad_norm_(*arguments, **keywords)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


# What the ranks measured


def slowest(
    seconds: float, parts: dict[str, float], joules: float | None, accelerator: Accelerator
) -> tuple[float, dict[str, float], float | None]:
    """Seconds of a step and of its parts in the slowest rank, and the joules of all devices.

    On a CPU each rank's joules are already the whole machine's.
    """
    if accelerator.num_processes == 1:
        return seconds, parts, joules
    told = gather_object([(seconds, parts, joules)])
    seconds, parts, joules = max(told, key=lambda each: each[0])
    if accelerator.device.type == "cuda" and joules is not None:
        joules = sum(each[2] for each in told)
    return seconds, parts, joules


def largest(phases: list[dict[str, Phase]]) -> dict[str, Phase]:
    """Combine the phases of all ranks: for each, the maximum of seconds and of every kind of memory."""
    return {
        name: Phase(max(each[name].seconds for each in phases), _largest([each[name].memory for each in phases]))
        for name in phases[0]
    }


def _largest(memories: list[Memory]) -> Memory:
    values = {name: [getattr(each, name) for each in memories] for name in vars(memories[0])}
    return Memory(**{name: max((v for v in each if v is not None), default=None) for name, each in values.items()})


def fullest(probes: list[Probe]) -> Probe:
    """The probe of the device with the highest peak."""
    return max(probes, key=lambda probe: sum(vars(probe.peak).values()))


def combine(probe: Probe, phases: dict[str, Phase], on: torch.device) -> tuple[Probe, str | None]:
    """Combine what the devices have measured: `phases`, in place, and the probe, which is returned.

    on: the device of this process. Also returned are the ids of all GPUs, joined by "+"; None of CPUs.
    """
    probes, all_phases, devices = zip(*gather_object([(probe, phases, device.describe(on)["device"])]), strict=True)
    phases.update(largest(all_phases))
    ids = [each["id"] for each in devices]
    return fullest(probes), None if ids[0] is None else "+".join(ids)


def same(net: nn.Module) -> bool:
    """Whether all devices have the same trained weights; for models that are not sharded."""
    sums = gather_object([float(sum(p.detach().double().sum() for p in net.parameters() if p.requires_grad))])
    return len(set(sums)) == 1


def weights(net: nn.Module, accelerator: Accelerator, sharded: bool) -> dict[str, torch.Tensor]:
    """The trained weights that the devices have together: of a sharded model by name, else none, as each has them all.

    Raises RuntimeError if each has others.
    """
    if sharded:
        return whole(net, accelerator)
    if not same(net):
        raise RuntimeError("The devices' weights differ: the optimizer took another step on each.")
    return {}


def whole(net: nn.Module, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """All weights of a sharded model, whole, by name and on the CPU; in the first process alone.

    Weights that were not trained are among them: loading and adapting the model anew would draw some of them anew.
    """
    for part in net.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # a pass without gradients leaves some whole
    kept = {}
    for name, p in net.named_parameters():
        gathered = p.detach().full_tensor()
        if accelerator.is_main_process:
            kept[name] = gathered.cpu()
    return kept


@torch.no_grad()
def restore(net: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights`, which are used up, into `net`."""
    for name, p in net.named_parameters():
        p.copy_(weights.pop(name))
