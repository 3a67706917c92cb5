"""lm-eval's API models with answers that survive a crash, retries of what may succeed, and counts.

A request determines its answer, so answers are stored on disk by a hash of the request, as they come, one JSON line
each. A stored request is not asked again, whichever cell of the study asked it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.api_models import TemplateAPI
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text

from harness import redact
from harness.errors import UserError
from harness.job.evaluate import windows
from harness.job.evaluate.cut_requests import CutRequests
from harness.job.models import loading
from harness.plugins.api.job import endpoint
from harness.plugins.api.job.client import Stopped
from harness.plugins.api.job.endpoint import (
    QUOTED,
    Endpoint,
    Response,
    Unsuccessful,
    from_json,
    only_choice,
    spoken,
    token_counts,
)
from harness.plugins.api.job.journal import REFUSALS
from harness.plugins.api.requests import ApiAccess
from harness.settings import ModelSettings

CHAT_INSTEAD = "omit model.tokenizer to ask the tasks as chat"
BYTES = 3  # of a token, without a tokenizer: rather few, so that an estimate is rather high


@dataclass
class StoredAnswer:
    """A text, or the log-probability of a continuation and whether it is the likeliest.

    read, written: tokens by the endpoint's count; null without one. seconds: from request to answer. cut: whether the
    text ended at the token limit. left_out: parameters that the endpoint refused.
    """

    key: str
    answer: Any
    read: int | None
    written: int | None
    seconds: float
    cut: bool | None = None
    left_out: list[str] | None = None


class AnswerStore:
    """Stored answers: the cell's own, to which new ones are added, and those of the study's other cells."""

    def __init__(self, path: Path):
        self._path = path
        self.own = {answer.key: answer for answer in _stored(path)}
        others = sorted(other for other in path.parent.glob("*.jsonl") if other != path)
        self._others = {answer.key: answer for other in others for answer in _stored(other)}

    def get(self, key: str) -> StoredAnswer | None:
        return self.own.get(key) or self._others.get(key)

    def add(self, answer: StoredAnswer) -> None:
        """Store `answer` as a line of its own, even after a line that a crash cut off."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(asdict(answer)).encode() + b"\n")
        self.own[answer.key] = answer

    def __getitem__(self, key: str) -> StoredAnswer:
        """The answer stored under `key`. Raises KeyError if there is none."""
        if (answer := self.get(key)) is None:
            raise KeyError(key)
        return answer


def _stored(path: Path) -> Iterator[StoredAnswer]:
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                yield StoredAnswer(**json.loads(line))
            except (ValueError, TypeError, RecursionError):  # cut off by a crash, or of another format: asked again
                continue


Tokenised = tuple[Any, list[int], list[int]]  # text, tokens of the context, and those of the continuation
Unanswered = tuple[dict[str, Any], int | None, Any]  # payload, length of the context, and message of a request


