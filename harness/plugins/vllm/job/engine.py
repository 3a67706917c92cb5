"""Scoring with answers by vLLM (`eval.engine=vllm`): log-likelihoods are computed by the ordinary engine.

vLLM reads the model from disk, and gets the same token ids as the ordinary engine. It has kernels of its own, so that
of two tokens that are about as likely it may take the other: a study should use one engine for all cells.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import Callable, Iterator

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from peft import PeftModel
from torch import nn

from harness import record
from harness.errors import UserError
from harness.grouping import grouped
from harness.job.evaluate.answer_engines import ScoredModel
from harness.job.evaluate.answer_writer import AnswerEnd
from harness.job.evaluate.decoding import not_plain
from harness.job.evaluate.windows import WindowedModel
from harness.job.measure.device_memory import free_share
from harness.job.models import saved
from harness.job.models.structure import inner
from harness.plugins.vllm.job import process
from harness.plugins.vllm.job.process import Prompt, VllmFailed, VllmWriter
from harness.protocol import LocalPaths
from harness.record import VllmUsage
from harness.settings import Settings

# Of the memory that is free. A GPU's context takes some; on a CPU other processes live in the rest.
TAKEN = {"cuda": 0.9, "cpu": 0.5}


class Vllm:
    """The engine eval.engine=vllm."""

    def check(self, settings: Settings, local: LocalPaths) -> None:
        """Raise UserError if vLLM can't answer for a cell of these settings, or there is no python that has vllm."""
        if "quantization_config" in settings.method.load:
            raise UserError(
                f"eval.engine=vllm requires a base that is not quantised, and method={settings.method.name} quantises "
                "it: merged weights would be another model. Use eval.engine=auto."
            )
        process.check(_required(local.vllm_python))

    def writer(self, model: ScoredModel, local: LocalPaths) -> VllmAnswers:
        """vLLM with the weights of `model`: those in its folder, else saved beside the record for as long as it is
        scored. Raises VllmFailed for an adapter that is not merged, and UserError without a python.
        """
        python, net, whole = _required(local.vllm_python), model.net, model.whole
        if whole is None:
            if isinstance(net, PeftModel):
                raise VllmFailed("eval.engine=vllm requires merged weights, and the adapter could not be merged.")
            whole = record.scored_model(model.path)
            shutil.rmtree(whole, ignore_errors=True)  # of a process that was killed
            saved.write_whole(net, model.tokenizer, whole)
        dtype = "bfloat16" if model.bf16 else str(inner(net).dtype).removeprefix("torch.")
        return VllmAnswers(VllmWriter(python, whole, dtype, model.cell.settings.model.trust_remote_code))


def _required(python: str | None) -> str:
    if python is None:
        raise UserError(
            "eval.engine=vllm requires eval.vllm_python=, the python of an environment with vllm; `retry` and `score` "
            "take it by --vllm-python."
        )
    return python


class VllmAnswers:
    """The answers of one scoring, by `writer`."""

    def __init__(self, writer: VllmWriter):
        self._writer = writer

    @property
    def usage(self) -> VllmUsage | None:
        return self._writer.usage

    def beside(self, ordinary: WindowedModel, answered: Callable[[], None] | None) -> tuple[VllmEngine, dict[str, str]]:
        engine = VllmEngine(ordinary, self._writer, answered)
        return engine, engine.used


class VllmEngine(LM):
    """Answers of `writer` to what is to be generated greedily; `ordinary` answers everything else.

    answered: called after each answer of `writer`. used: for "vllm" "on", or "off: " and why `ordinary` generated
    instead, if anything was to be generated.
    """

    def __init__(self, ordinary: WindowedModel, writer: VllmWriter, answered: Callable[[], None] | None = None):
        super().__init__()
        self._ordinary, self._writer, self._answered = ordinary, writer, answered
        self.used: dict[str, str] = {}

    def loglikelihood(self, requests: list[Instance], **how: bool) -> list[tuple[float, bool]]:
        return self._ordinary.loglikelihood(requests, **how)

    def loglikelihood_rolling(self, requests: list[Instance], **how: bool) -> list[float]:
        return self._ordinary.loglikelihood_rolling(requests, **how)

    @property
    def tokenizer_name(self) -> str:
        return self._ordinary.tokenizer_name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._ordinary.chat_template(chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._ordinary.apply_chat_template(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers to each context, up to its stop sequences. Raises VllmFailed."""
        requests = self._ordinary.with_room_for_prompts(requests)
        kinds = grouped((repr(request.args[1]), index) for index, request in enumerate(requests))  # by settings
        answers: dict[int, str] = {}
        prompts: dict[int, Prompt] = {}
        for members in kinds.values():
            some = [requests[index] for index in members]
            kwargs = normalize_gen_kwargs(some[0].args[1], self._ordinary.max_gen_toks)
            until = handle_stop_sequences(kwargs.pop("until", None), self._decode([self._ordinary.eot_token_id], False))
            limit = kwargs.pop("max_gen_toks")
            if obstacle := not_plain(self._ordinary, kwargs):
                self.used["vllm"] = f"off: {obstacle}"
                answers |= zip(members, self._ordinary.generate_until(some, disable_tqdm), strict=True)
            else:
                prompts |= zip(members, (self._prompt(request.args[0], until, limit) for request in some), strict=True)
        if prompts:
            self.used.setdefault("vllm", "on")
            on = self._ordinary.device
            with _freed(self._ordinary.model, on):
                share = TAKEN[on.type] * free_share(on)
                written = self._writer.write(list(prompts.values()), share, self._answered)
            for (index, prompt), tokens in zip(prompts.items(), written, strict=True):
                self._ordinary.cut.count_answer(len(tokens) < prompt.limit or self._end(prompt).finished(tokens))
                answers[index] = postprocess_generated_text(self._decode(tokens), list(prompt.stop), None)
        return [answers[index] for index in range(len(requests))]

    def _prompt(self, context: str, until: list[str], limit: int) -> Prompt:
        """As the ordinary engine encodes `context`, and ends an answer."""
        lm = self._ordinary
        whole, _ = lm.tok_batch_encode([context], "left", None, lm.truncation)
        ids, room = whole[0].tolist(), lm.max_length - limit
        lm.cut.count([len(ids)], room)
        eos = lm.model.generation_config.eos_token_id
        ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return Prompt(ids[-room:], until, ends, limit)

    def _end(self, prompt: Prompt) -> AnswerEnd:
        return AnswerEnd(self._ordinary.tokenizer, list(prompt.stop_tokens), list(prompt.stop), prompt.limit)

    def _decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return self._ordinary.tok_decode(tokens, skip_special_tokens)


@contextlib.contextmanager
def _freed(model: nn.Module, on: torch.device) -> Iterator[None]:
    """Leaves the memory of the CUDA device `on` to others meanwhile; `model` waits in the host's memory."""
    if on.type != "cuda":
        yield
        return
    with torch.inference_mode(False):  # which would not let tensors be replaced
        model.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        with torch.inference_mode(False):
            model.to(on)
