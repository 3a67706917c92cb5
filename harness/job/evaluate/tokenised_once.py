"""An lm-eval model that tokenises once what texts share, and nothing that another cell has tokenised before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance

from harness.job.evaluate import request_cache
from harness.job.evaluate.request_cache import Pair
from harness.job.evaluate.rows import Tokens
from harness.job.evaluate.tokenising import SharedBeginnings, identity
from harness.job.evaluate.windows import WindowedModel

Request = tuple[tuple[str, str] | None, list[int], list[int]]


class TokenisedOnce(WindowedModel):
    """`HFLM` with the same tokens in less time."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._texts = SharedBeginnings(self.tokenizer, super().tok_encode)
        self._prompts = SharedBeginnings(self.tokenizer, self._whole_prompt)

    @cached_property
    def _identity(self) -> str | None:
        return identity(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer, and its template, in the names of cached requests."""
        return self._identity or super().tokenizer_name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """As in `HFLM`; what a text shares with the texts before it is not encoded again."""
        if add_special_tokens is not None or left_truncate_len is not None or kwargs:
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        return self._texts.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods in nats of each continuation, and whether greedy decoding gives the same text."""
        arguments = [request.args for request in requests]
        pairs = self._shared("pairs", arguments, lambda: self._pairs(requests, disable_tqdm))
        token_requests: list[Request] = [(args, *pair) for args, pair in zip(arguments, pairs, strict=True)]
        return self._loglikelihood_tokens(token_requests, disable_tqdm=disable_tqdm)

    def _pairs(self, requests: list[Instance], disable_tqdm: bool) -> list[Pair]:
        """The tokens that lm-eval would score."""
        token_requests: list[Request] = []

        def take(requests: list[Request], **_: Any) -> list[tuple[float, bool]]:
            token_requests.extend(requests)
            return []

        listening = copy.copy(self)
        listening._loglikelihood_tokens = take
        super(TokenisedOnce, listening).loglikelihood(requests, disable_tqdm)
        return [(context, continuation) for _, context, continuation in token_requests]

    def prompts(self, texts: list[str]) -> list[Tokens]:
        """The tokens of each prompt that is to be answered, in whole."""
        pairs = self._shared("prompts", texts, lambda: [(self._prompts.encode(text), []) for text in texts])
        return [tuple(prompt) for prompt, _ in pairs]

    def _whole_prompt(self, text: str) -> list[int]:
        return self.tok_batch_encode([text])[0][0].tolist()

    def _shared(self, kind: str, arguments: list[Any], encode: Callable[[], list[Pair]]) -> list[Pair]:
        """What `encode` returns, from the cache if it is there."""
        if self._identity is None:
            return encode()
        how = (self.add_bos_token, self.prefix_token_id, self.backend)
        name = request_cache.digest(kind, self._identity, how, request_cache.texts_digest(arguments))
        return request_cache.tokens(name, encode)
