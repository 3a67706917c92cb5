"""Stands in for the package vllm: what job/worker.py of the plug-in uses of it, by transformers, and what fails there.

STAND_IN_FAULT: when something goes wrong, and what. STAND_IN_NOTES: a file that gets the arguments of LLM as JSON.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace

__version__ = "0.0.1"


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    stop: list
    stop_token_ids: list
    ignore_eos: bool
    skip_special_tokens: bool


class LLM:
    def __init__(self, *, model, dtype, max_model_len, gpu_memory_utilization, trust_remote_code, generation_config):
        told = {name: value for name, value in locals().items() if name != "self"}
        print("INFO loading")  # vllm prints a lot
        if notes := os.environ.get("STAND_IN_NOTES"):
            with open(notes, "w") as file:
                json.dump(told | {"files": sorted(os.listdir(model)), "pid": os.getpid()}, file)
        _go_wrong("loading")
        assert 0 < gpu_memory_utilization < 1
        self._folder, self._dtype, self._most = model, dtype, max_model_len

    def generate(self, prompts, params, use_tqdm):
        bar = use_tqdm(total=len(prompts), desc="Processed prompts")
        if os.environ.get("STAND_IN_FAULT"):
            bar.update(1)
            _go_wrong("writing")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self._net = AutoModelForCausalLM.from_pretrained(self._folder, dtype=getattr(torch, self._dtype)).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        outputs = []
        for prompt, asked in zip(prompts, params, strict=True):
            with torch.inference_mode():
                ids = self._answer(prompt["prompt_token_ids"], asked, torch.tensor)
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)]))
            bar.update(1)
        bar.close()
        return outputs

    def _answer(self, prompt, asked, tensor):
        assert (asked.temperature, asked.ignore_eos) == (0, True)
        if len(prompt) + 1 > self._most:
            raise ValueError(f"The prompt (length {len(prompt)}) is longer than the maximum model length {self._most}.")
        answer, cache, ids = [], None, prompt
        while len(answer) < asked.max_tokens and len(prompt) + len(answer) < self._most:
            out = self._net(input_ids=tensor([ids]), past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, [int(out.logits[0, -1].argmax())]
            answer += ids
            text = self._tokenizer.decode(answer, skip_special_tokens=asked.skip_special_tokens)
            if ids[0] in asked.stop_token_ids or any(stop in text for stop in asked.stop):
                break
        return answer


def _go_wrong(when):
    at, _, what = os.environ.get("STAND_IN_FAULT", "").partition(" ")
    if at != when:
        return
    if what == "hangs":
        time.sleep(600)
    elif what == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exits":
        os._exit(3)
    elif what == "short":
        raise ValueError("Free memory on device cuda:0 (1.0/80.0 GiB) is less than desired GPU memory\nutilization.")
    raise RuntimeError("Unsupported\tconfiguration.\nMore.")
