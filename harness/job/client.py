"""Asks a model behind an OpenAI-compatible API: chat completions, several at a time, tried again where that can help.

The key is the environment's OPENAI_API_KEY and nowhere else; a server of one's own mostly wants none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from harness import private
from harness.errors import UserError

KEY = "OPENAI_API_KEY"
RETRIES = 5  # with growing pauses, of what may pass: no connection, time-outs, too many requests, errors of the server

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    whole: false if the answer was cut off; read, written: tokens, null where the server does not tell.
    """

    text: str
    whole: bool
    read: int | None
    written: int | None


class Client:
    """One model at one endpoint. timeout: seconds that an answer may take."""

    def __init__(self, base_url: str, model: str, timeout: float):
        try:
            import openai
        except ImportError:
            raise UserError(
                "To ask a model behind an API needs the extra `api`: pip install -e '.[api]' in the project's folder."
            ) from None
        self.base_url, self.model, self.host = base_url, model, host(base_url)
        self._errors = openai
        self._api = openai.OpenAI(
            base_url=base_url, api_key=os.environ.get(KEY) or "none", timeout=timeout, max_retries=RETRIES
        )

    def ask(self, messages: Messages, **parameters: Any) -> Reply:
        """The answer to `messages`; UserError if there is none after all tries."""
        try:
            found = self._api.chat.completions.create(model=self.model, messages=messages, **parameters)
        except self._errors.OpenAIError as error:
            raise UserError(self._told(error)) from error
        if not found.choices:
            raise UserError(f"{self.model} at {self.host} sent no chat completion; check --base-url.")
        choice, used = found.choices[0], found.usage
        return Reply(
            text=(choice.message.content or "").encode("utf-8", "ignore").decode(),  # no halves of pairs
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
        """The replies to `requests` by their keys, asked `concurrency` at a time; `answered` is told of each at once.

        Raises UserError for the first that fails for good; what was being asked then is still told of.
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
            said = " ".join(private.clean(error.response.text or str(error)).split())[:200]
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


def host(base_url: str) -> str:
    """The host and port that `base_url` names, which is all of it that is told; UserError if it is no such address."""
    found = urlsplit(base_url)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise UserError(f"--base-url {private.redact(base_url)} is no address such as https://api.openai.com/v1.")
    if found.username or found.password or found.query:
        raise UserError(f"--base-url holds more than an address; leave a key out and set {KEY} in the environment.")
    return found.hostname + (f":{found.port}" if found.port else "")
