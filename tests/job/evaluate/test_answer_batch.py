"""Sequences answered at a time: as asked, or as many as fit, halved after a shortage; the number is recorded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from job_helpers import no_peak, prepared, run_tiny, tiny  # noqa: F401
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.job.evaluate import answer_batch, rows
from harness.job.evaluate.answer_batch import AnswerBatch
from harness.job.evaluate.engine import Engine
from harness.job.evaluate.kv_cache import Slots
from harness.job.evaluate.row_model import RowModel

GPU, CPU = torch.device("cuda"), torch.device("cpu")
TEXTS = [f"{'a red cat ' * (i % 4)}sees {i} trees:" for i in range(10)]
SETTINGS = {"until": ["\n"], "max_gen_toks": 6}
REQUESTS = [Instance("generate_until", {}, (text, SETTINGS), 0) for text in TEXTS]


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=base"))


@pytest.fixture
def room(monkeypatch):
    """Sets the bytes that the GPU is said to have free."""
    return lambda size: monkeypatch.setattr(answer_batch, "free", lambda device: size)


def answered(bench, asked, device=GPU):
    """The answers, the numbers that were told, and the engine, of which each answer was heard of once."""
    told, heard = [], []
    engine = Engine(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=AnswerBatch(asked, device, told.append))
    engine.cache_hook = SimpleNamespace(add_partial=lambda kind, request, answer: heard.append(request))
    answers = engine.generate_until(REQUESTS, disable_tqdm=True)
    assert sorted(text for text, _ in heard) == sorted(TEXTS)
    return answers, told, engine


@pytest.fixture(scope="module")
def expected(bench):
    stock = HFLM(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=1)
    return stock.generate_until(REQUESTS, disable_tqdm=True)


@pytest.mark.long
def test_auto_is_as_many_as_fit_a_gpu(bench, expected, room):
    room(2**40)
    answers, told, engine = answered(bench, "auto")
    assert (answers, told) == (expected, [10])  # there are no more
    longest = max(len(bench.tokenizer.encode(text)) for text in TEXTS)
    # Keys and values of two layers with two heads of 16 channels in fp32; a token's logits.
    each = 2 * 2 * 2 * 16 * 4 * (longest + 6 + 64) + 10 * len(bench.tokenizer)
    for count in (1, 4):
        room(int(each * (count + 0.5) / answer_batch.SHARE))
        answers, told, _ = answered(bench, "auto")
        assert (answers, told) == (expected, [count])
    room(0)
    assert answered(bench, "auto")[:2] == (expected, [1])
    assert engine.used == {"continuous_batching": "on"}


def test_a_shortage_halves_it_and_no_answer_is_written_twice(bench, expected, room, monkeypatch):
    room(2**40)
    fill = Slots.fill

    def short_of_memory(self, prefix, new, lengths):
        if len(self.lengths) + len(lengths) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        fill(self, prefix, new, lengths)

    monkeypatch.setattr(Slots, "fill", short_of_memory)
    answers, told, _ = answered(bench, "auto")
    assert (answers, told) == (expected, [10, 5, 3])
    with pytest.raises(torch.OutOfMemoryError):
        answered(bench, 8)


def test_other_errors_and_a_single_sequence_are_not_tried_again(bench, room, monkeypatch):
    room(2**40)
    for error, sizes in ((ValueError("no"), [10]), (torch.OutOfMemoryError("CUDA out of memory."), [10, 5, 3, 2, 1])):

        def failing(*_, error=error):
            raise error

        monkeypatch.setattr(Slots, "fill", failing)
        told = []
        batch = AnswerBatch("auto", GPU, told.append)
        with pytest.raises(type(error)):
            Engine(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=batch).generate_until(REQUESTS, True)
        assert told == sizes


@pytest.mark.parametrize(("asked", "used"), [("auto", 16), (3, 3)])
def test_on_a_cpu_auto_is_what_it_was_and_a_number_holds_everywhere(bench, expected, asked, used, room):
    room(0)
    assert answered(bench, asked, CPU)[:2] == (expected, [used])
    assert AnswerBatch(3, GPU).size == 3


CHOICES = [Instance("loglikelihood", {}, (text, end), 0) for text in TEXTS for end in (" nine", " old cats", " a")]


def likelihoods(bench):
    """Log-likelihoods, what lm-eval's cache heard of, and the engine."""
    heard = []
    engine = Engine(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=2)
    engine.cache_hook = SimpleNamespace(add_partial=lambda kind, request, answer: heard.append(request))
    return engine.loglikelihood(CHOICES, disable_tqdm=True), heard, engine


def test_a_shortage_halves_rows_of_log_likelihoods_and_answers_none_twice(bench, monkeypatch):
    whole, _, engine = likelihoods(bench)
    assert engine.used == {"shared_prefix": "on"}
    forward, sizes = RowModel.forward, []

    def short_of_memory(self, segments, *rest):
        sizes.append(rows.size(segments))
        if sizes[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, segments, *rest)

    monkeypatch.setattr(Engine, "_disagreement", lambda *_, **__: None)
    monkeypatch.setattr(RowModel, "forward", short_of_memory)
    found, heard, engine = likelihoods(bench)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in whole], abs=1e-3)
    assert [same for _, same in found] == [same for _, same in whole]
    assert sorted(heard) == sorted(request.args for request in CHOICES)
    assert max(sizes) > 40 >= engine.room


def test_a_row_of_one_sequence_is_not_tried_again(bench, monkeypatch):
    monkeypatch.setattr(Engine, "_disagreement", lambda *_, **__: None)
    tried = []

    def failing(self, segments, *_):
        tried.append(segments)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(RowModel, "forward", failing)
    with pytest.raises(torch.OutOfMemoryError):
        likelihoods(bench)
    assert max(map(len, tried)) > 1
    assert len(tried[-1]) == 1


def test_stocks_batches_are_fitted_too(bench, expected, room, monkeypatch):
    monkeypatch.setattr(Engine, "_obstacle", lambda *_: "asked for")
    longest = max(len(bench.tokenizer.encode(text)) for text in TEXTS)
    each = (10 * len(bench.tokenizer) + 8 * 2 * 64) * (longest + 6)
    room(int(each * 3.5 / answer_batch.SHARE))
    answers, told, engine = answered(bench, "auto")
    assert (answers, told) == (expected, [3])
    asked = [Instance("loglikelihood", {}, (text, " nine"), 0) for text in TEXTS]
    stock = HFLM(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=1)
    found = engine.loglikelihood(asked, disable_tqdm=True)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in stock.loglikelihood(asked, True)], abs=1e-3)
    assert len(told) == 2


@pytest.mark.long
def test_the_number_is_recorded(tmp_path):
    sizes = []
    for speedups in ("auto", "off"):
        record = run_tiny(
            tmp_path / speedups, "method=base", "eval.tasks=[wordmath]", "eval.limit=2", f"speedups={speedups}"
        )
        assert record.status == "ok", record.failure
        sizes.append(record.environment["eval_batch_size"])
        assert record.cell.settings.eval.batch_size == "auto"
    assert sizes == [16, 16]
