"""What serves the requests of the commands that ask models, in a job."""

from __future__ import annotations

from harness.job.services import Send, progress
from harness.plugins.api.requests import AskModels, JudgeAnswers, Synthesize
from harness.protocol import Result, Warned


def synthesize(request: Synthesize, send: Send) -> None:
    from harness.plugins.api.job import synthesis

    send(Result(synthesis.synthesize(request, progress(send, phase="synthesize"))))


def ask(request: AskModels, send: Send) -> None:
    from harness.plugins.api.job import prompting

    send(Result(prompting.ask(request, progress(send, phase="ask"))))


def judge(request: JudgeAnswers, send: Send) -> None:
    from harness.plugins.api.job.judge import AnswerPair, Judge

    judge = Judge(request.judge_url, request.judge, request.timeout, lambda sentence: send(Warned(sentence)))
    pairs = [AnswerPair(*of) for of in zip(request.prompts, request.base, request.other, strict=True)]
    verdicts = judge.compare(pairs, request.concurrency)
    send(Result({"host": verdicts.host, "values": verdicts.values, "tokens": verdicts.tokens}))
