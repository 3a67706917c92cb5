"""Scoring on a GPU that is not there: what enters it from the host, and how it attends.

Standard output, as JSON, by what is asked for ("choices", "answers"):

    entered: sizes of the tensors that operations on the GPU took from the CPU. mixed: operations that took tensors of
    both. attention: operations of attention by kernel and dtype. read: tensors that were read back.
    used: which of the engine's speed-ups were on.
"""

from __future__ import annotations

import json
import random
from typing import Any
from unittest import mock

import torch
from lm_eval.api.instance import Instance
from steps import own_output, pretend, value
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig

from harness.job.evaluate.engine import Engine
from harness.job.measure.live_memory import LiveBytes
from harness.job.models import embedded, loading
from harness.job.predict.fake_tensors import materialise
from harness.job.training import attention
from harness.settings import ModelSettings

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = ("the", "cat", "sees", "a", "river", "under", "nine", "trees", "because", "dogs", "eat")
aten = torch.ops.aten


class Crossings(LiveBytes):
    """Names what passes between host and GPU."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.entered: list[list[int]] = []
        self.mixed: set[str] = set()
        self.read = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = super().__torch_dispatch__(function, types, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda"]
        from_host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        if there and from_host:
            self.entered += [list(tensor.shape) for tensor in from_host]
            if len(from_host) < len(tensors):
                self.mixed.add(str(function))
        left = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu"]
        if function is aten._local_scalar_dense.default or left:
            self.read += any(tensor.device.type == "cuda" for tensor in tensors)
        return out


def words(generator: random.Random, count: int) -> str:
    return " ".join(generator.choices(WORDS, k=count))


def requests() -> dict[str, list[Instance]]:
    """Subjects with their shots, one that exceeds a row, and questions with shots that are to be answered."""
    generator, choices, answers = random.Random(0), [], []
    for shots, questions in ((40, 3), (900, 40), (0, 1)):
        examples = words(generator, shots)
        for _ in range(questions):
            context = f"{examples}\nQuestion: {words(generator, generator.randint(60, 90))}\nAnswer:"
            choices += [Instance("loglikelihood", {}, (context, answer), 0) for answer in (" A", " a long answer")]
    examples, settings = words(generator, 30), {"until": ["\n"], "max_gen_toks": 4}
    for i in range(6):
        context = f"{examples if i % 3 else ''}{words(generator, 9)}"
        answers.append(Instance("generate_until", {}, (context, settings), 0))
    return {"choices": choices, "answers": answers}


def scored() -> dict[str, dict[str, Any]]:
    found, tokenizer = {}, loading.tokenizer(ModelSettings(path="embedded:tiny"))
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, **SIZES)
    asked = requests()
    values = mock.patch.dict(op_implementations_dict, {aten._local_scalar_dense.default: value})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with FakeTensorMode():
        materialise(model, torch.device("cuda:0"))
    attention.enable(model)
    for kind, instances in asked.items():
        with FakeTensorMode(allow_non_fake_inputs=True), values:
            engine = Engine(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=2048)
            engine._disagreement = lambda *_, **__: None  # which is a matter of values
            with Crossings(torch.device("cuda:0")) as seen:
                if kind == "choices":
                    engine.loglikelihood(instances, disable_tqdm=True)
                else:
                    engine.generate_until(instances, disable_tqdm=True)
        found[kind] = {
            "entered": seen.entered,
            "mixed": sorted(seen.mixed),
            "attention": seen.attention,
            "read": seen.read,
            "used": engine.used,
        }
    return found


if __name__ == "__main__":
    output = own_output()
    embedded.folder("tiny")  # built where tensors have values
    pretend()
    torch.Tensor.pin_memory = lambda tensor: tensor  # there is no driver to pin it for
    with sdpa_kernel(SDPBackend.MATH):  # a CUDA build of torch would ask the driver which of its kernels can run
        json.dump(scored(), output)
