"""Asks several models the same prompts: untuned models, tuned models from saved weights, models behind an API.

A judge can compare two answers: harness/plugins/api/job/judge.py.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BatchEncoding, EosTokenCriteria, PreTrainedTokenizerBase

from harness import gate, record
from harness.errors import UserError
from harness.job.data import chat, columns, encoding
from harness.job.evaluate import decoding
from harness.job.measure import device
from harness.job.models import loading, saved, structure
from harness.plugins.api import checks
from harness.plugins.api.job.client import USUAL, Client, Origin
from harness.plugins.api.job.journal import Journal
from harness.plugins.api.job.judge import AnswerPair, Judge
from harness.plugins.api.requests import AskModels, LocalModel
from harness.protocol import Report
from harness.record import Cell, Record

Answers = list[str | None]
"""One model's, by prompt; null where there is none."""


def ask(request: AskModels, report: Report) -> dict[str, Any]:
    """The answers, and the judge's verdicts.

    models: labels. answers: of each model, one for each prompt; null where an API gave none, of which a warning says
    why. judge: null without one, or if it does not answer; else its name, host, tokens and verdicts: for each model
    after the first, and each prompt that both answered: 1 if the model's answer is better, 0 if the first model's is,
    0.5 for a tie, null if the judge gave no verdict.

    report: called with the model that is asked, and with warnings. Raises UserError if weights can't be loaded, or if
    the first API with a model fails before it has answered a prompt.
    """

    def warn(sentence: str) -> None:
        report({"warning": sentence})

    judge = None if request.judge is None else _judge(request, warn)  # a bad address is refused before models answer
    by_api: list[Answers] = []
    by_weights: list[Answers] = []
    for name in request.api:  # first: one that is out of reach says so before models are loaded
        report({"asking": name})
        by_api.append(_asked_by_api(name, request, warn, others_asked=bool(by_api)))
    for local in request.local:
        report({"asking": local.label})
        by_weights.append(_asked(local, request.prompts, request.tokens))
    answers = [*by_weights, *by_api]
    judged = None
    if judge is not None:
        report({"asking": f"{request.judge}, which judges"})
        try:
            judged = _judged(judge, request, answers)
        except UserError as error:
            warn(f"The answers are not judged: {error}")
    return {"models": [*(of.label for of in request.local), *request.api], "answers": answers, "judge": judged}


def _asked_by_api(name: str, request: AskModels, warn: Callable[[str], None], others_asked: bool) -> Answers:
    """others_asked: whether other models were asked before, whose answers an exception would lose."""
    if request.base_url is None:
        raise ValueError("A request to ask models behind an API must have the API's address.")
    client = Client(request.base_url, name, request.timeout, warn, Origin(model="--api"))
    journal = Journal(None, client)
    questions = [(str(i), [{"role": "user", "content": prompt}]) for i, prompt in enumerate(request.prompts)]
    try:
        refusals = journal.ask_all(questions, request.concurrency, max_tokens=request.tokens, temperature=0.0)
    except UserError as error:
        if not (others_asked or journal.answers):
            raise
        warn(str(error))
    else:
        if refusals:
            warn(f"{client.refusal_clause(refusals, len(questions), 'prompt')}.")
    return [journal.answers[key].text.strip() if key in journal.answers else None for key, _ in questions]


# On this machine


def _asked(local: LocalModel, prompts: list[str], tokens: int) -> Answers:
    on = device.here()
    path = Path(local.record)
    found = gate.admitted(path)
    net = _saved(found, record.model_folder(path), on) if local.tuned else loading.load(_plain(found.cell), on)
    tokenizer = loading.tokenizer(found.cell.settings.model)
    answers: Answers = [_answer(net.eval(), tokenizer, local.prompt, prompt, tokens) for prompt in prompts]
    del net
    gc.collect()  # before the next model is loaded
    if on.type == "cuda":
        torch.cuda.empty_cache()
    return answers


