"""What serves the requests of the commands that ask models, in a job."""

from __future__ import annotations

from pathlib import Path

from harness.job.services import Send
from harness.plugins.api.requests import AskModels, JudgeAnswers, Synthesize
from harness.protocol import Progress, Report, Result, Warned


def synthesize(request: Synthesize, send: Send) -> None:
    from harness.plugins.api.job import synthesis

    send(Result(synthesis.synthesize(request, _progress(send, "synthesize"))))


def ask(request: AskModels, send: Send) -> None:
    from harness.plugins.api.job import prompting

    send(Result(prompting.ask(request, _progress(send, "ask"))))


def judge(request: JudgeAnswers, send: Send) -> None:
    from harness.plugins.api.job.client import Origin
    from harness.plugins.api.job.judge import AnswerPair, Judge

    judge = Judge(
        request.judge_url,
        request.judge,
        request.timeout,
        lambda sentence: send(Warned(sentence)),
        Origin(model="--judge"),
        Path(request.replies),
    )
    pairs = [AnswerPair(*of) for of in zip(request.prompts, request.base, request.other, strict=True)]
    verdicts = judge.compare(pairs, request.concurrency)
    said = {"host": verdicts.host, "values": verdicts.values, "refused": verdicts.refused, "tokens": verdicts.tokens}
    send(Result(said))


def _progress(send: Send, phase: str) -> Report:
    """A function that sends a report of `phase`: a warning as Warned, all else as what Progress tells besides."""
    return lambda report: send(Warned(report["warning"]) if "warning" in report else Progress(phase, other=report))
