"""Asks a model behind an OpenAI-compatible API for chat completions.

The key is read from the environment only; local servers mostly need none.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import redact, units
from harness.errors import UserError
from harness.job.ended import CellEnded
from harness.plugins.api import requests
from harness.plugins.api.checks import address

if TYPE_CHECKING:
    from harness.plugins.api.job.endpoint import Response, Unsuccessful

THINKING = 8192  # tokens added to a limit that includes the model's thinking
RETRIES, BACKOFF = 5, 0.5  # tries after the first, and seconds before the first of them
TO_DO = {
    401: "set {key} in the environment to a key of that endpoint",
    403: "set {key} in the environment to a key that may use this model",
    **dict.fromkeys((301, 302, 303, 307, 308), "check {url}, which leads to another address"),
    404: "check {url}, which mostly ends in /v1, and {model}",
    429: "lower --concurrency, or wait for the quota",
}

Messages = list[dict[str, str]]


class Origin(NamedTuple):
    """Where a command has a model's address, name and key from: two options, and a variable of the environment."""

    url: str = "--base-url"
    model: str = "--model"
    key: str = "OPENAI_API_KEY"


USUAL = Origin()


class Stopped(CellEnded):
    """The endpoint does not answer. The message is one sentence; earlier answers are kept."""


@dataclass(frozen=True)
class Reply:
    """A model's answer.

    whole: false if it was cut off. read, written: tokens; null if the server does not report them.
    """

    text: str
    whole: bool
    read: int | None
    written: int | None


def token_totals(answers: Sequence[Reply]) -> dict[str, int | None]:
    """The number of ``answers``, and the tokens of all that were ``read`` and ``written``; null if one is not known."""
    counts = {name: [getattr(answer, name) for answer in answers] for name in ("read", "written")}
    return {"answers": len(answers)} | {name: None if None in each else sum(each) for name, each in counts.items()}


class Client:
    """One model at one endpoint.

    timeout: of an answer, in seconds. tell: called with a sentence when the endpoint asks to wait. origin: of the key,
    and what messages name. Raises UserError for a bad address.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        timeout: float,
        tell: Callable[[str], None] = lambda sentence: None,
        origin: Origin = USUAL,
    ):
        requests.require("Models behind an API require")
        from harness.plugins.api.job.endpoint import Endpoint

        self.model, self.host, self._origin = model, host(base_url, origin), origin
        url = f"{base_url.rstrip('/')}/chat/completions"
        self._endpoint = Endpoint(url, os.environ.get(origin.key), timeout, RETRIES, BACKOFF, None, THINKING, tell)

    def ask(self, messages: Messages, **parameters: Any) -> Reply:
        """The answer to `messages`. Raises UserError if there is none after all tries."""
        return self.ask_all([(0, messages)], 1, **parameters)[0]

    def ask_all(
        self,
        requests: Sequence[tuple[Hashable, Messages]],
        concurrency: int,
        answered: Callable[[Any, Reply], None] = lambda key, reply: None,
        refused: Callable[[Any, str], bool] = lambda key, reason: False,
        **parameters: Any,
    ) -> dict[Any, Reply]:
        """The replies to `requests` by key, asked `concurrency` at a time.

        answered: called with each key and reply as it comes. refused: called with the key of a request whose content
        the endpoint refuses, and with what it says; returns whether to go on without a reply to it. Raises UserError
        for the first other request that finally fails, after the requests under way have ended.
        """
        from harness.plugins.api.job.endpoint import Unsuccessful

        replies: dict[Any, Reply] = {}

        def keep(key: Any, answer: Response[Reply]) -> None:
            replies[key] = answer.value
            answered(key, answer.value)

        def refuse(key: Any, error: Unsuccessful) -> bool:
            return refused(key, f"{error.sign}: {_said(error)}")

        payloads = {key: {"model": self.model, "messages": messages} | parameters for key, messages in requests}
        try:
            asyncio.run(self._endpoint.ask_all(payloads, concurrency, lambda _, text: _read(text), keep, refuse))
        except Unsuccessful as error:
            raise UserError(self._reason(error)) from error
        return replies

    def refusal_clause(self, refusals: Mapping[Any, str], count: int, kind: str) -> str:
        """Says that `refusals` of `count` requests were refused, and why the first was; without a full stop.

        refusals: what the endpoint says of each refused request. kind: what a request is called, such as "prompt".
        """
        reason = next(iter(refusals.values()))
        return f"{self._who} refused {len(refusals)} of {units.plural(count, kind)} ({reason})"

    @property
    def _who(self) -> str:
        return f"{self.model} at {self.host}"

    def _reason(self, error: Unsuccessful) -> str:
        from harness.plugins.api.job.endpoint import ALL_WAITING, TRUST

        who = self._who
        said = _said(error)
        if error.kind == "waiting":
            limit = f"{ALL_WAITING / 60:g} minutes"
            return (
                f"{who} asked to wait for more than {limit} in all (HTTP {error.status}: {said}); {self._to_do(429)}."
            )
        if error.kind == "status":
            to_do = f"; {self._to_do(error.status)}" if error.status in TO_DO and not error.flagged else ""
            return f"{who} refused (HTTP {error.status}: {said}){to_do}."
        other = {
            "size": f"sent no chat completion: {error.text}; check {self._origin.url}",
            "filtered": f"held its answer back by a filter of contents ({said})",
            "error": f"sent an error in place of an answer ({error.tries} tries): {said}",
            "timeout": f"did not answer in time, {error.tries} times; raise --timeout or lower --concurrency",
            "connection": f"can't be reached; check {self._origin.url} and that a server listens there",
            "proxy": f"can't be reached through the environment's proxy ({said}); check HTTPS_PROXY and NO_PROXY",
            "certificate": f"has a certificate that is not trusted ({said}); {TRUST}",
        }
        return f"{who} {other.get(error.kind, f'sent no chat completion; check {self._origin.url}')}."

    def _to_do(self, status: int) -> str:
        return TO_DO[status].format(**self._origin._asdict())


def _said(error: Unsuccessful) -> str:
    """The beginning of what an endpoint says, on one line, without secrets."""
    return " ".join(redact.clean(error.text).split())[:200]


def _read(text: str) -> Reply:
    from harness.plugins.api.job.endpoint import QUOTED, Unsuccessful, from_json, only_choice, spoken, token_counts

    try:
        response = from_json(text)
        choice, (prompt_tokens, completion_tokens) = only_choice(response), token_counts(response)
        return Reply(
            text=spoken(choice["message"].get("content")).encode("utf-8", "ignore").decode(),  # without lone surrogates
            whole=choice.get("finish_reason") != "length",
            read=prompt_tokens,
            written=completion_tokens,
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Unsuccessful("response", text[:QUOTED], again=False) from None


def host(base_url: str, origin: Origin = USUAL) -> str:
    """The host and port of `base_url`, which are all that is shown of it. Raises UserError for a bad address."""
    url = address(base_url)
    if url is None:
        raise UserError(
            f"{origin.url} must be an address such as https://api.openai.com/v1, got {redact.redact(base_url)}."
        )
    if url.username or url.password or url.query:
        raise UserError(
            f"{origin.url} must be an address without a key or a query; set {origin.key} in the environment."
        )
    return f"{url.hostname}" + (f":{url.port}" if url.port else "")
