"""The ranks of a cell: the processes that train it together where it asks for several devices, one a device.

The job starts them, and only listens. They train as accelerate has it: each with the whole model, averaging gradients
(ddp), or each with a share of it (fsdp). After the last step all but the first are done; that one merges, times and
scores the whole model by itself. Nobody waits for it, so no time-out of a collective can end a long evaluation.

A rank that raises leaves the record, and the others are killed, as they may wait for it forever. If one dies without a
word, the sweep is told, and leaves the record.
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
from harness.job.measure import device, heap
from harness.record import Memory, Phase, Probe

Report = Callable[[dict], None]
PATIENCE = timedelta(days=365)  # of a collective: a rank that dies is seen otherwise, and a slow one is waited for
MOMENT = 0.5  # seconds in which it shows whether a rank raised because another had died


# The job's side


def run(count: int, job: Callable[..., Any], arguments: dict[str, Any], report: Report) -> int:
    """Have `count` ranks do ``job(**arguments, report=…, rank=…)``, and pass on what the first reports.

    Returns the exit status; UserError if a rank refuses its input, or there are too few devices. However this ends, no
    rank is left.
    """
    device.check(count)
    # Not forked where there are accelerators: their libraries may have touched the device, which no fork survives.
    context = get_context("spawn" if torch.accelerator.is_available() else "fork")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ranks: dict[Connection, BaseProcess] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in range(count):
                ours, theirs = context.Pipe()
                given = (number, count, Path(folder) / "meeting", theirs, job, arguments)
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
    """A process that is started meanwhile sees the GPU `number` alone of those that this one may use.

    To it that GPU is the first, as to a cell on one device.
    """
    if not torch.cuda.is_available():
        return nullcontext()
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    return device.seeing(str(number) if mine is None else mine.split(",")[number])


def _follow(ranks: dict[Connection, BaseProcess], report: Report) -> int:
    """Pass on what the rank that is to leave the record reports, until all have ended; the exit status."""
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
    """One of `others` that ended badly, or does in a moment; a rank that raises does not end by itself."""
    ending = wait([ranks[link].sentinel for link in others], MOMENT)
    for link in others:
        if ranks[link].sentinel in ending:
            ranks[link].join()  # what shows that it ends goes before its exit status is there
    return next((link for link in others if ranks[link].exitcode), None)


# A rank's side


@dataclass
class Rank:
    """One of `of` ranks. link: to the job; threads: of the CPU that the job has for all of them."""

    number: int
    of: int
    link: Connection | None
    threads: int

    def report(self, event: dict) -> None:
        self.link.send(event)

    def records(self, status: str) -> bool:
        """Whether this rank leaves the record: of a good cell the first, of another the one that broke it.

        One that only broke because another had is ended in here.
        """
        if status == "ok":
            return self.number == 0
        self.link.send({"broke": status})
        return self.link.recv()

    def leave(self) -> None:
        """Part from the other ranks, after training: what comes is one process's work on one device."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)
        for name in (*self.environment, "ACCELERATE_USE_FSDP"):
            os.environ.pop(name, None)
        torch.set_num_threads(self.threads)

    def join(self, meeting: Path) -> None:
        """Meet the other ranks, over the file `meeting`."""
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
        """What accelerate goes by. Each rank's device is the first that it sees."""
        numbers = {"RANK": self.number, "LOCAL_RANK": 0, "WORLD_SIZE": self.of, "LOCAL_WORLD_SIZE": self.of}
        return {name: str(value) for name, value in numbers.items()}

    def accelerator(self, sharded: bool, bf16: bool, cpu: bool = False) -> Accelerator:
        """accelerate's for this rank, on its CUDA device if there is one, and not `cpu` is asked for."""
        cpu = cpu or not torch.cuda.is_available()
        made = Sharding(bf16, cpu) if sharded else _replicating(bf16, cpu)
        torch.set_num_threads(max(1, self.threads // self.of))  # accelerate has taken its own idea of it
        return made


def _work(number: int, of: int, meeting: Path, link: Connection, job: Callable[..., Any], arguments: dict) -> None:
    """What the process of a rank does; it dies with the job, however that ends."""
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    heap.keep()  # a spawned process does not inherit it
    rank = Rank(number, of, link, torch.get_num_threads())
    try:
        rank.join(meeting)
        job(**arguments, report=rank.report, rank=rank)
    except UserError as error:
        link.send({"refused": str(error)})
    sys.stderr.flush()
    os._exit(0)  # to take libraries down costs a second, and could fail


@contextmanager
def pretended(of: int) -> Iterator[Rank]:
    """A context in which this process is the first of `of` ranks, and the others are not there.

    What they would tell it is made up, so it is for tensors without storage.
    """
    rank = Rank(0, of, None, torch.get_num_threads())
    os.environ |= rank.environment
    torch.distributed.init_process_group("fake", rank=0, world_size=of)
    try:
        yield rank
    finally:
        rank.leave()


def _replicating(bf16: bool, cpu: bool) -> Accelerator:
    """DDP. Gradients lie in the buckets that they are added up in, once; buffers are the same in every rank anyway."""
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=cpu, kwargs_handlers=[ddp])


class Sharding(Accelerator):
    """FSDP2 over the ranks, decoder layer by decoder layer, with the weights and the autocast of one device.

    Under bf16 accelerate would keep trained weights in fp32 and compute without autocast. So it is told of no mixed
    precision, and autocast is entered here.
    """

    def __init__(self, bf16: bool, cpu: bool):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        super().__init__(cpu=cpu, fsdp_plugin=plugin)
        # accelerate takes the plugin on accelerators alone; what it calls shards on a CPU as well
        self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin
        self._bf16 = bf16

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Shard `model`; an optimizer over it is to be made after that."""
        return fsdp2_prepare_model(self, model)

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """Gradients are added up after every micro-batch: whole ones would take the memory that sharding saves."""
        return nullcontext()

    def clip_grad_norm_(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        norm = super().clip_grad_norm_(*arguments, **keywords)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


# What ranks know together


def slowest(
    seconds: float, parts: dict[str, float], joules: float | None, accelerator: Accelerator
) -> tuple[float, dict[str, float], float | None]:
    """The time of a step and its parts in the rank that took longest, and the joules of all devices.

    The energy of a CPU is the whole machine's already.
    """
    if accelerator.num_processes == 1:
        return seconds, parts, joules
    told = gather_object([(seconds, parts, joules)])
    seconds, parts, joules = max(told, key=lambda each: each[0])
    if accelerator.device.type == "cuda" and joules is not None:
        joules = sum(each[2] for each in told)
    return seconds, parts, joules


def largest(phases: list[dict[str, Phase]]) -> dict[str, Phase]:
    """The phases of all ranks as one: of each the seconds, and every kind of memory, of the rank that had most."""
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
