"""Every library on a device says in its own words that memory ran out; what only sounds like it is another failure."""

from __future__ import annotations

import mmap

import hydra.errors
import pytest
import torch
from hydra.utils import instantiate
from torch.distributed import DistBackendError

from harness.job import shortage
from harness.job.measure.phases import Meter

ASYNCHRONOUS = """
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."""
NCCL = """NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, unhandled cuda error (run with \
NCCL_DEBUG=INFO for details), NCCL version 2.20.5
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
"""


# As they are raised on a GPU
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of"),
        torch.AcceleratorError("CUDA error: out of memory" + ASYNCHRONOUS),
        RuntimeError("CUDA error: out of memory" + ASYNCHRONOUS),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.linalg.LinAlgError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(h)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA ran out of memory outside PyTorch's allocator. If this workload uses many"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        DistBackendError(NCCL + "Cuda failure 2 'out of memory'"),
        DistBackendError(NCCL + "Cuda failure 'out of memory'"),
    ],
    ids=lambda error: str(error)[:50].replace(" ", "_"),
)
def test_memory_that_ran_out_on_a_gpu_is_known(error):
    assert shortage.of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + ASYNCHRONOUS),
        torch.AcceleratorError("CUDA error: device-side assert triggered" + ASYNCHRONOUS),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        torch.linalg.LinAlgError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED, when calling `cusolverDnXsyevd`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("out of resource: shared memory, Required: 147456, Hardware limit: 101376."),  # of one block
        DistBackendError(NCCL + "Cuda failure 999 'unknown error'"),
        DistBackendError(NCCL + "Cuda failure 1 'invalid argument'"),
        RuntimeError("shape mismatch"),
        ValueError("max_length=4096 was refused: CUDA out of memory is not what a tokenizer runs into"),
        OSError(28, "No space left on device"),
    ],
    ids=lambda error: str(error)[:50].replace(" ", "_"),
)
def test_other_errors_with_similar_words_are_no_shortage(error):
    assert not shortage.of_memory(error)


# Here, for real


def tensor():
    torch.empty(2**50)


def array():
    bytearray(2**60)


def mapping():
    mmap.mmap(-1, 2**60)


@pytest.mark.parametrize("grow", [tensor, array, mapping])
def test_memory_that_ran_out_here_is_known(grow):
    with pytest.raises((RuntimeError, MemoryError, OSError)) as error:
        grow()
    assert shortage.of_memory(error.value)


def handled():
    try:
        tensor()
    except RuntimeError:
        raise ValueError("while that was handled")  # noqa: B904


def test_a_shortage_is_recognised_as_the_cause_of_another_error():
    with pytest.raises(hydra.errors.InstantiationException) as error:
        instantiate({"_target_": "builtins.bytearray", "_args_": [2**60]})
    assert shortage.of_memory(error.value)
    with pytest.raises(ValueError, match="while") as error:
        handled()
    assert shortage.of_memory(error.value)
    with pytest.raises(hydra.errors.InstantiationException) as error:
        instantiate({"_target_": "builtins.bytearray", "_args_": [-1]})
    assert not shortage.of_memory(error.value)


def test_weights_that_no_operation_has_used_yet_are_part_of_what_is_allocated():
    """As when a model is loaded and is to be divided among devices."""
    meter, holders, model = Meter(torch.device("cpu")), shortage.Holders(), torch.nn.Linear(8, 8, bias=False)
    with meter.window("load") as memory, meter.live(memory):
        other = torch.ones(4)
    holders.set_model(model)
    held = holders.shortage(meter)
    assert (held.weights, held.rest, held.allocated) == (4 * 64, other.nbytes, 4 * 64 + other.nbytes)
