"""Writes greedy answers with vLLM. Run by the python of vLLM's own environment, which has nothing of the harness.

Standard input: one line of JSON, the request; then it stays open for as long as the harness wants answers.

    model: folder of the weights and the tokenizer. dtype, max_model_len, gpu_memory_utilization, trust_remote_code:
    vLLM's settings of these names. prompts: for each answer an object with
        tokens: ids of the prompt. stop: texts that end the answer. stop_tokens: ids that do. limit: its most tokens.

Standard output: events, each a line of JSON.

    {"event": "loaded", "version": vLLM's}
    {"event": "answered"} after each answer
    {"event": "written", "tokens": for each prompt the answer's ids, with the one that ended it} is the last one, or
    {"event": "failed", "kind": of the exception, "reason": its message}

What vLLM prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any


def main() -> None:
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=events, flush=True)

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_harness, daemon=True).start()
    try:
        write(request, send)
    except Exception as error:
        traceback.print_exc()  # before the event, because the harness kills this process when it has read that
        send("failed", kind=type(error).__name__, reason=str(error))
        sys.exit(1)


def write(request: dict[str, Any], send: Callable[..., None]) -> None:
    import vllm
    from tqdm import tqdm

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            send("answered")
            return super().update(n)

    llm = vllm.LLM(
        model=request["model"],
        dtype=request["dtype"],
        max_model_len=request["max_model_len"],
        gpu_memory_utilization=request["gpu_memory_utilization"],
        trust_remote_code=request["trust_remote_code"],
        generation_config="vllm",  # the model's own file may ask for sampling
    )
    send("loaded", version=vllm.__version__)
    prompts = [{"prompt_token_ids": prompt["tokens"]} for prompt in request["prompts"]]
    greedy = [
        vllm.SamplingParams(
            temperature=0.0,
            max_tokens=prompt["limit"],
            stop=prompt["stop"],
            stop_token_ids=prompt["stop_tokens"],
            ignore_eos=True,  # stop_tokens has what ends an answer
            skip_special_tokens=False,  # they may be in a text that ends an answer
        )
        for prompt in request["prompts"]
    ]
    outputs = llm.generate(prompts, greedy, use_tqdm=Bar)
    send("written", tokens=[list(output.outputs[0].token_ids) for output in outputs])


def end_with_harness() -> None:
    """End this process, and those that it started, when the harness closes standard input or is gone."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
