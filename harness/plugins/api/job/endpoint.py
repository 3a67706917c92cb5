"""Sends requests to an OpenAI-compatible endpoint, several at a time, at a limited rate, with retries.

Parameters that the endpoint refuses are renamed or left out. The size of an answer and the waiting for an endpoint are
limited. The package `openai` limits neither, takes a malformed answer for final, and follows redirects.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
import time
import urllib.request
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import urlsplit

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

LATER = {408, 409, 425, 429}  # statuses that are retried, beside server errors
OF_CONTENT = {400, 413, 422}  # by which a request may be refused for its content: too long, or filtered
FLAGGED = re.compile(r"moderation|flagged|guardrail|content.{0,3}(?:policy|filter)", re.IGNORECASE)
LONGEST = 60.0  # seconds between two tries, unless the endpoint asks for more
MOST = 600.0  # most seconds that an endpoint may ask for at a time
ALL_WAITING = 1800.0  # and for one request in all
SILENCE = 30.0  # seconds by which a wait must grow to be told again
LARGEST = 16 * 2**20  # bytes of an answer; the log-probabilities of 100,000 tokens take about 10 MiB
TRUST = "set SSL_CERT_FILE to a file with the certificate of its authority"
QUOTED = 4000  # characters of an answer that messages are made of

PARAMETER = "max_tokens|temperature|stop|seed"  # what can be renamed, or left out
REFUSAL = re.compile(
    r"(?:[Uu]nsupported (?:parameter|value)|[Uu]n(?:known|recognized) (?:parameter|name|request argument supplied)"
    r"|not supported on this model|does not support parameter|extra_forbidden\W+loc\W+body)"
    rf"\W+(?P<after>{PARAMETER})\b|\b(?P<before>{PARAMETER})\W+is (?:deprecated|unsupported|not supported)"
)

K = TypeVar("K")
T = TypeVar("T")


class Unsuccessful(Exception):
    """A request without an answer.

    kind: "timeout", "connection", "proxy" for one through a proxy, "certificate" that is not trusted, "status", "size"
    of the answer, "waiting" for longer than is waited, "error" in place of an answer, "filtered" for an answer that a
    filter of contents held back, or "response" for an answer that is not one. status: of HTTP, if there was one. again:
    whether another try may succeed. wait: seconds that the endpoint asks for before it.
    """

    def __init__(self, kind: str, text: str, status: int | None = None, again: bool = True, wait: float = 0.0):
        super().__init__(text)
        self.kind, self.text, self.status, self.again, self.wait = kind, text, status, again, wait
        self.tries = 1

    @property
    def of_content(self) -> bool:
        """Whether another request to the same endpoint may be answered: this one may be too long, or was filtered.

        OpenRouter sends 403 for a filtered request, which otherwise says that a key may not use the model.
        """
        return self.kind == "filtered" or self.status in OF_CONTENT or self.flagged

    @property
    def flagged(self) -> bool:
        """Whether a filter of contents sent a status that otherwise is of keys."""
        return self.status == 403 and FLAGGED.search(self.text) is not None

    @property
    def sign(self) -> str:
        """What shows that the endpoint refuses: a status, or the reason for which an answer ended."""
        return "finish_reason content_filter" if self.kind == "filtered" else f"HTTP {self.status}"


class _Again(Exception):
    """Carries an `Unsuccessful` that is worth another try."""

    def __init__(self, error: Unsuccessful):
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Response(Generic[T]):
    """What was read from a response. asked: the payload as it was sent. seconds: from request to response."""

    value: T
    asked: dict[str, Any]
    seconds: float


class Endpoint:
    """One address.

    key: of the authorization header; None without one. timeout: of a request, in seconds. retries: after the first try,
    with pauses that double from `backoff` seconds. per_minute: most requests a minute. thinking: tokens added to a
    limit that includes the model's thinking. tell: called with a sentence when the endpoint asks to wait.

    tries: number of retries so far.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        timeout: float,
        retries: int,
        backoff: float,
        per_minute: float | None = None,
        thinking: int = 0,
        tell: Callable[[str], None] = lambda sentence: None,
    ):
        self.url, self.tries, self._proxy = url, 0, _proxy(url)
        key = (key or "").strip()  # of the end of a line, which files of keys have
        self._header = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout, self._retries, self._backoff, self._per_minute = timeout, retries, backoff, per_minute
        self._thinking = thinking
        self._refused: set[str] = set()
        self._tell, self._told_until = tell, 0.0  # by the clock

    async def ask_all(
        self,
        payloads: Mapping[K, dict[str, Any]],
        concurrency: int,
        read: Callable[[K, str], T],
        answered: Callable[[K, Response[T]], None],
        refused: Callable[[K, Unsuccessful], bool] = lambda key, error: False,
    ) -> None:
        """Send `payloads`, `concurrency` at a time, and call `answered` with each key and answer as it comes.

        read: takes a key and a response's text; raises Unsuccessful if it is no answer. refused: called with the key of
        a request whose content the endpoint refuses; returns whether to go on without its answer. Raises the first
        other final failure. After that no further request starts; those under way are awaited, as they are paid for.
        """
        waiting = list(reversed(list(payloads.items())))
        failures: list[Exception] = []
        self._turn, self._next = asyncio.Lock(), 0.0

        async def work(session: aiohttp.ClientSession) -> None:
            while waiting and not failures:
                key, payload = waiting.pop()
                try:
                    answered(key, await self._answer(session, payload, partial(read, key), failures))
                except Unsuccessful as failure:
                    if not failure.of_content or not refused(key, failure):
                        failures.append(failure)
                except Exception as failure:
                    failures.append(failure)

        timeout = aiohttp.ClientTimeout(total=self._timeout)
        connector = aiohttp.TCPConnector(limit=0)  # waiting for a connection would count in the time-out
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            await asyncio.gather(*(work(session) for _ in range(concurrency)))
        if failures:
            raise failures[0]

    async def _answer(
        self,
        session: aiohttp.ClientSession,
        payload: dict[str, Any],
        read: Callable[[str], T],
        failures: list[Exception],
    ) -> Response[T]:
        waited = 0.0  # as the endpoint asked

        def waits_too_long(state: RetryCallState) -> bool:
            return waited + _failure(state).wait > ALL_WAITING

        def give_up(state: RetryCallState) -> NoReturn:
            error = _failure(state)
            error.kind = "waiting" if waits_too_long(state) else error.kind
            error.tries = state.attempt_number
            raise error

        def count(state: RetryCallState) -> None:
            nonlocal waited
            waited += _failure(state).wait
            self.tries += 1

        def ends(state: RetryCallState) -> bool:
            return bool(failures) or waits_too_long(state) or stop_after_attempt(1 + self._retries)(state)

        tries = AsyncRetrying(
            stop=ends,
            wait=self._pause,
            retry=retry_if_exception_type(_Again),
            before_sleep=count,
            retry_error_callback=give_up,
        )
        return await tries(self._try, session, payload, read)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: doubled each time, or what the endpoint asks for."""
        doubled = self._backoff * 2 ** (state.attempt_number - 1)
        return max(min(doubled, LONGEST), _failure(state).wait)

    async def _try(
        self, session: aiohttp.ClientSession, payload: dict[str, Any], read: Callable[[str], T]
    ) -> Response[T]:
        try:
            return await self._send(session, payload, read)
        except Unsuccessful as error:
            if error.again:
                raise _Again(error) from error
            raise

    async def _send(
        self, session: aiohttp.ClientSession, payload: dict[str, Any], read: Callable[[str], T]
    ) -> Response[T]:
        async with self._turn:
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))
            gap = 60 / self._per_minute if self._per_minute else 0.0
            self._next = max(self._next, time.monotonic() + gap)
        began, asked = time.monotonic(), put(payload, self._refused, self._thinking)
        try:
            # Redirects are not followed, as the key is for this endpoint.
            how: dict[str, Any] = {"headers": self._header, "proxy": self._proxy, "allow_redirects": False}
            post = session.post(self.url, json=asked, **how)
            async with post as response:
                status, text, wait = response.status, await _text(response), response.headers.get("Retry-After")
        except TimeoutError:
            raise Unsuccessful("timeout", f"no response in {self._timeout:g} seconds") from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise Unsuccessful("certificate", _why(error.certificate_error), again=False) from None
        except (aiohttp.ClientError, ConnectionError, UnicodeDecodeError) as error:
            kind = "connection" if self._proxy is None else "proxy"
            raise Unsuccessful(kind, f"{type(error).__name__} {error}".strip()) from None
        if status in LATER or status >= 500:
            seconds = _seconds(wait)
            self._leave_alone(seconds, status)
            raise Unsuccessful("status", text[:QUOTED], status, wait=seconds)
        if status in (400, 422) and (name := refused(text, asked)):
            self._refused.add(name)
            return await self._send(session, payload, read)
        if status >= 300:
            raise Unsuccessful("status", text[:QUOTED], status, again=False)
        return Response(read(text), asked, time.monotonic() - began)

    def _leave_alone(self, seconds: float, status: int) -> None:
        """Start no request for `seconds`, as the endpoint is busy, and tell that."""
        until = time.monotonic() + seconds
        self._next = max(self._next, until)
        if seconds > 0 and until > self._told_until + SILENCE:
            self._told_until = until
            self._tell(f"{self.url} asks to wait {seconds:.0f} s (HTTP {status}, Retry-After); its requests wait.")


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for `url`; None without one.

    aiohttp's `trust_env` finds it too, but also sends passwords of ~/.netrc, or fails where a key is sent.
    """
    parts = urlsplit(url)
    proxy = None if urllib.request.proxy_bypass(parts.netloc) else urllib.request.getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _why(error: Exception) -> str:
    """Why a certificate is not trusted, as "self-signed certificate"."""
    return str(getattr(error, "verify_message", error))