class ApiModel(TemplateAPI):
    """Mixin before one of lm-eval's classes that replaces how requests are sent and answered.

    told: called with the number of requests that are answered, after each answer, and for all that are stored at once.
    thinking: tokens that the model may think before each answer; then no `stop` is sent, which could end its thinking.
    tell: called with a sentence when the endpoint asks to wait.
    stored: requests so far whose answers were stored already. refused: keys of requests for text whose content the
    endpoint refused; their answers are empty, and are asked for again when the cell is run again. cut: those that lost
    their beginning before they were sent; what an endpoint cuts is not known.
    """

    def __init__(
        self,
        url: str,
        name: str,
        access: ApiAccess,
        told: Callable[[int], None] = lambda count: None,
        thinking: int = 0,
        tell: Callable[[str], None] = lambda sentence: None,
        **keywords: Any,
    ):
        # lm-eval has another code path for one request at a time; this one is used for any number.
        super().__init__(base_url=url, model=name, num_concurrent=2, **keywords)
        self.access, self.kept = access, AnswerStore(Path(access.answers))
        self.used: dict[str, None] = {}  # keys of requested answers, in order
        self.stored = 0
        self.refused: set[str] = set()
        self.cut = CutRequests()
        self._told, self._tell, self._thinking = told, tell, thinking
        # Only the key that the settings name; lm-eval would send OPENAI_API_KEY to any endpoint.
        key = os.environ.get(access.key_env) if access.key_env else None
        how = (access.timeout, access.retries, access.backoff, access.per_minute)
        self._endpoint = Endpoint(url, key, *how, tell=tell)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods in nats of whole documents; a token of the room is for the one that an endpoint writes."""
        return windows.log_likelihoods(self, requests, self.max_length - 1, disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Tokenised], **how: Any) -> list[tuple[float, bool]]:
        self.cut.count((len(context) + len(rest) for _, context, rest in requests), self.max_length)
        return super()._loglikelihood_tokens(requests, **how)

    @staticmethod
    def _written(choice: dict[str, Any]) -> Any:
        """What a choice of a response holds. lm-eval takes a choice that it can't read for an empty answer."""
        raise NotImplementedError

    @property
    def tries(self) -> int:
        """Number of retries."""
        return self._endpoint.tries

    async def get_batched_requests(
        self,
        requests: Sequence[Any],
        cache_keys: Any,
        *,
        generate: bool = True,
        ctxlens: list[int] | None = None,
        gen_kwargs: dict[str, Any] | None = None,
    ) -> list[list[Any]]:
        """The answers to `requests`, each in its own list. Raises Stopped, or UserError if the endpoint refuses."""
        until, drawn = ((gen_kwargs or {}).get(key) for key in ("until", "do_sample"))
        keys: list[str] = []
        left: dict[str, Unanswered] = {}
        times: Counter[str] = Counter()
        contexts: Sequence[int | None] = ctxlens or [None] * len(requests)
        for message, context in zip(requests, contexts, strict=True):
            settings = json.loads(json.dumps(gen_kwargs))  # a copy: `_create_payload` removes what it reads
            payload = self._create_payload(self.create_message([message]), generate=generate, gen_kwargs=settings)
            if self._thinking:
                payload["max_tokens"] += self._thinking
            if self._thinking or not payload.get("stop", True):
                payload.pop("stop", None)  # also an empty list, which some servers refuse
            asked = json.dumps([self.base_url, payload, context], sort_keys=True)
            if drawn:  # sampled answers differ each time; greedy answers would be the same
                times[asked] += 1
                asked += str(times[asked])
            keys.append(hashlib.sha256(asked.encode()).hexdigest())
            if self.kept.get(keys[-1]) is None:
                left[keys[-1]] = (payload, context, message)
        self.used |= dict.fromkeys(keys)
        if stored := sum(key not in left for key in keys):
            self.stored += stored
            self._told(stored)
        if left:
            await self._ask(left, until or [], Counter(keys))
        return [["" if key in self.refused else self._given(self.kept[key].answer)] for key in keys]

    @staticmethod
    def _given(answer: Any) -> Any:
        return tuple(answer) if isinstance(answer, list) else answer

    async def _ask(self, left: dict[str, Unanswered], until: list[str], requests: Counter[str]) -> None:
        """Ask all of `left`, by key. requests: of the same call, by key; some may have a stored answer.

        A refused request for text counts as an empty answer, unless no request of the call is answered: then the
        settings are at fault.
        """
        last: Unsuccessful | None = None  # refusal
        answered = len(left) < len(requests)

        def keep(key: str, response: Response[tuple[Any, bool, tuple[int | None, int | None]]]) -> None:
            nonlocal answered
            answered = True
            self.refused.discard(key)  # by an earlier call for the same request
            answer, cut, (read, written) = response.value
            left_out = sorted(left[key][0].keys() - response.asked.keys() - {"max_tokens"})  # which is renamed
            self.kept.add(StoredAnswer(key, answer, read, written, response.seconds, cut, left_out))
            self._told(requests[key])

        def refuse(key: str, error: Unsuccessful) -> bool:
            nonlocal last
            if left[key][1] is not None:  # a log-probability can't be left empty
                return False
            last = error
            if not self.refused:
                self._tell(f"{self.base_url} refuses a request ({_status(error)}); its answer counts as empty.")
            self.refused.add(key)
            self._told(requests[key])
            return answered or len(self.refused & left.keys()) < REFUSALS

        payloads = {key: payload for key, (payload, _, _) in left.items()}
        contexts = {key: context for key, (_, context, _) in left.items()}
        try:
            await self._endpoint.ask_all(
                payloads,
                self.access.concurrency,
                lambda key, text: self._read(text, payloads[key], contexts[key], until),
                keep,
                refuse,
            )
            if last is not None and not answered:
                raise last
        except Unsuccessful as error:
            scored = any(context is not None for context in contexts.values())
            raise self._failure(error, scored) from error

    def _failure(self, error: Unsuccessful, scored: bool) -> Exception:
        """The exception that `error` becomes. scored: whether log-probabilities were requested."""
        said = redact.redact(error.text)
        if error.kind == "size":
            return UserError(f"{self.base_url} sent no completion: {said}; check model.base_url.")
        if error.kind == "certificate":
            return UserError(f"{self.base_url} has a certificate that is not trusted ({said}); {endpoint.TRUST}.")
        if error.kind == "error":
            said = f"the response is an error, {_shown(error.text)}"
        if error.kind in ("status", "filtered", "waiting"):
            said = _status(error)
        if error.kind == "waiting":
            said = f"it asked to wait for more than {endpoint.ALL_WAITING / 60:g} minutes in all, {said}"
        if error.again:
            return Stopped(
                f"{self.base_url} did not answer ({error.tries} tries): {said}; earlier answers are saved: rerun the "
                "same command to ask for the rest."
            )
        return UserError(f"{self.base_url} refused the request ({said}); {_remedy(error, scored)}.")

    def _read(
        self, text: str, payload: dict[str, Any], context: int | None, until: list[str]
    ) -> tuple[Any, bool, tuple[int | None, int | None]]:
        """The answer in a response, whether it was cut off, and its token counts. Raises Unsuccessful otherwise."""
        try:
            response = from_json(text)
        except ValueError as error:
            raise Unsuccessful("response", f"the response is not JSON ({error}), {_shown(text)}") from None
        try:
            choice, counts = only_choice(response), token_counts(response)
            if context is None:
                answer = postprocess_generated_text(spoken(self._written(choice)), until, None)
                return answer, choice.get("finish_reason") == "length", counts
            self._require_prompt(choice.get("logprobs") or {}, len(payload["prompt"]))
            ((likely, greedy),) = self.parse_logprobs(response, ctxlens=[context])
            return [float(likely), bool(greedy)], False, counts
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError):
            raise Unsuccessful("response", f"the response is not a completion, {_shown(text)}") from None

    def _require_prompt(self, logprobs: dict[str, Any], prompt: int) -> None:
        """Raise UserError unless `logprobs` are of the `prompt` tokens and of the one written after them.

        An endpoint that ignores `echo` returns those of the written token alone, and lm-eval would take the sum over no
        token, 0, for the continuation's.
        """
        if not logprobs.get("top_logprobs"):
            raise UserError(f"{self.base_url} returns no log-probabilities of prompts; {CHAT_INSTEAD}.")
        if (count := len(logprobs["token_logprobs"])) != prompt + 1:
            raise UserError(
                f"{self.base_url} must return the log-probability of each token of a prompt and of the one after it, "
                f"{prompt + 1} in all, got {count}; {CHAT_INSTEAD}."
            )


