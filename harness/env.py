"""What a record says about where it ran: versions, commit, processor. The job adds the device."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes", "galore-torch"),
    *("lm_eval", "datasets", "tokenizers", "numpy", "hydra-core"),
)
OWN_PACKAGE = "finetune-harness"
# What changes how memory is handed out, how many threads compute and how they wait, and whose attention kernels run.
ALLOCATOR = re.compile(
    r"PYTORCH_(\w+_)?ALLOC_CONF|MALLOC_\w+|LD_PRELOAD|(OMP|GOMP|KMP)_\w+|MKL_NUM_THREADS|TORCH_CUDNN_SDPA_\w+"
)


def describe() -> dict[str, Any]:
    """Versions (null where absent), platform, git commit and dirtiness, processor, its cores, memory in bytes.

    allocator: the environment's variables that steer memory, threads and attention, those set alone.
    boot: a hash of the kernel's random id of this boot, the same in all containers of a machine; null off Linux. It
        tells whether two cells ran on one machine, and not on which.
    """
    git = _git()
    packages = PACKAGES if git else (*PACKAGES, OWN_PACKAGE)  # a commit says more than a version
    return {
        "versions": {"python": platform.python_version()} | {p: version_of(p) for p in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "boot": _boot(),
        "git": git,
        "cpu": processor(),
        "allocator": _allocator(),
    }


def processor() -> dict[str, Any]:
    """Name, cores, and the machine's memory in bytes."""
    return {"name": _cpu_name(), "cores": os.cpu_count(), "memory_bytes": _memory_bytes()}


def cache_folder() -> Path:
    """The folder of what can be made anew, such as built models; it may not exist yet."""
    return Path(os.environ.get("HARNESS_CACHE", Path.home() / ".cache" / "finetune-harness")).expanduser()


def made_with() -> dict[str, str]:
    """What a comparison made here is computed and drawn by: versions, and the harness's commit in a checkout."""
    versions = {"python": platform.python_version()}
    versions |= {name: v for name in ("numpy", "scipy", "pandas", "matplotlib") if (v := version_of(name))}
    if git := _git():
        versions["harness commit"] = git["commit"][:12] + " with uncommitted changes" * git["dirty"]
    return versions


def busy(seconds: float = 0.2) -> str | None:
    """A sentence if others keep more than half a core busy, of those this process may use; null if not, or off Linux.

    Looks for `seconds`, in which this process sleeps.
    """
    if sys.platform != "linux":
        return None
    before, start = _busy_seconds(), time.monotonic()
    time.sleep(seconds)
    cores = (_busy_seconds() - before) / (time.monotonic() - start)
    if cores <= 0.5:
        return None
    of = len(os.sched_getaffinity(0))
    return f"Other processes keep {cores:.1f} of {of} CPU cores busy: measured times will not be comparable."


def _busy_seconds() -> float:
    """Seconds since the boot that the cores this process may use were busy, summed over them."""
    ours = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in ours:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _allocator() -> dict[str, str]:
    """Of a path in a value only its last part is told: where things lie on this machine is nobody's business."""
    variables = {name: value for name, value in sorted(os.environ.items()) if ALLOCATOR.fullmatch(name)}
    return {name: re.sub(r"[^\s:,;=]*/", "", value) for name, value in variables.items()}


def version_of(package: str) -> str | None:
    """The installed version of the distribution `package`; null if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the harness, and whether the checkout differs from it (results aside); null outside a checkout.

    A checkout of something else, in whose folder the harness is installed, tells nothing of the harness.
    """
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").rstrip("\n")).resolve() != here.parent:
            return None
        # Records and tables change while a sweep writes them; they don't make the code another.
        dirty = git("status", "--porcelain", "--", ":/", ":(exclude,top)results")
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(dirty.strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _boot() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return hashed_boot(boot)


def hashed_boot(boot: str) -> str:
    """What a record says of the boot id `boot`, which itself stays on its machine."""
    return hashlib.sha256(f"finetune-harness {boot}".encode()).hexdigest()[:16]


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
