"""lm-eval's API models with answers that survive a crash, retries of what may succeed, and counts.

A request determines its answer, so answers are stored on disk by a hash of the request, as they come, one JSON line
each. A stored request is not asked again, whichever cell of the study asked it.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.models.utils import postprocess_generated_text
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from harness import redact
from harness.errors import UserError
from harness.job.api.client import put, refused, spoken
from harness.job.api.run_api_cell import Asking, Stopped
from harness.job.models import loading
from harness.settings import ModelSettings

LATER = {408, 409, 425, 429}  # statuses that are retried, beside server errors
LONGEST = 60.0  # seconds between two tries, unless the endpoint asks for more
MOST = 600.0  # most seconds that an endpoint may ask for
CHAT_INSTEAD = "omit model.tokenizer to ask the tasks as chat"
BYTES = 3  # of a token, without a tokenizer: rather few, so that an estimate is rather high


class _Again(Exception):
    """A failed try that is worth repeating. wait: seconds that the endpoint asks for."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


@dataclass
class Answer:
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


class Answers:
    """Stored answers: the cell's own, to which new ones are added, and those of the study's other cells."""

    def __init__(self, path: Path):
        self._path = path
        self.own = {answer.key: answer for answer in _stored(path)}
        others = sorted(other for other in path.parent.glob("*.jsonl") if other != path)
        self._others = {answer.key: answer for other in others for answer in _stored(other)}

    def get(self, key: str) -> Answer | None:
        return self.own.get(key) or self._others.get(key)

    def add(self, answer: Answer) -> None:
        """Store `answer` as a line of its own, even after a line that a crash cut off."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(asdict(answer)).encode() + b"\n")
        self.own[answer.key] = answer


def _stored(path: Path) -> Iterator[Answer]:
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                yield Answer(**json.loads(line))
            except (ValueError, TypeError):  # cut off by a crash, or of another format: asked again
                continue


class Engine:
    """Mixin before one of lm-eval's classes that replaces how requests are sent and answered.

    thinking: tokens that the model may think before each answer; then no `stop` is sent, which could end its thinking.
    """

    def __init__(
        self,
        url: str,
        name: str,
        asking: Asking,
        told: Callable[[int, int], None] | None = None,
        thinking: int = 0,
        **keywords,
    ):
        # lm-eval has another code path for one request at a time; this one is used for any number.
        super().__init__(base_url=url, model=name, num_concurrent=2, **keywords)
        self.asking, self.kept = asking, Answers(Path(asking.answers))
        self.used: dict[str, None] = {}  # keys of requested answers, in order
        self.tries = 0
        self._told, self._thinking = told, thinking
        self._refused: set[str] = set()

    @cached_property
    def header(self) -> dict[str, str]:
        """Only the key that the settings name; lm-eval would send OPENAI_API_KEY to any endpoint."""
        key = os.environ.get(self.asking.key_env, "") if self.asking.key_env else ""
        return {"Authorization": f"Bearer {key}"} if key else {}

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
        keys, left, times = [], {}, Counter()
        for message, context in zip(requests, ctxlens or [None] * len(requests), strict=True):
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
        if left:
            await self._ask(left, until or [])
        return [[self._given(self.kept.get(key).answer)] for key in keys]

    @staticmethod
    def _given(answer: Any) -> Any:
        return tuple(answer) if isinstance(answer, list) else answer

    async def _ask(self, left: dict[str, tuple], until: list[str]) -> None:
        """Ask all of `left`: payload, length of the context and message by key.

        After a final failure no further request starts; those under way are awaited, as they are paid for.
        """
        waiting, total, failures, done = list(reversed(left.items())), len(left), [], itertools.count(1)
        self._turn, self._next = asyncio.Lock(), 0.0

        async def work(session: aiohttp.ClientSession) -> None:
            while waiting and not failures:
                key, (payload, context, _) = waiting.pop()
                try:
                    self.kept.add(await self._answered(session, key, payload, context, until, failures))
                except (Stopped, UserError, OSError) as failure:
                    failures.append(failure)
                    break
                if self._told:
                    self._told(next(done), total)

        timeout = aiohttp.ClientTimeout(total=self.asking.timeout)
        connector = aiohttp.TCPConnector(limit=0)  # waiting for a connection would count in the time-out
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as session:
            await asyncio.gather(*(work(session) for _ in range(self.asking.concurrency)))
        if failures:
            raise failures[0]

    async def _answered(
        self, session: aiohttp.ClientSession, key: str, payload: dict, context: int | None, until: list, failures: list
    ) -> Answer:
        def give_up(state: RetryCallState) -> NoReturn:
            raise Stopped(
                f"{self.base_url} did not answer ({state.attempt_number} tries): {state.outcome.exception()}; earlier "
                "answers are saved: rerun the same command to ask for the rest."
            )

        def count(state: RetryCallState) -> None:
            self.tries += 1

        tries = AsyncRetrying(
            stop=lambda state: bool(failures) or stop_after_attempt(1 + self.asking.retries)(state),
            wait=self._pause,
            retry=retry_if_exception_type(_Again),
            before_sleep=count,
            retry_error_callback=give_up,
        )
        return await tries(self._try, session, key, payload, context, until)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: doubled each time, or what the endpoint asks for."""
        doubled = self.asking.backoff * 2 ** (state.attempt_number - 1)
        return max(min(doubled, LONGEST), state.outcome.exception().wait)

    async def _try(
        self, session: aiohttp.ClientSession, key: str, payload: dict, context: int | None, until: list[str]
    ) -> Answer:
        async with self._turn:
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))
            gap = 60 / self.asking.per_minute if self.asking.per_minute else 0.0
            self._next = max(self._next, time.monotonic() + gap)
        began, asked = time.monotonic(), put(payload, self._refused)
        try:
            # Redirects are not followed, as the key is for this endpoint.
            post = session.post(self.base_url, json=asked, headers=self.header, allow_redirects=False)
            async with post as response:
                status, text, wait = response.status, await response.text(), response.headers.get("Retry-After")
        except TimeoutError:
            raise _Again(f"no response in {self.asking.timeout:g} seconds") from None
        except (aiohttp.ClientError, ConnectionError, UnicodeDecodeError) as error:
            raise _Again(f"{type(error).__name__} {_shown(str(error))}".strip()) from None
        if status in LATER or status >= 500:
            seconds = _seconds(wait)
            self._next = max(self._next, time.monotonic() + seconds)  # for all requests: the endpoint is busy
            raise _Again(f"HTTP {status}, {_shown(text)}", seconds)
        if status == 400 and (name := refused(text, asked)):
            self._refused.add(name)
            return await self._try(session, key, payload, context, until)
        if status >= 300:
            raise UserError(
                f"{self.base_url} refused the request (HTTP {status}): {_shown(text)}; {_remedy(status, context)}."
            )
        answer, cut, usage = self._read(text, context, until)
        read, written = (n if type(n) is int else None for n in map(usage.get, ("prompt_tokens", "completion_tokens")))
        left_out = sorted(payload.keys() - asked.keys() - {"max_tokens"})  # it is renamed
        return Answer(key, answer, read, written, time.monotonic() - began, cut, left_out)

    def _read(self, text: str, context: int | None, until: list[str]) -> tuple[Any, bool, dict[str, Any]]:
        """The answer in a response, whether it was cut off, and its token counts. Raises _Again for other texts."""
        try:
            response = json.loads(text)
        except ValueError:
            raise _Again(f"the response is not JSON, {_shown(text)}") from None
        try:
            (choice,) = response["choices"]
            usage = response.get("usage") or {}
            if context is None:
                (answer,) = self.parse_generations(response)
                answer = postprocess_generated_text(spoken(answer or ""), until, None)
                return answer, choice.get("finish_reason") == "length", dict(usage)
            if not (choice.get("logprobs") or {}).get("top_logprobs"):
                raise UserError(f"{self.base_url} returns no log-probabilities of prompts; {CHAT_INSTEAD}.")
            ((likely, greedy),) = self.parse_logprobs(response, ctxlens=[context])
            return [float(likely), bool(greedy)], False, dict(usage)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError):
            raise _Again(f"the response is not a completion, {_shown(text)}") from None


