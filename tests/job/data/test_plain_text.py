"""Plain text's loss: passages of prose, and bits a byte by hand on a real forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from job_helpers import tiny

from harness.job.data.generators import plain_text
from harness.job.evaluate import scoring
from harness.job.models import loading


def test_passages_are_prose_and_the_same_on_every_call():
    passages = plain_text.load()["test"]
    assert passages == plain_text.load()["test"]
    texts = [f"{p['opening']} {p['rest']}" for p in passages]
    assert len(texts) == len(set(texts)) >= 100  # Python 3.11 has 144
    for passage, text in zip(passages, texts, strict=True):
        assert len(passage["opening"].split(" ")) == plain_text.OPENING
        assert plain_text.SHORTEST <= len(text) <= plain_text.LONGEST
        assert text[0].isupper()
        assert text.endswith(".")
        assert ">>>" not in text


@pytest.mark.parametrize("speedups", [True, False])
def test_the_score_is_the_loss_per_byte_after_the_opening(speedups):
    cell = tiny("eval=plain_text", "eval.limit=3")
    net, tokenizer = loading.load(cell, torch.device("cpu")), loading.tokenizer(cell.settings.model)
    tasks = scoring.Tasks(cell.settings.eval, None)
    (found,), items, _ = scoring.score(net, tokenizer, tasks, 4, None, speedups=speedups)

    passages = plain_text.load()["test"]
    losses = []
    for i in items["item"]:
        opening = tokenizer(passages[i]["opening"])["input_ids"]
        ids = tokenizer(f"{passages[i]['opening']} {passages[i]['rest']}")["input_ids"]
        assert ids[: len(opening)] == opening
        with torch.inference_mode():
            logits = net(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats = -sum(float(logits[j - 1, ids[j]]) for j in range(len(opening), len(ids)))
        losses.append(nats / math.log(2) / len(passages[i]["rest"].encode()))
    assert items["value"].tolist() == pytest.approx(losses, rel=1e-4)
    assert (found.task, found.metric, found.n) == ("plain_text", "bits_per_byte", 3)
    assert found.value == pytest.approx(sum(losses) / 3)
    assert found.stderr > 0
    assert not found.higher_is_better
