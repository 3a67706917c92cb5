"""The device: its number format, and its description in the record."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.errors import UserError
from harness.job.measure import nvml, timing
from harness.settings import Settings

INT8 = (7, 5)  # the least compute capability that bitsandbytes multiplies in 8 bits on; torchao's int8 has no such


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype that matrices are multiplied in for ``train.precision``.

    ``auto`` is bfloat16 if that is faster, else float32. Emulated bf16 is several times slower, and so are some
    processors with bf16 instructions.
    """
    if precision == "auto":
        precision = "bf16" if _bf16_pays() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


@functools.cache
def _bf16_pays() -> bool:
    if torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    # Such processors are about twice or half as fast in bf16, so that a short measurement is clear enough for the cells
    # of a study, each of which measures by itself, to decide alike.
    pays = [timing.product_speedup(torch.bfloat16, torch.float32) > 1]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(pays)  # all ranks use one format
    return pays[0]


def here() -> torch.device:
    """The accelerator of this machine, else its CPU.

    A build of torch names its kind of accelerator on any machine, so its availability is checked.
    """
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@contextmanager
def seeing(gpus: str) -> Iterator[None]:
    """A context in which started processes see only these CUDA devices, named as in CUDA_VISIBLE_DEVICES."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def describe(device: torch.device) -> dict[str, Any]:
    """The device, and the number of CPU threads, for the record's environment.

    device: type, name, id, memory in bytes, compute capability, versions of driver, CUDA and cuDNN; all but the type
    are null on a CPU, which the record describes elsewhere. The id, a hash of the UUID, tells a machine's GPUs apart.
    """
    name = id = memory = capability = driver = cuda = cudnn = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
        id = hashlib.sha256(str(properties.uuid).encode()).hexdigest()[:8]
        capability = f"{properties.major}.{properties.minor}"
        driver = nvml.driver(device)
        cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()
    return {
        "device": {
            "type": device.type,
            "name": name,
            "id": id,
            "memory_bytes": memory,
            "capability": capability,
            "driver": driver,
            "cuda": cuda,
            "cudnn": cudnn,
        },
        "threads": torch.get_num_threads(),
    }


def keep_to_its_memory(device: torch.device) -> None:
    """In WSL2, keep torch to the GPU memory that is free, so that a cell that does not fit fails instead of spilling.

    Windows' driver moves what exceeds the GPU's memory to the system's, where training goes on many times slower
    (github.com/microsoft/WSL/issues/11050): no cell would run out of memory, and peaks could exceed the GPU.
    """
    if device.type == "cuda" and "microsoft" in platform.release():
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(free / total, device)


def check(count: int) -> None:
    """Raise UserError if a cell can't train on `count` devices here. On a CPU a device is a process."""
    kind = here().type
    if count == 1 or kind == "cpu":
        return
    if kind != "cuda":
        raise UserError(f"train.devices={count} requires CUDA devices, or a CPU, got {kind}.")
    if count > torch.cuda.device_count():
        raise UserError(
            f"train.devices must be at most {torch.cuda.device_count()}, the CUDA devices here, got {count}."
        )


def check_formats(settings: Settings) -> None:
    """Raise UserError if the settings need arithmetic that the GPU here, or the build of torch for it, lacks."""
    if torch.cuda.is_available():
        _check_build()
        _check_capability(settings)
    check_float16(settings)


def check_float16(settings: Settings) -> None:
    """Raise UserError for a quantised base in float16 under autocast to bf16."""
    if settings.model.dtype != "float16" or settings.method.bits is None:
        return
    if compute_dtype(settings.train.validated().precision) is torch.bfloat16:
        raise UserError(
            "model.dtype=float16 can't be combined with a quantised base and train.precision=bf16: its layers answer "
            "in float16, and autocast to bf16 does not mix the two; use model.dtype=bfloat16."
        )


def _check_build() -> None:
    """Raise UserError if torch was built without kernels for the GPU here.

    Code for a GPU runs on those of its major version and an equal or higher minor one; PTX on all later ones.
    """
    major, minor = torch.cuda.get_device_capability()
    built = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list()]
    codes = [(kind, int(high), int(low)) for kind, high, low in (match.groups() for match in built if match)]
    fits = [
        high == major and low <= minor if kind == "sm" else (high, low) <= (major, minor) for kind, high, low in codes
    ]
    if codes and not any(fits):
        raise UserError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} ({major}.{minor}), only for "
            f"{', '.join(torch.cuda.get_arch_list())}; install a build of torch that has sm_{major}{minor}."
        )


def _check_capability(settings: Settings) -> None:
    major, minor = torch.cuda.get_device_capability()
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if not has_bf16 and (setting := settings.in_sixteen_bits):
        raise UserError(
            f"{setting} requires a GPU of compute capability 8.0 or more, got {torch.cuda.get_device_name()} "
            f"({major}.{minor}); use train.precision=fp32 model.dtype=float32."
        )
    if settings.method.quantisation == "int8" and torch.version.hip is None and (major, minor) < INT8:
        raise UserError(
            "A base in 8 bits requires a GPU of compute capability 7.5 or more, got "
            f"{torch.cuda.get_device_name()} ({major}.{minor}); use one in 4 bits, such as method=qlora."
        )


def busy(number: int = 0) -> str | None:
    """A warning if others use the CUDA device `number`; null if not, or if NVML can't tell.

    Call it before this process uses CUDA: in a container NVML's process ids may be the host's, and not match ours.
    """
    if not torch.cuda.is_available():
        return None
    gpu = torch.device("cuda", number)
    load = nvml.load(gpu)
    return None if load is None else say_busy(torch.cuda.get_device_name(gpu), *load)


def say_busy(name: str, processes: dict[int, int | None], used: int, percent: int) -> str | None:
    """The warning for a device with `used` bytes and `percent` utilisation; null for the little that a desktop uses.

    processes: bytes by process id; null if unknown.
    """
    if not processes and used <= 2**30 and percent <= 10:
        return None
    who = ", ".join(
        f"process {pid}" + ("" if size is None else f" with {size / 2**30:.1f} GiB") for pid, size in processes.items()
    )
    return (
        f"{name} is busy with {who or 'others'} ({used / 2**30:.1f} GiB held, {percent}% utilisation): "
        "measured times and memory will not be comparable."
    )
