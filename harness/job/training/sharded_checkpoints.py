"""Checkpoints of a model that several ranks share: each writes its shares, by torch.distributed.checkpoint.

    FOLDER/step-50/shares/      of all ranks: trainable weights and the optimizer's state, divided as they are
                   rank-N.pt    of each rank: schedule, random numbers, what was measured, tensors that are not divided
                   about.json   the cell and machine that it belongs to, and the hashes of all files

All machines write to one disk. A step counts for all ranks or for none. As of other checkpoints, nothing that is read
can bring in code.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.tensor import DeviceMesh, DTensor, Placement, Replicate, Shard, empty
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from harness import record
from harness.errors import first_line
from harness.job.training import checkpoints, distributed
from harness.job.training.checkpoints import FAILURES, STEP, Checkpoints, Unusable

SHARES = "shares"
DIVIDED = "divided tensor"  # key of what stands for one in a rank's own file
METADATA = {  # what torch's own list of tensors is complete of
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
            *("TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        )
    ),
}


class ShardedCheckpoints(Checkpoints):
    """The checkpoints of one cell whose model is sharded; every rank calls what another kind's first rank does."""

    by_all_ranks = True
    form = 1

    def save(
        self, step: int, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, measured: dict[str, Any]
    ) -> None:
        with self.meter.aside():
            distributed.reshard(model)
            temporary = self.folder / f".{STEP}{step}.tmp"
            divided: dict[str, Tensor] = {}

            def write_own() -> None:
                parameters = {name: p.detach() for name, p in checkpoints.trainable(model)}
                state = {"parameters": parameters} | self._state(optimizer, schedule, measured)
                path = temporary / _own_file()
                torch.save(_divide(state, divided), path)
                checkpoints.check_readable(path)
                record.sync(path)

            parts = [
                lambda: _first_alone(lambda: checkpoints.cleared(temporary).mkdir(parents=True)),
                write_own,
                lambda: _quietly(lambda: checkpoint.save(divided, checkpoint_id=temporary / SHARES)),
                lambda: _first_alone(lambda: self._finish(temporary, step)),
            ]
            for part in parts:
                if (reason := _together(part)[1]) is not None:
                    _first_alone(lambda: checkpoints.cleared(temporary))
                    checkpoints.say(f"The checkpoint of step {step} was not saved ({reason}); training continues.")
                    return

    def restore(self, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> dict[str, Any] | None:
        with self.meter.aside():
            distributed.reshard(model)
            _first_alone(self._clear_unfinished)
            for name in _of_first([path.name for path in self._found()]):
                state, reason = _together(partial(self._own, self.folder / name, model))
                if reason is not None:
                    checkpoints.say(f"The checkpoint {name} is not used: {reason}.")
                    continue
                self._load(self.folder / name, state, dict(checkpoints.trainable(model)), optimizer)
                return self._resume(name, state, schedule)
        return None

    @torch.no_grad()
    def _load(
        self, folder: Path, state: dict[str, Any], parameters: dict[str, nn.Parameter], optimizer: Optimizer
    ) -> None:
        """Copy what the ranks have saved in `folder` to `parameters` and `optimizer`. state: this rank's own."""
        mesh = next(p.device_mesh for p in parameters.values() if isinstance(p, DTensor))
        divided: dict[str, Tensor] = {}
        values = _rejoin({name: state[name] for name in ("parameters", "optimizer")}, mesh, divided)
        _quietly(lambda: checkpoint.load(divided, storage_reader=_Reader(folder / SHARES)))
        for name, p in parameters.items():
            p.copy_(values["parameters"][name])
        checkpoints.load_optimizer(optimizer, values["optimizer"])

    def _own(self, folder: Path, model: nn.Module) -> dict[str, Any]:
        """This rank's state in `folder`, after the files were checked. Raises Unusable."""
        try:
            own, files = _own_file(), self._hashes_of(folder)
            verified = files if torch.distributed.get_rank() == 0 else {own: files[own]}  # the first reads them all
            if (checkpoints.hashes(folder) if verified is files else {own: record.sha256(folder / own)}) != verified:
                raise Unusable("its files do not match their hashes")
            state = torch.load(folder / own, weights_only=True)
            saved = {name: _shape(p) for name, p in state["parameters"].items()}
            if saved != {name: tuple(p.shape) for name, p in checkpoints.trainable(model)}:
                raise Unusable("its weights have other names or shapes")
            return state
        except FAILURES as error:
            raise Unusable(f"it can't be read ({first_line(error)})") from None


# What ranks do together


def _together(part: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `part`, which every rank does, returns here; and why it failed in one of them, null if in none."""
    result = reason = None
    try:
        result = part()
    except (*FAILURES, Unusable) as error:
        reason = first_line(error)
    return result, next((why for why in gather_object([reason]) if why is not None), None)


def _first_alone(part: Callable[[], Any]) -> None:
    if torch.distributed.get_rank() == 0:
        part()


def _of_first(names: list[str]) -> list[str]:
    """The first rank's `names`."""
    listing = [names]
    broadcast_object_list(listing)
    return listing[0]


def _quietly(part: Callable[[], Any]) -> None:
    """Do `part`; what torch tells of all ranks' failures is an exception as any other. Raises RuntimeError."""
    try:
        part()
    except CheckpointException as error:
        reasons = [str(cause[0]) for cause in error.failures.values()]
        raise RuntimeError(first_line(RuntimeError(reasons[0] if reasons else str(error)))) from None


# Divided tensors


def _shape(value: Tensor | dict[str, Any]) -> tuple[int, ...]:
    """Of a tensor, or of what stands for a divided one."""
    return tuple(value.shape if isinstance(value, Tensor) else value[DIVIDED]["shape"])


def _divide(value: Any, divided: dict[str, Tensor]) -> Any:
    """`value`, a tree of plain values, with each sharded tensor replaced by what describes it; `divided` gets them."""
    if isinstance(value, DTensor):
        key = str(len(divided))
        divided[key] = value.detach()
        dims = [_dimension(placement) for placement in value.placements]
        return {DIVIDED: {"key": key, "shape": list(value.shape), "dtype": value.dtype, "dims": dims}}
    if isinstance(value, Mapping):
        return {key: _divide(each, divided) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_divide(each, divided) for each in value)
    return value


def _dimension(placement: Placement) -> int | None:
    """The dimension along which a tensor is divided; null if each rank has it whole. Raises ValueError."""
    if isinstance(placement, Shard):
        return placement.dim
    if isinstance(placement, Replicate):
        return None
    raise ValueError(f"the optimizer keeps a tensor as {placement}, which can't be saved")


def _rejoin(value: Any, mesh: DeviceMesh, divided: dict[str, Tensor]) -> Any:
    """The reverse of `_divide`: with new tensors without values, which are in `divided` too."""
    if isinstance(value, dict) and DIVIDED in value:
        about = value[DIVIDED]
        placements = [Replicate() if dim is None else Shard(dim) for dim in about["dims"]]
        tensor = empty(about["shape"], dtype=about["dtype"], device_mesh=mesh, placements=placements)
        divided[about["key"]] = tensor
        return tensor
    if isinstance(value, dict):
        return {key: _rejoin(each, mesh, divided) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rejoin(each, mesh, divided) for each in value)
    return value


# Files


class _Reader(checkpoint.FileSystemReader):
    """Reads what torch has written, but no pickled object that is not of its list of tensors."""

    def read_metadata(self, *args: Any, **keywords: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Listed(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Listed(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in METADATA:
            raise pickle.UnpicklingError(f"its list of tensors names {module}.{name}")
        return super().find_class(module, name)


def _own_file() -> str:
    return f"rank-{torch.distributed.get_rank()}.pt"
