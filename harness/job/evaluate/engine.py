"""An lm-eval model with `HFLM`'s answers in less time: shared prefixes are computed once, and no slot stays idle.

Requests with a common prefix (a subject's few-shot examples, a question before its choices) form a group. Its prefix
goes through the model once. The remainders follow in rows, many in one sequence without padding, each attending to the
prefix and to itself. Greedy answers are written in slots of one cache, and a slot is reused as soon as its answer ends.
If the numbers would differ, `HFLM` does the work, and `Engine.used` has the reason.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch.nn import functional
from tqdm import tqdm
from transformers import DynamicCache, EosTokenCriteria, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.errors import UserError
from harness.grouping import grouped
from harness.job.evaluate import rows
from harness.job.evaluate.answer_batch import AnswerBatch, until_it_fits
from harness.job.evaluate.answer_writer import AnswerEnd, AnswerWriter
from harness.job.evaluate.decoding import not_plain, written
from harness.job.evaluate.kv_cache import BLOCK, filled_layers
from harness.job.evaluate.row_model import RowModel
from harness.job.evaluate.row_scorer import LogLikelihood, RequestedSequences, RowScorer
from harness.job.evaluate.rows import Segment, Tokens
from harness.job.evaluate.tokenised_once import Request, TokenisedOnce
from harness.job.models.structure import prompted, recurrent
from harness.job.training.attention import PROMPTED

ROW = {"cpu": 512, "cuda": 4096}  # tokens of a row: fewer leave the device idle, more waste work on masked pairs
UNREAD = {"cpu": 1, "cuda": 32}  # rows that are computed before their results are read
LOGIT = 10  # bytes of a logit: as it is computed, in fp32, and its log-probability
CHECKED = 320  # first tokens of the longest request, which are computed both ways
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}  # mean difference in nats, by rounding

logger = logging.getLogger(__name__)


class Engine(TokenisedOnce):
    """`HFLM` that shares prefixes and refills slots if that gives the same numbers.

    used: after scoring, "on", or "off: " and the reason, for "shared_prefix" (log-likelihoods) and
    "continuous_batching" (greedy answers), if such requests came.
    """

    def __init__(self, *args: Any, batch_size: int | AnswerBatch = 1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.batch = batch_size if isinstance(batch_size, AnswerBatch) else AnswerBatch(batch_size, self.device)
        self.used: dict[str, str] = {}
        kind = "cuda" if self.device.type == "cuda" else "cpu"
        self.room, self.unread = ROW[kind], UNREAD[kind]
        self.row_model = RowModel(self.model, self.device, self.mixed_precision_dtype)

    @property
    def batch_size(self) -> int:
        return self.batch.size

    # Log-likelihoods

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[LogLikelihood]:
        """Sums of log-probabilities in nats, and whether greedy decoding gives the same text."""
        sequences = RequestedSequences(requests, self.max_length)
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        self.cut.count(lengths, self.max_length + 1)
        if not self._permitted("shared_prefix", self._obstacle(sequences.tokens)):
            self._fit_unshared([context + continuation for _, context, continuation in requests])
            return self.batch.run(partial(super()._loglikelihood_tokens, requests, disable_tqdm, override_bs))
        answers: dict[int, LogLikelihood] = {}
        pbar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")

        def keep(scored: Iterator[tuple[int, LogLikelihood]]) -> None:
            count = len(answers)
            for index, answer in scored:
                answers[index] = answer
                if (text := requests[index][0]) is not None:  # None for windows of a rolling request
                    self.cache_hook.add_partial("loglikelihood", text, answer)
            pbar.update(len(answers) - count)

        scorer = RowScorer(self.row_model, sequences, self.unread, keep)
        until_it_fits(lambda: scorer.score(answers, self.room), lambda: self._halve(scorer.row))
        pbar.close()
        return [answers[index] for index in range(len(requests))]

    def _halve(self, row: rows.TokenRow) -> bool:
        """Make rows half as long as `row`, if that holds more than one sequence. Returns whether it does."""
        if several := len(row.members) > 1:
            self.room = rows.size(row.segments) // 2
            logger.warning(f"Memory ran out; log-likelihoods are computed in rows of {self.room} tokens.")
        return several

    # Greedy answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers to each context, up to its stop sequences."""
        requests = self.with_room_for_prompts(requests)
        kinds = grouped((repr(request.args[1]), index) for index, request in enumerate(requests))  # by settings
        answers: dict[int, str] = {}
        for indices in kinds.values():
            answers |= zip(indices, self._generate([requests[i] for i in indices], disable_tqdm), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _generate(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """Answers to requests with the same generation settings."""
        kwargs = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        until = handle_stop_sequences(kwargs.pop("until", None), self.tok_decode(self.eot_token_id, False))
        limit = kwargs.pop("max_gen_toks")
        prompts = self.prompts([request.args[0] for request in requests])
        self.cut.count(map(len, prompts), self.max_length - limit)
        if not (obstacle := not_plain(self, kwargs)):
            prompts = [prompt[limit - self.max_length :] for prompt in prompts]
            obstacle = self._obstacle(prompts, limit)
        if not self._permitted("continuous_batching", obstacle):
            self._fit_unshared(prompts, limit)
            return self.batch.run(partial(self._generate_unshared, requests, disable_tqdm))
        if self.batch.chooses:
            self.batch.fit(self._cached_bytes(max(prompts, key=len), limit), len(prompts))
        answers: dict[int, str] = {}
        pbar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")

        def answer() -> None:
            left = [index for index in range(len(prompts)) if index not in answers]
            for at, tokens in self._written([prompts[index] for index in left], until, limit):
                index = left[at]
                answers[index] = postprocess_generated_text(self.tok_decode(tokens), until, None)
                self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
                pbar.update(1)

        self.batch.run(answer)
        pbar.close()
        return [answers[index] for index in range(len(requests))]

    def _generate_unshared(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """As `HFLM`, whose answers so far are lost where memory runs out: then they are not counted."""
        before = self.cut.answers, self.cut.unfinished
        try:
            return super().generate_until(requests, disable_tqdm)
        except Exception:
            self.cut.answers, self.cut.unfinished = before
            raise

    def _written(self, prompts: list[Tokens], until: list[str], limit: int) -> Iterator[tuple[int, list[int]]]:
        """Index of each prompt and the tokens of its answer, as answers end."""
        end = AnswerEnd(self.tokenizer, self.model.generation_config.eos_token_id, until, limit)
        for index, tokens in AnswerWriter(self.row_model, prompts, end, self.batch_size, self.room).answers():
            self.cut.count_answer(end.finished(tokens))
            yield index, tokens

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        """As in `HFLM`, except that a model with virtual tokens answers one by one, greedily."""
        if not prompted(self.model):
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        if generation_kwargs.get("do_sample"):
            raise UserError(f"A task with do_sample=true requires another method: {PROMPTED}.")
        answers, dtype = [], self.mixed_precision_dtype
        for row, attended in zip(context, generation_kwargs["attention_mask"], strict=True):
            ids = row[attended.bool()][None]
            of_text = self.model.generation_config.eos_token_id or self.eot_token_id
            ends: list[StoppingCriteria] = [EosTokenCriteria(of_text)]
            ends += stop_sequences_criteria(self.tokenizer, stop, ids.shape[1], 1)
            with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                answers.append(written(self.model, ids, max_length - context.shape[1], ends)[0, ids.shape[1] :])
        new = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        self.count_answers(new, max_length - context.shape[1], stop)
        return torch.cat([context, new], dim=1)

    # What a sequence takes

    def _cached_bytes(self, prompt: Tokens, more: int) -> int:
        """Bytes of a sequence's keys and values, measured on the begin of `prompt`, and of a token's logits.

        more: tokens after the prompt.
        """
        layers = filled_layers(self.row_model.encode(begin := prompt[: rows.CALL]))
        each = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) // len(begin)
        return each * (len(prompt) + more + BLOCK) + LOGIT * self.model.config.get_text_config().vocab_size

    def _fit_unshared(self, sequences: Collection[list[int] | Tokens], more: int = 0) -> None:
        """Fit stock's batches: it has the logits of all tokens, and keys and values for at most every head."""
        if self.batch.chooses:
            config = self.model.config.get_text_config()
            each = LOGIT * config.vocab_size + 8 * config.num_hidden_layers * config.hidden_size
            self.batch.fit(each * (max(map(len, sequences)) + more), len(sequences))

    # When the numbers would differ

    def _permitted(self, name: str, obstacle: str | None) -> bool:
        self.used[name] = f"off: {obstacle}" if obstacle else "on"
        return obstacle is None

    def _obstacle(self, sequences: Collection[Tokens], more: int = 0) -> str | None:
        """Why prefixes of `sequences`, with `more` tokens after them, can't be shared; None if they can."""
        if self.backend != "causal":
            return "the model has an encoder"
        if recurrent(self.model):
            return "the model keeps a recurrent state"
        if prompted(self.model):
            return PROMPTED
        config = self.model.config.get_text_config(decoder=True)
        longest = max(sequences, key=len)
        for layer in DynamicCache(config=config).layers:
            window = layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else math.inf
            if len(longest) + more > window:
                return f"{len(longest) + more} tokens exceed the attention's window of {window}"
            if window == math.inf and type(layer) is not DynamicLayer:
                return f"the cache has a {type(layer).__name__}"
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = {kind.get("rope_type") for kind in (rope, *rope.values()) if isinstance(kind, dict)}
        if growing := kinds & {"dynamic", "longrope"}:
            return f"positions depend on a sequence's length ({growing.pop()})"
        if "fl" in (kind := self.model.config._attn_implementation):  # flash_attention_*, flex_attention
            return f"{kind} takes no mask of pairs of tokens"
        return self._disagreement(longest[:CHECKED], in_row=not more)

    def _disagreement(self, tokens: Tokens, in_row: bool = True) -> str | None:
        """How two remainders of `tokens` after a shared prefix differ from a plain pass; None if they agree.

        in_row: whether to check a prefix in the same row too, which generation does not use.
        """
        head, tail = tokens[: -rows.CALL], tokens[-rows.CALL :]
        row = [Segment(tail, len(head), 1)] * 2
        try:
            ways = [self.row_model.forward(row, self.row_model.encode(head) if head else None)[0]]
            if head and in_row:
                inside = [dataclasses.replace(segment, parent=0) for segment in row]
                ways.append(self.row_model.forward([Segment(head, 0, 0), *inside], None)[0])
        except Exception as error:  # a model may refuse such masks, positions or caches in many ways
            return f"the model raises {type(error).__name__} on shared prefixes"
        plain = self._model_call(torch.tensor([tokens], device=self.device))[0, -1]
        *shared, alone = (functional.log_softmax(x.float(), dim=-1) for x in (*(way[1] for way in ways), plain))
        # Weighted by probability: rounding alone can move an unlikely token by half a nat.
        difference = max(float((alone.exp() * (each - alone).abs()).sum()) for each in shared)
        if difference <= TOLERANCE[plain.dtype]:
            return None
        return f"shared prefixes move a log-probability by {difference:.2g} nats"