class Chat(ApiModel, LocalChatCompletion):
    """Answers by chat completions."""

    @staticmethod
    def _written(choice: dict[str, Any]) -> Any:
        return choice["message"].get("content")


class Completions(ApiModel, LocalCompletionsAPI):
    """Answers by completions, with log-probabilities. Prompts are sent as tokens, so that counts match."""

    @staticmethod
    def _written(choice: dict[str, Any]) -> Any:
        return choice["text"]

    def create_message(self, messages: list[Any], generate: bool = False) -> Any:
        return messages[0]


class Estimator(ApiModel):
    """Mixin before an engine that counts requests and their most tokens instead of asking.

    counted: whether a tokenizer counted the tokens that are read.
    """

    def __init__(self, url: str, name: str, access: ApiAccess, **keywords: Any):
        super().__init__(url, name, access, **keywords)
        self.requests, self.read, self.written = 0, 0, 0
        self.counted = self.tokenizer is not None

    async def _ask(self, left: dict[str, Unanswered], until: list[str], requests: Counter[str]) -> None:
        for key, (payload, context, message) in left.items():
            self.requests += 1
            self.read += self._tokens(message)
            self.written += payload["max_tokens"]
            self.kept.own[key] = StoredAnswer(key, "" if context is None else [0.0, False], None, None, 0.0)

    def _tokens(self, message: Any) -> int:
        if isinstance(message, list):
            return len(message)
        text = getattr(message, "prompt", message)
        return len(self.tokenizer(text).input_ids) if self.counted else -(-len(text.encode()) // BYTES)


class ChatEstimator(Estimator, Chat):
    """Estimates chat completions."""


class CompletionsEstimator(Estimator, Completions):
    """Estimates completions."""


def engine(model: ModelSettings, access: ApiAccess, **keywords: Any) -> ApiModel:
    """The engine for `model`. keywords: of ApiModel."""
    kind = Chat if model.tokenizer is None else Completions
    url, name = _address(model)
    return kind(url, name, access, **keywords, **_form(model))


def estimator(model: ModelSettings, access: ApiAccess) -> Estimator:
    """As `engine`, but it only counts."""
    kind = ChatEstimator if model.tokenizer is None else CompletionsEstimator
    url, name = _address(model)
    return kind(url, name, access, **_form(model))


def _address(model: ModelSettings) -> tuple[str, str]:
    """Where requests for `model` are sent, and the model's name there. Raises UserError without one of them."""
    if model.base_url is None or model.name is None:
        raise UserError("method=api requires model.base_url and model.name.")
    return f"{model.base_url}/{'chat/completions' if model.tokenizer is None else 'completions'}", model.name


def _form(model: ModelSettings) -> dict[str, Any]:
    """Keywords that tell how requests for `model` are written."""
    return {"thinking": model.thinking} if model.tokenizer is None else _tokenized(model.tokenizer)


def _tokenized(tokenizer: str) -> dict[str, Any]:
    """Keywords of lm-eval's classes to send tokens as for a local model. Raises UserError without a tokenizer."""
    model = ModelSettings(path=tokenizer)
    found = loading.tokenizer(model)
    first = found("x").input_ids[:1]
    return {
        "tokenizer": loading.source(model),
        "tokenizer_backend": "huggingface",
        "tokenized_requests": False,
        "add_bos_token": found.bos_token_id is not None and first == [found.bos_token_id],
        "max_length": found.model_max_length,
    }


def _shown(text: str) -> str:
    """An endpoint's text on one line, without secrets."""
    words = redact.redact(" ".join(text[:QUOTED].split()))
    return repr(words if len(words) <= 200 else f"{words[:200]} …")


def _status(error: Unsuccessful) -> str:
    """The status of a refused request, and what the endpoint says of it."""
    return f"{error.sign}, {_shown(error.text)}"


def _remedy(error: Unsuccessful, scored: bool) -> str:
    """The remedy for a refused request. scored: whether for log-probabilities, which not all endpoints return."""
    status = error.status
    if status in (401, 403) and not error.flagged:
        return "check the key that model.key_env names"
    if status == 404 or (status is not None and status < 400):
        return "check model.base_url and model.name"
    return CHAT_INSTEAD if scored else "check the settings, and the tasks"
