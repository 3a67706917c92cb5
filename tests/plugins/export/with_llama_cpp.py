"""llama.cpp on a GGUF file, against the model that was written to it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

LLAMA_CPP = """
import json, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx = sys.argv[1], 512
server = xllamacpp.Server(parameters)
asked = [{"prompt": prompt, "max_tokens": 24, "temperature": 0} for prompt in sys.argv[2:]]
print(json.dumps([server.handle_completions(each) for each in asked]))
"""


PROMPTS = ["Question: Tom has 12 apples and buys 345 more.\nAnswer:", "It's  nÄive: 3.5\n\n", "x"]
needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")


def continues_as(net, tokenizer, file):
    """That llama.cpp, in a process of its own, reads and continues PROMPTS by the GGUF `file` as `net` does.

    Its threads write to standard error until the very end.
    """
    command = [sys.executable, "-c", LLAMA_CPP, str(file), *PROMPTS]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    for prompt, answer in zip(PROMPTS, told, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        written = net.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        assert answer["usage"]["prompt_tokens"] == ids["input_ids"].shape[1]
        expected = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer["choices"][0]["text"] == expected