def _failure(state: RetryCallState) -> Unsuccessful:
    """The failure of the last try."""
    last = state.outcome and state.outcome.exception()
    assert isinstance(last, _Again)  # tenacity asks whether to stop and how long to wait after what is retried alone
    return last.error


async def _text(response: aiohttp.ClientResponse) -> str:
    """The text of `response`, read only as far as an answer may be long. Raises Unsuccessful for a longer one."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(2**16):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            response.close()
            raise Unsuccessful("size", f"its answer has more than {LARGEST / 2**20:g} MiB", again=False)
    return b"".join(parts).decode(errors="strict" if response.ok else "replace")  # JSON is in UTF-8


def from_json(text: str) -> Any:
    """The value of JSON. Raises ValueError for text that is none, or that is nested deeper than Python reads."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def only_choice(response: dict[str, Any]) -> dict[str, Any]:
    """The one choice of a response. Raises Unsuccessful for an error of the response or of the choice, and for what a
    filter of contents held back.

    Gateways such as OpenRouter send errors with HTTP 200 once a model has begun to answer. Raises LookupError,
    ValueError, TypeError or AttributeError without a choice.
    """
    error = response.get("error")
    if not error:
        (choice,) = response["choices"]
        error = choice.get("error") or (choice if choice.get("finish_reason") == "error" else None)
        if choice.get("finish_reason") == "content_filter":
            raise Unsuccessful("filtered", json.dumps(choice, ensure_ascii=False)[:QUOTED], again=False)
        if not error:
            return dict(choice)
    raise Unsuccessful("error", json.dumps(error, ensure_ascii=False)[:QUOTED])


