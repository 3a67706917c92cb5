"""An lm-eval model with `HFLM`'s answers in less time: shared prefixes are computed once, and no slot stays idle.

Requests with a common prefix (a subject's few-shot examples, a question before its choices) form a group. Its prefix
goes through the model once. The remainders follow in rows, many in one sequence without padding, each attending to the
prefix and to itself. Greedy answers are written in slots of one cache, and a slot is reused as soon as its answer ends.
If the numbers would differ, `HFLM` does the work, and `Engine.used` has the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections import defaultdict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch.nn import functional
from tqdm import tqdm
from transformers import DynamicCache, EosTokenCriteria, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from harness.errors import UserError
from harness.job.evaluate import rows
from harness.job.evaluate.answer_batch import AnswerBatch, until_it_fits
from harness.job.evaluate.decoding import cache_keyword, not_plain, written
from harness.job.evaluate.kv_cache import BLOCK, Lent, Slots, filled_layers
from harness.job.evaluate.rows import PlacedRow, Segment, Tokens
from harness.job.evaluate.tokenised_once import Request, TokenisedOnce
from harness.job.models.structure import prompted
from harness.job.training import attention
from harness.job.training.attention import PROMPTED, SequenceRow

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
        self.kernels = self._kernels()

    @property
    def batch_size(self) -> int:
        return self.batch.size

    # Log-likelihoods

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Sums of log-probabilities in nats, and whether greedy decoding gives the same text."""
        asked: dict[Tokens, list[int]] = defaultdict(list)  # choices that differ in their last token only are one
        for index, (_, context, continuation) in enumerate(requests):
            asked[tuple((context + continuation)[-(self.max_length + 1) :][:-1])].append(index)
        _tell_cut([len(context) + len(continuation) for _, context, continuation in requests], self.max_length + 1)
        if not self._permitted("shared_prefix", self._obstacle(asked)):
            self._fit_unshared([context + continuation for _, context, continuation in requests])
            return self.batch.run(partial(super()._loglikelihood_tokens, requests, disable_tqdm, override_bs))
        answers: dict[int, tuple[float, bool]] = {}
        pbar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")
        row = rows.TokenRow([], [])  # that is computed

        def answer() -> None:
            """Answer what is left, in rows of `room` tokens."""
            nonlocal row
            left = [sequence for sequence, indices in asked.items() if indices[0] not in answers]
            wanted = [max(len(requests[index][2]) for index in asked[sequence]) for sequence in left]
            order: list[int] = []  # requests, and of each of their tokens what is on the device
            likely: list[torch.Tensor] = []
            greedy: list[torch.Tensor] = []

            def read() -> None:
                """Read what is on the device, which it is waited for."""
                lengths = [len(requests[index][2]) for index in order]
                tokens = (torch.cat(parts).cpu().split(lengths) for parts in (likely, greedy))
                for index, each, same in zip(order, *tokens, strict=True):
                    answers[index] = (float(each.sum()), bool(same.all()))
                    if (text := requests[index][0]) is not None:  # None for windows of a rolling request
                        self.cache_hook.add_partial("loglikelihood", text, answers[index])
                pbar.update(len(order))
                order.clear()
                likely.clear()
                greedy.clear()

            head: Tokens = ()
            prefix: DynamicCache | None = None
            for number, row in enumerate(rows.packed(left, wanted, self.room), start=1):
                if row.prefix != head:
                    head, prefix = row.prefix, self._encoded(row.prefix) if row.prefix else None
                ends = itertools.accumulate(wanted[member] for member in row.members)
                tokens: list[int] = []
                places: list[int] = []
                for member, end in zip(row.members, ends, strict=True):
                    for index in asked[left[member]]:
                        continuation = requests[index][2]
                        order.append(index)
                        tokens += continuation
                        places += range(end - len(continuation), end)
                logits, _, (at, said) = self._forward(row.segments, prefix, places, tokens)
                probabilities = functional.log_softmax(logits.float(), dim=-1)
                likely.append(probabilities[at, said])
                greedy.append(probabilities.argmax(dim=-1)[at] == said)
                if number % self.unread == 0:
                    read()
            if order:
                read()

        until_it_fits(answer, lambda: self._halve(row))
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
        kinds: dict[str, list[int]] = defaultdict(list)  # by generation settings
        for index, request in enumerate(requests):
            kinds[repr(request.args[1])].append(index)
        answers: dict[int, str] = {}
        for indices in kinds.values():
            answers |= zip(indices, self._generate([requests[i] for i in indices], disable_tqdm), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _generate(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        """Answers to requests with the same generation settings."""
        kwargs = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        until = handle_stop_sequences(kwargs.pop("until", None), self.tok_decode(self.eot_token_id, False))
        limit = kwargs.pop("max_gen_toks")
        prompts: list[Tokens] = []
        if not (obstacle := not_plain(self, kwargs, limit)):
            prompts = self.prompts([request.args[0] for request in requests])
            _tell_cut(list(map(len, prompts)), self.max_length - limit)
            prompts = [prompt[limit - self.max_length :] for prompt in prompts]
            obstacle = self._obstacle(prompts, limit)
        if not self._permitted("continuous_batching", obstacle):
            self._fit_unshared(prompts or [self.tok_encode(request.args[0]) for request in requests], limit)
            return self.batch.run(partial(super().generate_until, requests, disable_tqdm))
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

    def _written(self, prompts: list[Tokens], until: list[str], limit: int) -> Iterator[tuple[int, list[int]]]:
        """Index of each prompt and the tokens of its answer, as answers end."""
        eos = self.model.generation_config.eos_token_id
        last = set(eos) if isinstance(eos, list) else {eos}
        # As in lm-eval: generated tokens of a text may differ from its encoding.
        looked_at = 2 + max(len(self.tokenizer.encode(text, add_special_tokens=False)) for text in until)
        waiting = deque((prompts[m][:n], m) for n, group in rows.grouped([p[:-1] for p in prompts]) for m in group)
        slots = Slots(self.batch_size, self.device)
        writing: list[tuple[int, list[int]]] = []  # in the order of their slots
        head: Tokens = ()
        prefix: DynamicCache | None = None
        only = torch.zeros(1, dtype=torch.long, device=self.device)

        def ended(answer: list[int]) -> bool:
            if len(answer) >= limit or answer[-1] in last:
                return True
            end = self.tokenizer.decode(answer[-looked_at:])
            return any(text in end for text in until)

        def appended(logits: torch.Tensor) -> Iterator[tuple[int, list[int]]]:
            """Append the likeliest token to the last answers; yields answers that end, and frees their slots."""
            tokens = logits.argmax(dim=-1).tolist()
            for slot in reversed(range(len(writing) - len(tokens), len(writing))):
                index, answer = writing[slot]
                answer.append(tokens.pop())
                if ended(answer):
                    yield index, answer
                    slots.drop(slot)
                    writing[slot] = writing[-1]
                    writing.pop()

        while waiting or writing:
            while waiting and len(writing) < self.batch_size:
                if waiting[0][0] != head:
                    head = waiting[0][0]
                    prefix = self._encoded(head) if head else None
                row: list[Segment] = []
                while waiting and waiting[0][0] == head and len(writing) < self.batch_size:
                    tail = prompts[waiting[0][1]][len(head) :]
                    if row and rows.size(row) + len(tail) > self.room:
                        break
                    row.append(Segment(tail, len(head), 1))
                    writing.append((waiting.popleft()[1], []))
                logits, new, _ = self._forward(row, prefix)
                slots.fill(prefix, new, [len(segment.tokens) for segment in row])
                yield from appended(logits)
            if writing:
                ids, ends = rows.uploaded([[answer[-1] for _, answer in writing], slots.lengths], self.device)
                positions = slots.extend(ends)
                mask = (torch.arange(max(slots.lengths), device=self.device) <= positions)[:, None, None]
                yield from appended(self._logits(ids[:, None], positions, mask, only, slots)[:, 0])

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
            ends: list[StoppingCriteria] = [EosTokenCriteria(self.eot_token_id)]
            ends += stop_sequences_criteria(self.tokenizer, stop, ids.shape[1], 1)
            with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                answers.append(written(self.model, ids, max_length - context.shape[1], ends)[0, ids.shape[1] :])
        new = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context, new], dim=1)

    # The model

    def _encoded(self, prefix: Tokens) -> DynamicCache:
        return self._forward([Segment(prefix, 0, 0)], None)[1]

    def _forward(
        self, segments: list[Segment], prefix: DynamicCache | None, *extra: list[int]
    ) -> tuple[torch.Tensor, DynamicCache, list[torch.Tensor]]:
        """Logits at the wanted positions (positions, vocabulary), the cache of the new tokens, and `extra` placed."""
        row = rows.placed(segments, self.device, *extra)
        cache = Lent(prefix) if prefix else DynamicCache()
        with self._attending(segments, row, prefix.get_seq_length() if prefix else 0) as mask:
            return self._logits(row.ids, row.positions, mask, row.keep, cache)[0], cache, row.extra

    @contextmanager
    def _attending(self, segments: list[Segment], row: PlacedRow, before: int) -> Iterator[torch.Tensor | None]:
        """A context in which the model's attention keeps apart what `row` does; yields the mask for where it can't.

        before: tokens of the prefix.
        """
        lengths = tuple(len(segment.tokens) for segment in segments)
        apart = self.kernels == "cuda" or (self.kernels == "cpu" and all(s.parent is None for s in segments))
        if not apart or not attention.within_window(self.model, before + max(lengths)):
            yield row.mask(before) if before or len(segments) > 1 else None
            return
        with attention.over(row.sequences(before) if self.kernels == "cuda" else SequenceRow(lengths, before, None)):
            yield None

    def _kernels(self) -> Literal["cpu", "cuda"] | None:
        """Whose attention keeps the segments of a row apart; None if that takes masks. CUDA's computes in 16 bits."""
        kind = self.model.config._attn_implementation
        if kind == attention.ON_CUDA:
            return "cuda" if (self.mixed_precision_dtype or self.model.dtype) in attention.HALF else None
        return "cpu" if kind == attention.NAME and self.device.type == "cpu" else None

    def _logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        keep: torch.Tensor,
        cache: DynamicCache,
    ) -> torch.Tensor:
        """Logits at the indices `keep` of each row of `ids`: (rows, indices, vocabulary).

        mask: which keys each query attends to (rows, 1, queries, keys); None: causal.
        """
        if mask is not None and self.model.config._attn_implementation == "eager":
            mask = torch.where(mask, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
        dtype = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                logits_to_keep=keep,
                use_cache=True,
                **{cache_keyword(self.model): cache},
            ).logits

    # What a sequence takes

    def _cached_bytes(self, prompt: Tokens, more: int) -> int:
        """Bytes of a sequence's keys and values, measured on the begin of `prompt`, and of a token's logits.

        more: tokens after the prompt.
        """
        layers = filled_layers(self._encoded(begin := prompt[: rows.CALL]))
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
        if getattr(self.model, "_is_stateful", False):
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
            ways = [self._forward(row, self._encoded(head) if head else None)[0]]
            if head and in_row:
                inside = [dataclasses.replace(segment, parent=0) for segment in row]
                ways.append(self._forward([Segment(head, 0, 0), *inside], None)[0])
        except Exception as error:  # a model may refuse such masks, positions or caches in many ways
            return f"the model raises {type(error).__name__} on shared prefixes"
        plain = self._model_call(torch.tensor([tokens], device=self.device))[0, -1]
        *shared, alone = (functional.log_softmax(x.float(), dim=-1) for x in (*(way[1] for way in ways), plain))
        # Weighted by probability: rounding alone can move an unlikely token by half a nat.
        difference = max(float((alone.exp() * (each - alone).abs()).sum()) for each in shared)
        if difference <= TOLERANCE[plain.dtype]:
            return None
        return f"shared prefixes move a log-probability by {difference:.2g} nats"


def _tell_cut(lengths: list[int], most: int) -> None:
    if cut := sum(length > most for length in lengths):
        logger.warning(f"{cut} requests were truncated on the left to {most} tokens, which the model has room for.")
