"""What a record says about where it ran: versions, commit, processor. The job adds the device."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes", "galore-torch"),
    *("lm_eval", "datasets", "tokenizers", "numpy", "hydra-core"),
)


def describe() -> dict[str, Any]:
    """Versions (null where absent), platform, git commit and dirtiness, processor, its cores, memory in bytes."""
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "git": _git(),
        "cpu": {"name": _cpu_name(), "cores": os.cpu_count(), "memory_bytes": _memory_bytes()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the harness, and whether the checkout differs from it (results aside); null outside a checkout."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        # Records and tables change while a sweep writes them; they don't make the code another.
        dirty = git("status", "--porcelain", "--", ":/", ":(exclude,top)results")
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(dirty.strip())}
    except (OSError, subprocess.SubprocessError):
        return None


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