def token_counts(response: dict[str, Any]) -> tuple[int | None, int | None]:
    """The tokens that an endpoint read and wrote; null where it does not say.

    xAI and Gemini charge for a model's thinking as written, and count it in `total_tokens` alone.
    """
    usage = response.get("usage") or {}
    counts = map(usage.get, ("prompt_tokens", "completion_tokens", "total_tokens"))
    prompt, completion, total = (n if type(n) is int else None for n in counts)
    if prompt is not None and completion is not None and total is not None:
        completion = max(completion, total - prompt)
    return prompt, completion


def refused(reply: str, asked: dict[str, Any]) -> str | None:
    """The parameter of `asked` that an endpoint refuses in `reply`, if it can be renamed or left out; else None.

    OpenAI's thinking models accept no `max_tokens`, temperature, `stop` or seed, Anthropic's newer ones no temperature,
    xAI's no `stop`, and Mistral's no seed.
    """
    found = REFUSAL.search(reply)
    name = found and (found["after"] or found["before"])
    return name if name in asked else None


def put(asked: dict[str, Any], refused: Collection[str], thinking: int = 0) -> dict[str, Any]:
    """`asked` without the parameters that an endpoint refuses.

    A limit of tokens is renamed, and then includes thinking: `thinking` is added to it.
    """
    kept = {name: value for name, value in asked.items() if name not in refused}
    if "max_tokens" in refused and "max_tokens" in asked:
        kept["max_completion_tokens"] = asked["max_tokens"] + thinking
    return kept


def spoken(content: Any) -> str:
    """A model's answer without its thinking, which some servers leave in the text, and others in parts of their own.

    Empty if the thinking was cut off: it is no answer. content: a text, parts as Mistral's thinking models write them,
    or null.
    """
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    _, thought, said = text.rpartition("</think>")
    if not thought and text.lstrip().startswith("<think>"):
        return ""
    return said.lstrip() if thought else text


def _seconds(wait: str | None) -> float:
    """Seconds of a Retry-After header, which has seconds or a date."""
    if wait is None:
        return 0.0
    try:
        seconds = float(wait)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(wait).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), MOST)  # 0 if it is not a number, which is no more than 0
