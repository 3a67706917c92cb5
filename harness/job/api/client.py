"""Asks a model behind an OpenAI-compatible API for chat completions, several at a time, with retries.

The key is read from OPENAI_API_KEY in the environment only; local servers mostly need none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from harness import redact
from harness.errors import UserError

KEY = "OPENAI_API_KEY"
THINKING = 8192  # tokens added to a limit that includes the model's thinking
RETRIES = 5  # with growing pauses: after failed connections, time-outs, rate limits and server errors

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    whole: false if it was cut off. read, written: tokens; null if the server does not report them.
    """

    text: str
    whole: bool
    read: int | None
    written: int | None


class Client:
    """One model at one endpoint. timeout: of an answer, in seconds."""

    def __init__(self, base_url: str, model: str, timeout: float):
        try:
            import openai
        except ImportError:
            raise UserError(
                "Models behind an API require the extra `api`: pip install -e '.[api]' in the project's folder."
            ) from None
        self.base_url, self.model, self.host = base_url, model, host(base_url)
        self._errors, self._refused = openai, set()
        self._api = openai.OpenAI(
            base_url=base_url, api_key=os.environ.get(KEY) or "none", timeout=timeout, max_retries=RETRIES
        )

    def ask(self, messages: Messages, **parameters: Any) -> Reply:
        """The answer to `messages`. Raises UserError if there is none after all tries."""
        asked = put(parameters, self._refused, THINKING)
        try:
            found = self._api.chat.completions.create(model=self.model, messages=messages, **asked)
        except self._errors.OpenAIError as error:
            if isinstance(error, self._errors.BadRequestError) and (name := refused(error.response.text, asked)):
                self._refused.add(name)
                return self.ask(messages, **parameters)
            raise UserError(self._told(error)) from error
        if not found.choices:
            raise UserError(f"{self.model} at {self.host} sent no chat completion; check --base-url.")
        choice, used = found.choices[0], found.usage
        return Reply(
            text=spoken(choice.message.content or "").encode("utf-8", "ignore").decode(),  # without lone surrogates
            whole=choice.finish_reason != "length",
            read=used and used.prompt_tokens,
            written=used and used.completion_tokens,
        )

    def ask_all(
        self,
        requests: Sequence[tuple[Hashable, Messages]],
        concurrency: int,
        answered: Callable[[Any, Reply], None] = lambda key, reply: None,
        **parameters: Any,
    ) -> dict[Any, Reply]:
        """The replies to `requests` by key, asked `concurrency` at a time.

        answered: called with each key and reply as it comes. Raises UserError for the first request that finally fails,
        after the requests under way have ended.
        """
        failure, replies = None, {}
        with ThreadPoolExecutor(concurrency) as pool:
            waiting = {pool.submit(self.ask, messages, **parameters): key for key, messages in requests}
            for done in as_completed(waiting):
                if done.cancelled():
                    continue
                if error := done.exception():
                    failure = failure or error
                    for other in waiting:
                        other.cancel()
                else:
                    replies[waiting[done]] = done.result()
                    answered(waiting[done], done.result())
        if failure is not None:
            raise failure
        return replies

    def _told(self, error: Exception) -> str:
        who = f"{self.model} at {self.host}"
        if isinstance(error, self._errors.APIStatusError):
            said = " ".join(redact.clean(error.response.text or str(error)).split())[:200]
            to_do = f"; {TO_DO[error.status_code]}" if error.status_code in TO_DO else ""
            return f"{who} refused (HTTP {error.status_code}: {said}){to_do}."
        if isinstance(error, self._errors.APITimeoutError):
            return f"{who} did not answer in time, {RETRIES + 1} times; raise --timeout or lower --concurrency."
        if isinstance(error, self._errors.APIConnectionError):
            return f"{who} can't be reached; check --base-url and that a server listens there."
        return f"{who} sent no chat completion ({type(error).__name__}); check --base-url."


TO_DO = {
    401: f"set {KEY} in the environment to a key of that endpoint",
    403: f"set {KEY} in the environment to a key that may use this model",
    404: "check --base-url, which mostly ends in /v1, and --model",
    429: "lower --concurrency, or wait for the quota",
}


def refused(reply: str, asked: dict[str, Any]) -> str | None:
    """The parameter of `asked` that an endpoint refuses in `reply`, if it can be renamed or left out; else None.

    OpenAI's thinking models accept no `max_tokens`, temperature, `stop` or seed.
    """
    found = re.search(r"[Uu]nsupported (?:parameter|value): '(max_tokens|temperature|stop|seed)'", reply)
    return found[1] if found and found[1] in asked else None


def put(asked: dict[str, Any], refused: Collection[str], thinking: int = 0) -> dict[str, Any]:
    """`asked` without the parameters that an endpoint refuses.

    A limit of tokens is renamed, and then includes thinking: `thinking` is added to it.
    """
    kept = {name: value for name, value in asked.items() if name not in refused}
    if "max_tokens" in refused and "max_tokens" in asked:
        kept["max_completion_tokens"] = asked["max_tokens"] + thinking
    return kept


def spoken(text: str) -> str:
    """A model's answer without its thinking, which some servers leave in the text."""
    _, thought, said = text.rpartition("</think>")
    return said.lstrip() if thought else text


def host(base_url: str) -> str:
    """The host and port of `base_url`, which are all that is shown of it. Raises UserError for a bad address."""
    found = urlsplit(base_url)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise UserError(
            f"--base-url must be an address such as https://api.openai.com/v1, got {redact.redact(base_url)}."
        )
    if found.username or found.password or found.query:
        raise UserError(f"--base-url must be an address without a key or a query; set {KEY} in the environment.")
    return found.hostname + (f":{found.port}" if found.port else "")
