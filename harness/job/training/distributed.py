"""A rank: one of the processes that train a cell together, one for each device.

launch.py starts them. They train by accelerate: each with the whole model, averaging gradients (ddp), or each with a
share of it (fsdp). After the last step all ranks but the first are done; the first merges, times and scores the whole
model alone, on its device, or, if that can't hold it, on all of its machine. No rank waits for it in a collective, so
none can time out in a long evaluation.

A rank that raises leaves the record, and the others are killed, as they could wait for it forever.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    fsdp2_prepare_model,
    gather_object,
    synchronize_rng_states,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]  # added as torch is loaded

from harness.errors import UserError
from harness.job.measure import device, heap
from harness.job.training import shards
from harness.protocol import RunCell
from harness.record import COMPLETE, Memory, Phase, Probe

PATIENCE = timedelta(days=365)  # time-out of collectives: dead ranks are noticed otherwise, slow ones are waited for
LAUNCHER = (  # what torch's elastic launcher tells a rank, beside Rank.environment
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"),
    *("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE"),
)


@dataclass
class Rank:
    """One of `of` ranks, `beside` of which are on this machine. threads: CPU threads that the job has for its ranks."""

    number: int
    of: int
    beside: int
    threads: int

    def leave(self) -> None:
        """Leave the other ranks after training: from here on one process works on one device."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)
        for name in (*self.environment, *LAUNCHER, "ACCELERATE_USE_FSDP"):
            os.environ.pop(name, None)
        torch.set_num_threads(self.threads)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that accelerate reads. Each rank's device is the first that it sees."""
        numbers = {"RANK": self.number, "LOCAL_RANK": 0, "WORLD_SIZE": self.of, "LOCAL_WORLD_SIZE": self.beside}
        return {name: str(value) for name, value in numbers.items()}

    def accelerator(self, sharded: bool, bf16: bool, cpu: bool = False) -> Accelerator:
        """The accelerator of this rank, on its CUDA device if there is one and not `cpu`."""
        cpu = cpu or not torch.cuda.is_available()
        made = Sharding(bf16, cpu) if sharded else _replicating(bf16, cpu)
        torch.set_num_threads(max(1, self.threads // self.beside))  # accelerate has set another number
        return made


@dataclass
class LaunchedRank(Rank):
    """A rank that was launched by this machine's job.

    link: to that job. moment: seconds in which the job learns that another rank died, which made this one fail. failed:
    whether this one has.
    """

    link: Connection
    moment: float
    failed: bool = False

    def report(self, event: dict[str, Any]) -> None:
        self.link.send(event)

    def records(self, status: str) -> bool:
        """Whether this rank leaves the record: the first of a cell that ended well or was pruned, else the one that
        failed.

        A rank that failed because another had is killed in this call.
        """
        if status in COMPLETE:
            return self.number == 0
        self.failed = True
        time.sleep(self.moment)
        self.link.send({"failed": status})
        return self.link.recv()

    def join(self) -> None:
        """Join the other ranks, where the launcher says."""
        AcceleratorState._reset_state(True)  # a fork has its parent's, of one process
        os.environ |= self.environment
        if os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        torch.distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo", init_method="env://", timeout=PATIENCE
        )

    def leave(self) -> None:
        super().leave()
        self.report({"apart": True})


def work(job: Callable[..., Any], request: RunCell, links: list[Connection], moment: float) -> None:
    """Run ``job(request, report, rank)`` in this process, which the launcher has made a rank of this machine.

    It dies with the process that launched it, however that ends. links: of this machine's ranks.
    """
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's own waits until a collective returns
    number, of, beside, node = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    )
    rank = LaunchedRank(number, of, beside, torch.get_num_threads(), links[number - node * beside], moment)
    try:
        rank.join()
        job(request, rank.report, rank)
    except UserError as error:
        rank.failed = True
        rank.report({"refused": str(error)})
    except Exception:
        time.sleep(moment)
        raise  # the launcher passes the reason on
    if rank.failed:
        sys.stderr.flush()
        os._exit(1)  # the launcher ends the others
    gc.collect()
    heap.give_back()  # this process stays until the first rank is done, which may need its device
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def pretended(of: int) -> Iterator[Rank]:
    """A context in which this process is the first of `of` ranks, without the others.

    Collectives return made-up values, so it works for tensors without storage only.
    """
    rank = Rank(0, of, of, torch.get_num_threads())
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

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Shard `model`, which the first rank has read and the others have on "meta". Build its optimizer after that.

        In a prediction the first is on "meta" too, and stays there.
        """
        self.state.fsdp_plugin.transformer_cls_names_to_wrap = sharded_classes(model)
        first = self.is_main_process
        if first and any(p.is_meta for p in model.parameters()):
            return fsdp2_prepare_model(self, model)
        values = shards.tensors(model) if first else {}
        if not first:
            shards.forget_scales(model)
        model = fsdp2_prepare_model(self, model)
        shards.distribute(model, values, first, self.device)
        return model

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """All-reduce gradients after every micro-batch: whole ones would take the memory that sharding saves."""
        return nullcontext()

    def clip_grad_norm_(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        norm = super().clip_grad_norm_(*arguments, **keywords)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def as_before(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """`model` as it was before `accelerator` prepared it: in no wrapper, and without autocast.

    ``unwrap_model(keep_fp32_wrapper=False)`` would also take off the decorators that the model's class has, such as the
    one that takes `return_dict`: accelerate compares a function with a bound method, so its search never ends before.
    """
    plain = accelerator.unwrap_model(model)
    forward = vars(plain).pop("_original_forward", None)
    if forward is not None:
        del plain.forward
        if getattr(forward, "__func__", None) is not type(plain).forward:
            plain.forward = forward
    return plain


def sharded_classes(model: nn.Module) -> list[str]:
    """Names of the classes whose modules FSDP gathers and frees each by itself: decoder layers and their like, and what
    has trainable weights in another dtype than most, such as a router, as FSDP takes only one together."""
    names: Any = model._no_split_modules or ()  # of a model with several towers also classes that it lacks
    dtypes = Counter(weight.dtype for weight in model.parameters() if weight.requires_grad)
    usual = {dtype for dtype, _ in dtypes.most_common(1)}

    def apart(module: nn.Module) -> bool:
        own = (weight for weight in module.parameters(recurse=False) if weight.requires_grad)
        return any(weight.dtype not in usual for weight in own)

    modules = ((type(module).__name__, module) for module in model.modules())
    return sorted({name for name, module in modules if name in names or apart(module)})


def share_random_numbers() -> None:
    """Give all ranks the random numbers of the first, by which they then step whole weights alike.

    A model's dropout draws more of them on a rank whose sequences are longer.
    """
    if torch.distributed.is_initialized():
        synchronize_rng_states(["torch", "cuda"] if torch.cuda.is_available() else ["torch"])


# What the ranks measured


def slowest(
    seconds: float, parts: dict[str, float], joules: float | None, accelerator: Accelerator
) -> tuple[float, dict[str, float], float | None]:
    """Seconds of a step and of its parts in the slowest rank, and the joules of all devices.

    On a CPU each rank's joules are already its whole machine's.
    """
    if accelerator.num_processes == 1:
        return seconds, parts, joules
    meter = accelerator.process_index if accelerator.device.type == "cuda" else int(os.environ["GROUP_RANK"])
    told = gather_object([(seconds, parts, {meter: joules})])
    seconds, parts, _ = max(told, key=lambda each: each[0])
    by_meter = {meter: used for *_, metered in told for meter, used in metered.items()}
    return seconds, parts, None if None in by_meter.values() else sum(by_meter.values())


def largest(phases: Sequence[dict[str, Phase]]) -> dict[str, Phase]:
    """Combine the phases of all ranks: for each, the maximum of seconds and of every kind of memory."""
    return {
        name: Phase(max(each[name].seconds for each in phases), _largest([each[name].memory for each in phases]))
        for name in phases[0]
    }


def _largest(memories: list[Memory]) -> Memory:
    values = {name: [getattr(each, name) for each in memories] for name in vars(memories[0])}
    return Memory(**{name: max((v for v in each if v is not None), default=None) for name, each in values.items()})


def fullest(probes: Sequence[Probe]) -> Probe:
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


def weights(net: nn.Module, accelerator: Accelerator, names: set[str] | None) -> dict[str, torch.Tensor]:
    """The weights `names` of a sharded model, as `whole`; of one that is not (null), none, as each device has them all.

    Raises RuntimeError if each has others.
    """
    if names is not None:
        return whole(net, accelerator, names)
    if not same(net):
        raise RuntimeError("The devices' weights differ: the optimizer took another step on each.")
    return {}


def reshard(net: nn.Module) -> None:
    """Have each rank hold its shares of a sharded model alone.

    After a pass without gradients FSDP keeps whole what lies outside of the layers, such as embeddings.
    """
    for part in net.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(net: nn.Module, accelerator: Accelerator, names: set[str]) -> dict[str, torch.Tensor]:
    """The tensors `names` of a sharded model, put together of all shares, by name (that of `shards.tensors`) and on the
    host; in the first process alone, which never holds another one whole.
    """
    reshard(net)
    kept = {}
    for name, gathered in shards.tensors(net).items():
        if name not in names:
            continue
        if isinstance(gathered, DTensor):
            gathered = gathered.full_tensor()
        if accelerator.is_main_process:
            kept[name] = gathered.cpu()
    return kept


@torch.no_grad()
def restore(net: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy `weights`, which are used up, into `net`."""
    own = shards.tensors(net)
    for name in list(weights):
        own[name].copy_(weights.pop(name))