class Chat(Engine, LocalChatCompletion):
    """Answers by chat completions."""


class Completions(Engine, LocalCompletionsAPI):
    """Answers by completions, with log-probabilities. Prompts are sent as tokens, so that counts match."""

    def create_message(self, messages: list[Any], generate: bool = False) -> Any:
        return messages[0]


class Estimated:
    """Mixin before an engine that counts requests and their most tokens instead of asking.

    counted: whether a tokenizer counted the tokens that are read.
    """

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.requests, self.read, self.written = 0, 0, 0
        self.counted = self.tokenizer is not None

    async def _ask(self, left: dict[str, tuple], until: list[str]) -> None:
        for key, (payload, context, message) in left.items():
            self.requests += 1
            self.read += self._tokens(message)
            self.written += payload["max_tokens"]
            self.kept.own[key] = Answer(key, "" if context is None else [0.0, False], None, None, 0.0)

    def _tokens(self, message: Any) -> int:
        if isinstance(message, list):
            return len(message)
        text = getattr(message, "prompt", message)
        return len(self.tokenizer(text).input_ids) if self.counted else -(-len(text.encode()) // BYTES)


def engine(model: ModelSettings, asking: Asking, told: Callable | None = None, estimate: bool = False) -> Engine:
    """The engine for `model`; with `estimate` one that only counts."""
    url, name, tokenizer = model.base_url, model.name, model.tokenizer
    keywords: dict[str, Any] = {}
    if tokenizer is not None:
        kind, url = Completions, f"{url}/completions"
        keywords = _tokenized(tokenizer)
    else:
        kind, url = Chat, f"{url}/chat/completions"
        keywords = {"thinking": model.thinking}
    if estimate:
        kind = type(f"Estimated{kind.__name__}", (Estimated, kind), {})
    return kind(url, name, asking, told, **keywords)


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


def _seconds(wait: str | None) -> float:
    """Seconds of a Retry-After header, which has seconds or a date."""
    if wait is None:
        return 0.0
    try:
        seconds = float(wait)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(wait).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), MOST)


def _shown(text: str) -> str:
    """An endpoint's text on one line, without secrets."""
    words = redact.redact(" ".join(text.split()))
    return repr(words if len(words) <= 200 else f"{words[:200]} …")


def _remedy(status: int, context: int | None) -> str:
    """The remedy for a refused request. context: of a request for log-probabilities, which not all endpoints return."""
    if status in (401, 403):
        return "check the key that model.key_env names"
    if status == 404:
        return "check model.base_url and model.name"
    return "check the settings, and the tasks" if context is None else CHAT_INSTEAD
