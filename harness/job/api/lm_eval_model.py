"""lm-eval's API models with what they lack: answers that outlive a crash, tries that know what is worth one, counts.

What a request says decides its answer, so answers lie on disk by a hash of it, as they come: a line of JSON each. What
is there is not asked again, whichever cell of the study asked it.
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

LATER = {408, 409, 425, 429}  # statuses of requests that may be made again, beside the server's own failures
LONGEST = 60.0  # seconds between two tries, unless the endpoint asks for more
MOST = 600.0  # seconds that an endpoint may ask to be waited for
CHAT_INSTEAD = "leave out model.tokenizer to have the tasks asked as chat"
BYTES = 3  # of text a token, where no tokenizer counts them: rather too few, so that an estimate is rather too high


class _Again(Exception):
    """A try that failed in a way that another may not; wait: seconds, if the endpoint asks for them."""

    def __init__(self, what: str, wait: float = 0.0):
        super().__init__(what)
        self.wait = wait


@dataclass
class Answer:
    """A text, or the log-probability of a continuation and whether it is the likeliest.

    read, written: tokens, as the endpoint counts them (null: it does not). seconds: from request to answer.
    cut: whether the text ended at the limit of tokens; left_out: what the endpoint refused to be told; null in lines of
    earlier versions.
    """

    key: str
    answer: Any
    read: int | None
    written: int | None
    seconds: float
    cut: bool | None = None
    left_out: list[str] | None = None


class Answers:
    """The answers that a cell can have without asking: its own, which are added to, and its study's other cells'."""

    def __init__(self, path: Path):
        self._path = path
        self.own = {answer.key: answer for answer in _stored(path)}
        others = sorted(other for other in path.parent.glob("*.jsonl") if other != path)
        self._others = {answer.key: answer for other in others for answer in _stored(other)}

    def get(self, key: str) -> Answer | None:
        return self.own.get(key) or self._others.get(key)

    def add(self, answer: Answer) -> None:
        """Keep `answer`, in a whole line even after one that a crash cut off."""
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
            except (ValueError, TypeError):  # cut off by a crash, or another's: it is asked again
                continue


class Engine:
    """Goes before one of lm-eval's classes, and does in its place what requests are made and answered by.

    thinking: tokens that a model may write before each answer; no `stop` is sent then, which could end its thoughts.
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
        # lm-eval asks one at a time by another way than several; here it is always this one, however many.
        super().__init__(base_url=url, model=name, num_concurrent=2, **keywords)
        self.asking, self.kept = asking, Answers(Path(asking.answers))
        self.used: dict[str, None] = {}  # keys of the answers that were asked for, in order
        self.tries = 0
        self._told, self._thinking = told, thinking
        self._refused: set[str] = set()

    @cached_property
    def header(self) -> dict[str, str]:
        """lm-eval would send OPENAI_API_KEY to whoever is asked."""
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
        """The answers to `requests`, each in a list of its own; raises Stopped, or UserError where none will come."""
        until, drawn = ((gen_kwargs or {}).get(key) for key in ("until", "do_sample"))
        keys, left, times = [], {}, Counter()
        for message, context in zip(requests, ctxlens or [None] * len(requests), strict=True):
            settings = json.loads(json.dumps(gen_kwargs))  # its own: `_create_payload` takes out what it reads
            payload = self._create_payload(self.create_message([message]), generate=generate, gen_kwargs=settings)
            if self._thinking:
                payload["max_tokens"] += self._thinking
            if self._thinking or not payload.get("stop", True):
                payload.pop("stop", None)  # also an empty list, which servers stumble over
            asked = json.dumps([self.base_url, payload, context], sort_keys=True)
            if drawn:  # as often as it is asked for; what is not drawn at random would come the same again
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
        """Have all of `left` answered: payload, length of the context and message by key.

        When one is given up, or refused, no further ones are begun: those under way are waited for, as they are paid.
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
        connector = aiohttp.TCPConnector(limit=0)  # who waits for a connection would use up the time-out
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=True) as session:
            await asyncio.gather(*(work(session) for _ in range(self.asking.concurrency)))
        if failures:
            raise failures[0]

    async def _answered(
        self, session: aiohttp.ClientSession, key: str, payload: dict, context: int | None, until: list, failures: list
    ) -> Answer:
        def give_up(state: RetryCallState) -> NoReturn:
            raise Stopped(
                f"{self.base_url} gave no answer (tries: {state.attempt_number}): {state.outcome.exception()}; "
                "what it answered before is kept, and the same command asks for the rest."
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
        """Seconds before the next try: twice as many each time, or those that the endpoint asks for."""
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
            # Not sent on to where it is redirected: the key is this endpoint's.
            post = session.post(self.base_url, json=asked, headers=self.header, allow_redirects=False)
            async with post as response:
                status, text, wait = response.status, await response.text(), response.headers.get("Retry-After")
        except TimeoutError:
            raise _Again(f"nothing came in {self.asking.timeout:g} seconds") from None
        except (aiohttp.ClientError, ConnectionError, UnicodeDecodeError) as error:
            raise _Again(f"{type(error).__name__} {_shown(str(error))}".strip()) from None
        if status in LATER or status >= 500:
            seconds = _seconds(wait)
            self._next = max(self._next, time.monotonic() + seconds)  # for all: it is the endpoint that is busy
            raise _Again(f"it answers {status}, {_shown(text)}", seconds)
        if status == 400 and (name := refused(text, asked)):
            self._refused.add(name)
            return await self._try(session, key, payload, context, until)
        if status >= 300:
            raise UserError(
                f"{self.base_url} refuses what it is asked ({status}): {_shown(text)}; {_remedy(status, context)}."
            )
        answer, cut, usage = self._read(text, context, until)
        read, written = (n if type(n) is int else None for n in map(usage.get, ("prompt_tokens", "completion_tokens")))
        left_out = sorted(payload.keys() - asked.keys() - {"max_tokens"})  # which goes by another name
        return Answer(key, answer, read, written, time.monotonic() - began, cut, left_out)

    def _read(self, text: str, context: int | None, until: list[str]) -> tuple[Any, bool, dict[str, Any]]:
        """The answer in a response, whether it was cut off, and what it says of tokens; _Again for what is none."""
        try:
            response = json.loads(text)
        except ValueError:
            raise _Again(f"what it sends is no JSON, {_shown(text)}") from None
        try:
            (choice,) = response["choices"]
            usage = response.get("usage") or {}
            if context is None:
                (answer,) = self.parse_generations(response)
                answer = postprocess_generated_text(spoken(answer or ""), until, None)
                return answer, choice.get("finish_reason") == "length", dict(usage)
            if not (choice.get("logprobs") or {}).get("top_logprobs"):
                raise UserError(f"{self.base_url} gives no log-probabilities of what it reads; {CHAT_INSTEAD}.")
            ((likely, greedy),) = self.parse_logprobs(response, ctxlens=[context])
            return [float(likely), bool(greedy)], False, dict(usage)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError):
            raise _Again(f"what it sends is no completion, {_shown(text)}") from None


class Chat(Engine, LocalChatCompletion):
    """Answers by chat completions."""


class Completions(Engine, LocalCompletionsAPI):
    """Answers by completions, with log-probabilities: of tokens, so that they are those that are counted here."""

    def create_message(self, messages: list[Any], generate: bool = False) -> Any:
        return messages[0]


class Estimated:
    """Goes before an engine, and counts what it would be asked instead of asking: requests, and their tokens at most.

    counted: whether a tokenizer counted those that are read.
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
    """What asks the `model`; with `estimate` what counts that."""
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
    """Keywords of lm-eval's classes to take tokens as a model that is here is given them; UserError without one."""
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
    """What a Retry-After asks for: seconds, or a date."""
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
    """What an endpoint says, on one line and without secrets."""
    words = redact.redact(" ".join(text.split()))
    return repr(words if len(words) <= 200 else f"{words[:200]} …")


def _remedy(status: int, context: int | None) -> str:
    """What to do about a request that is refused; context: of one for log-probabilities, which not all give."""
    if status in (401, 403):
        return "check the key that model.key_env names"
    if status == 404:
        return "check model.base_url and model.name"
    return "check the settings, and the tasks" if context is None else CHAT_INSTEAD
