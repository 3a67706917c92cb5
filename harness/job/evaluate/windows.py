"""Log-likelihoods of whole documents, longer ones in windows, as lm-eval's perplexity tasks have them.

A window has at most as many tokens as the request says, and as the model has room for. Every token of a document is
predicted once: the first from the token that begins a text (of tokenizers without one: that ends it), the first of each
further window from the one before it. The last window reaches back into what was predicted before, to be full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.job.evaluate.cut_requests import CutRequests
from harness.settings import HELD_OUT

KIND = "loglikelihood_rolling"  # lm-eval's name of these requests
Window = tuple[None, list[int], list[int]]


def log_likelihoods(lm: TemplateLM, requests: Sequence[Instance], room: int, disable_tqdm: bool) -> list[float]:
    """The log-likelihood in nats of the text of each request, whose arguments are a text and tokens of a window.

    room: tokens of a window at most, whatever the request says; lm-eval's own requests say nothing.
    """
    windows: list[Window] = []
    ends: list[int] = []  # of each request's windows
    for request in requests:
        text, *sizes = request.args
        tokens = lm.tok_encode(text)
        if tokens[:1] == [lm.prefix_token_id]:  # from which the first is predicted, in any case
            tokens = tokens[1:]
        cut = get_rolling_token_windows(tokens, lm.prefix_token_id, min([room, *sizes]), context_len=1)
        windows += [(None, *make_disjoint_window(window)) for window in cut]
        ends.append(len(windows))
    answers = [value for value, _greedy in lm._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)]
    values = [sum(answers[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    for request, value in zip(requests, values, strict=True):
        lm.cache_hook.add_partial(KIND, request.args, value)
    return values


class WindowedModel(HFLM):
    """`HFLM` with windows of the length that a request says, and room for each prompt.

    cut: the requests that lost their beginning, and the answers that lost their end.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.cut = CutRequests()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods in nats of whole documents."""
        # lm-eval's cache takes windows of the same tokens for one, also where one of them predicts fewer of these.
        self.logits_cache, before = False, self.logits_cache
        try:
            return log_likelihoods(self, requests, self.max_length, disable_tqdm)
        finally:
            self.logits_cache = before

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        whole: torch.Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        self.count_answers(whole[:, context.shape[1] :], max_length - context.shape[1], stop)
        return whole

    def count_answers(self, answers: torch.Tensor, limit: int, stop: list[str]) -> None:
        """Count the rows of `answers`, token ids that are padded after an answer's end, at most `limit` of each."""
        eos = self.model.generation_config.eos_token_id
        ends = {*(eos if isinstance(eos, list) else [eos]), self.eot_token_id}
        for row in answers.tolist():
            finished = len(row) < limit or not ends.isdisjoint(row)
            self.cut.count_answer(finished or any(text in self.tok_decode(row, False) for text in stop))

    def with_room_for_prompts(self, requests: list[Instance]) -> list[Instance]:
        """`requests` for written answers. No answer to one's own data gets more than half of the model's context.

        Answers to lm-eval's tasks get as much as these say, or half, where they would fill the context.
        """
        return [self._with_room_for_prompt(request) for request in requests]

    def _with_room_for_prompt(self, request: Instance) -> Instance:
        text, settings = request.args
        kwargs, half = normalize_gen_kwargs(settings, self.max_gen_toks), self.max_length // 2
        if kwargs["max_gen_toks"] <= (half if request.task_name == HELD_OUT else self.max_length - 1):
            return request
        return replace(request, arguments=(text, kwargs | {"max_gen_toks": half}))
