"""Asks a model behind an OpenAI-compatible API: chat completions, several at a time, tried again where that can help.

The key is the environment's OPENAI_API_KEY and nowhere else; a server of one's own mostly wants none.
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
THINKING = 8192  # tokens more, where a limit is of what a model thinks before it answers too
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
        self._errors, self._refused = openai, set()
        self._api = openai.OpenAI(
            base_url=base_url, api_key=os.environ.get(KEY) or "none", timeout=timeout, max_retries=RETRIES
        )

    def ask(self, messages: Messages, **parameters: Any) -> Reply:
        """The answer to `messages`; UserError if there is none after all tries."""
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
            text=spoken(choice.message.content or "").encode("utf-8", "ignore").decode(),  # no halves of pairs
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
    """What of `asked` an endpoint refuses in `reply`, where it can be put in another way or left out; else None.

    OpenAI's models that think before they answer take no `max_tokens`, temperature, `stop` or seed.
    """
    found = re.search(r"[Uu]nsupported (?:parameter|value): '(max_tokens|temperature|stop|seed)'", reply)
    return found[1] if found and found[1] in asked else None


def put(asked: dict[str, Any], refused: Collection[str], thinking: int = 0) -> dict[str, Any]:
    """`asked` without what an endpoint refuses.

    A limit of tokens goes by another name then, and is of thoughts as well: `thinking` is added to it.
    """
    kept = {name: value for name, value in asked.items() if name not in refused}
    if "max_tokens" in refused and "max_tokens" in asked:
        kept["max_completion_tokens"] = asked["max_tokens"] + thinking
    return kept


def spoken(text: str) -> str:
    """What a model says after it has thought, where a server leaves its thoughts in the answer."""
    _, thought, said = text.rpartition("</think>")
    return said.lstrip() if thought else text


def host(base_url: str) -> str:
    """The host and port that `base_url` names, which is all of it that is told; UserError if it is no such address."""
    found = urlsplit(base_url)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise UserError(f"--base-url {redact.redact(base_url)} is no address such as https://api.openai.com/v1.")
    if found.username or found.password or found.query:
        raise UserError(f"--base-url holds more than an address; leave a key out and set {KEY} in the environment.")
    return found.hostname + (f":{found.port}" if found.port else "")
