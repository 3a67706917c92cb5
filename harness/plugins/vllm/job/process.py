"""Has vLLM write answers in a process and an environment of its own, since vLLM pins its own torch.

worker.py is the other end, and describes what crosses. It ends when this process does, whatever ends it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from harness import redact
from harness.errors import UserError
from harness.job.ended import CellEnded
from harness.record import VllmUsage

WORKER = Path(__file__).with_name("worker.py")
FINDS = "from importlib.util import find_spec; print(find_spec('vllm') is not None)"
FOUND_WITHIN = 60.0  # seconds that a python may take to say whether it has vllm
LOADED_WITHIN = 1800.0  # seconds that vLLM may take to load and compile the model
ANSWERED_WITHIN = 3600.0  # seconds that vLLM may take from one answer to the next
# What vLLM and torch say when memory does not suffice.
MEMORY = re.compile(
    r"out of memory|can't allocate memory|memory for the cache blocks|less than (desired|requested)"
    r"|larger than the available KV cache"
)
# vLLM computes in the process that we start, so that what fails is raised there; nothing is asked of the network.
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


class VllmFailed(CellEnded):
    """vLLM did not answer. The message is one sentence."""


@dataclass(frozen=True)
class Prompt:
    """tokens: ids. stop: texts that end the answer. stop_tokens: ids that end it. limit: its most tokens."""

    tokens: Sequence[int]
    stop: Sequence[str]
    stop_tokens: Sequence[int]
    limit: int


@functools.cache  # asked for each cell of a sweep
def check(python: str) -> None:
    """Raise UserError if `python` is not that of an environment with vllm."""
    try:
        asked = subprocess.run([python, "-I", "-c", FINDS], capture_output=True, text=True, timeout=FOUND_WITHIN)
    except OSError as error:
        raise UserError(f"eval.vllm_python must be a python that can be run, got {python}: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"eval.vllm_python must be a python; {python} ran for {FOUND_WITHIN:g} seconds without an answer."
        ) from None
    found = asked.stdout.strip()
    if asked.returncode or found not in ("True", "False"):
        raise UserError(f"eval.vllm_python must be a python, and {python} does not answer as one.")
    if found == "False":
        raise UserError(f"eval.vllm_python requires the package vllm: {python} -m pip install vllm.")


class VllmWriter:
    """vLLM for one scoring.

    python: of the environment with vllm. weights: folder of the model and its tokenizer. dtype: to compute in, such as
    float32. usage: what the answers took; None before there are any.
    """

    def __init__(self, python: str, weights: Path, dtype: str, trust_remote_code: bool):
        self._python = python
        self._model = {"model": str(weights), "dtype": dtype, "trust_remote_code": trust_remote_code}
        self.usage: VllmUsage | None = None

    def write(
        self, prompts: Sequence[Prompt], memory_share: float, answered: Callable[[], None] | None = None
    ) -> list[list[int]]:
        """Greedy answers to `prompts`, as ids, each with the one that ended it. Raises VllmFailed.

        memory_share: of the device's memory, for weights and cache together. answered: called after each answer.
        """
        request = self._model | {
            "max_model_len": max(len(prompt.tokens) + prompt.limit for prompt in prompts),
            "gpu_memory_utilization": memory_share,
            "prompts": [asdict(prompt) for prompt in prompts],
        }
        started = time.monotonic()
        with _worker(self._python) as worker:
            with contextlib.suppress(BrokenPipeError):  # then its exit status tells
                worker.requests.write(json.dumps(request).encode() + b"\n")
                worker.requests.flush()
            events = {}
            for event in _events(worker):
                events[event["event"]] = event | {"at": time.monotonic()}
                if event["event"] == "answered" and answered is not None:
                    answered()
                if "written" in events:
                    break
        loaded, written = events["loaded"], events["written"]
        self.usage = VllmUsage(
            version=loaded["version"],
            answers=len(prompts),
            read=sum(len(prompt.tokens) for prompt in prompts),
            written=sum(map(len, written["tokens"])),
            load_seconds=loaded["at"] - started,
            seconds=written["at"] - loaded["at"],
        )
        return written["tokens"]


@dataclass(frozen=True)
class RunningWorker:
    """The process of worker.py, and the pipes to it and from it."""

    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    events: IO[bytes]


@contextlib.contextmanager
def _worker(python: str) -> Iterator[RunningWorker]:
    try:
        process = subprocess.Popen(
            [python, "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=SETTINGS | os.environ,
            start_new_session=True,
        )
    except OSError as error:
        raise VllmFailed(f"eval.vllm_python can't be run: {error.strerror}.") from error
    assert process.stdin is not None  # pipes, as asked for
    assert process.stdout is not None
    try:
        yield RunningWorker(process, process.stdin, process.stdout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _events(worker: RunningWorker) -> Iterator[dict[str, Any]]:
    """What `worker` sends. Raises VllmFailed when it fails, ends or stays silent."""
    doing, within, rest = "loaded the model", LOADED_WITHIN, b""
    while True:
        if not select.select([worker.events], [], [], within)[0]:
            raise VllmFailed(f"vLLM gave no sign of life for {within:g} seconds while it {doing}.")
        part = os.read(worker.events.fileno(), 2**20)
        if not part:
            raise VllmFailed(f"vLLM's process {_death(worker.process.wait())} while it {doing}.")
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] == "loaded":
                doing, within = "wrote answers", ANSWERED_WITHIN
            elif event["event"] == "failed":
                raise VllmFailed(_failure(event, doing))
            yield event


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    hint = " (the kernel does so when memory runs out)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"


def _failure(event: dict[str, Any], doing: str) -> str:
    words = " ".join(redact.clean(f"{event['kind']}: {event['reason']}").split())[:300].rstrip(".")
    short = event["kind"] == "MemoryError" or MEMORY.search(event["reason"])
    return f"vLLM {'ran out of memory' if short else 'failed'} while it {doing}: {words}."