def _saved(found: Record, folder: Path, on: torch.device) -> nn.Module:
    """An adapter is put on the cell's base, quantised if it was; whole weights are loaded as saved."""
    if saved.form_of(found) != "adapter":
        found = replace(found, cell=_plain(found.cell))
    return saved.load(found, folder, on)


def _plain(cell: Cell) -> Cell:
    """`cell` without quantisation."""
    method = cell.settings.method
    load = {key: value for key, value in method.load.items() if key != "quantization_config"}
    return replace(cell, settings=replace(cell.settings, method=replace(method, load=load)))


@torch.inference_mode()
def _answer(net: nn.Module, tokenizer: PreTrainedTokenizerBase, template: str | None, prompt: str, tokens: int) -> str:
    """The greedy answer, up to the begin of another question, as in evaluations."""
    asked, begins = _encoded(tokenizer, template, prompt)
    asked = asked.to(structure.inner(net).device)
    ids = asked["input_ids"]
    with decoding.plain_generation(net, chat.turn_end(tokenizer) if template is None else None):
        if structure.prompted(net):
            ends = structure.inner(net).generation_config.eos_token_id or tokenizer.eos_token_id
            written = decoding.written(net, ids, tokens, [EosTokenCriteria(ends)])
        else:
            generate: Any = net.generate  # torch types a module's unknown attributes as tensors or modules
            written = generate(**asked, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    text = encoding.decoded(tokenizer, written[0, ids.shape[1] :])
    return (text.partition(f"\n{begins}")[0] if begins else text).strip()


def _encoded(tokenizer: PreTrainedTokenizerBase, template: str | None, prompt: str) -> tuple[BatchEncoding, str]:
    """The tokens of `prompt`, and what another question would begin with. template: null for the chat template."""
    if template is None:
        turns = [{"role": "user", "content": prompt}]
        form: dict[str, Any] = {"return_tensors": "pt", "return_dict": True, "enable_thinking": False}
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **form)
        assert isinstance(encoded, BatchEncoding)  # with return_dict
        return encoded, ""
    text, begins = put(template, prompt)
    return tokenizer(text, return_tensors="pt"), begins


def put(template: str, prompt: str) -> tuple[str, str]:
    """`prompt` in the field of a `template` for a question, other fields empty; and the last line before all fields."""
    before = template.partition("{")[0].rstrip()
    filled = defaultdict(str, {columns.question_field(template): prompt})
    return template.format_map(filled), before.rpartition("\n")[2]


# The judge


def _judge(request: AskModels, warn: Callable[[str], None]) -> Judge:
    if request.judge is None or request.judge_url is None:
        raise ValueError("A request for a judge's verdicts must have the judge's name and address.")
    url = USUAL.url if request.judge_url == request.base_url else "--judge-url"
    elsewhere = request.base_url is not None and _server(request.judge_url) != _server(request.base_url)
    key = "JUDGE_API_KEY" if elsewhere else USUAL.key  # which is for the server of the models
    origin = Origin(url, "--judge", key)
    return Judge(request.judge_url, request.judge, request.timeout, warn, origin)


def _server(base_url: str) -> tuple[str, str | None, int | None] | None:
    """Scheme, host and port, null if it is the scheme's own, of an address; None for a bad one."""
    url = checks.address(base_url)
    if url is None:
        return None
    return url.scheme, url.hostname, None if url.port == {"http": 80, "https": 443}[url.scheme] else url.port


def _judged(judge: Judge, request: AskModels, answers: list[Answers]) -> dict[str, Any]:
    pairs = {
        (i, j): AnswerPair(prompt, base, other)
        for i, prompt in enumerate(request.prompts)
        for j in range(1, len(answers))
        if (base := answers[0][i]) is not None and (other := answers[j][i]) is not None
    }
    found = judge.compare([*pairs.values()], request.concurrency)
    compared = zip(pairs, found.said, found.values, strict=True)
    verdicts = [{"prompt": i, "model": j, "said": said, "value": value} for (i, j), said, value in compared]
    return {"model": request.judge, "host": found.host, "verdicts": verdicts, "tokens": found.tokens}
