"""What the commands on models behind an API ask of a job, and what a cell's request carries to ask its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from harness import record
from harness.errors import UserError
from harness.protocol import Request
from harness.settings import DataSettings, EvalSettings

NEEDED = ("aiohttp", "tenacity")  # packages of the extra `api` that lm-eval does not require


def require(whose: str) -> None:
    """Raise UserError, which begins with `whose`, if packages of the extra `api` are missing."""
    if missing := [package for package in NEEDED if find_spec(package) is None]:
        raise UserError(
            f"{whose} the extra `api` ({', '.join(missing)}): pip install -e '.[api]' in the project's folder."
        )


@dataclass(frozen=True)
class ApiAccess:
    """How a model behind an API is asked; it changes no answer, so it is no part of a cell.

    The first fields are those of ApiConfig; key_env and prices those of harness.config.ModelConfig. answers: the cell's
    file of answers.
    """

    concurrency: int
    per_minute: float | None
    timeout: float
    retries: int
    backoff: float
    key_env: str | None
    price_read: float | None
    price_written: float | None
    answers: str

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any] | None) -> ApiAccess:
        """As the request for a cell carries it; ValueError if it carries something else."""
        access: ApiAccess = record.decode(cls, None if extra is None else {**extra})
        return access


@dataclass(frozen=True)
class Synthesize(Request):
    """Have a model write problems.

    file: of seed items, one a line; data: else the settings of a data set. eval: the settings of an evaluation whose
    items must not be among the problems. n: problems wanted. most: limit of questions. concurrency: questions at a
    time. out: the file to write.
    """

    target: ClassVar[str] = "harness.plugins.api.job.services:synthesize"

    file: str | None
    data: DataSettings | None
    eval: EvalSettings
    data_root: str | None
    n: int
    most: int
    kinds: list[str]
    seed: int
    base_url: str
    model: str
    concurrency: int
    timeout: float
    out: str


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine: of the cell with its record at `record`, as saved, or untuned.

    prompt: the prompt template of the cell's data, whose first field takes the question; null for the chat template.
    """

    label: str
    record: str
    tuned: bool
    prompt: str | None


@dataclass(frozen=True)
class AskModels(Request):
    """Put prompts to all of `local`, then to the models `api`, in order. tokens: limit of an answer.

    judge: the name of a model at judge_url; null for none.
    """

    target: ClassVar[str] = "harness.plugins.api.job.services:ask"

    prompts: list[str]
    local: list[LocalModel]
    api: list[str]
    base_url: str | None
    judge: str | None
    judge_url: str | None
    tokens: int
    concurrency: int
    timeout: float


@dataclass(frozen=True)
class JudgeAnswers(Request):
    """Have the model `judge` behind an API compare two answers to each of `prompts`: of `base`, and of `other`.

    replies: the file that keeps the judge's replies.
    """

    target: ClassVar[str] = "harness.plugins.api.job.services:judge"

    prompts: list[str]
    base: list[str]
    other: list[str]
    judge: str
    judge_url: str
    concurrency: int
    timeout: float
    replies: str
