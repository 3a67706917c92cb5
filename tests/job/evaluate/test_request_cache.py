"""Requests on disk: the same as built ones, by all that decides them; damaged files are made again."""

from __future__ import annotations

import copy
import multiprocessing
import os

import pandas as pd
import pytest
from job_helpers import prepared, tiny
from lm_eval.api.task import ConfigurableTask
from transformers import PreTrainedTokenizerFast

from harness.job.evaluate import request_cache, scoring
from harness.job.evaluate.tokenising import identity
from harness.settings import EvalSettings

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def bench():
    return prepared(tiny("method=base"))


@pytest.fixture
def work(monkeypatch):
    """How many contexts were built, and texts tokenised, in a dict."""
    counts = {"built": 0, "tokenised": 0}

    def counted(kind, name, key):
        plain = getattr(kind, name)

        def called(self, *args, **kwargs):
            counts[key] += 1
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, called)

    counted(ConfigurableTask, "fewshot_context", "built")
    counted(PreTrainedTokenizerFast, "_encode_plus", "tokenised")
    return counts


def loaded(*names, shots=2, limit=6, **more):
    """Tasks in a process that knows none yet."""
    return scoring.Tasks(EvalSettings(list(names), limit, shots, batch_size=8, seed=0, **more), None)


def requests_of(tasks):
    return {leaf: tasks.leaves[leaf].instances for leaf in tasks.sample}


def built(*names, **more):
    tasks = loaded(*names, **more)
    tasks.build()
    return requests_of(tasks)


@pytest.mark.long
def test_the_next_cell_builds_and_tokenises_nothing_and_is_asked_the_same(bench, cached_requests, work, monkeypatch):
    results = []
    for _ in range(2):
        tasks = loaded("facts", "wordmath")
        tasks.build()
        asked = requests_of(tasks)
        before = dict(work)
        results.append((asked, *scoring.score(bench.net, bench.tokenizer, tasks, 8, None)[:2], dict(before)))
        work["built"] = 0
    (first, scores, items, _), (second, again, same, counts) = results
    assert counts["built"] == 0
    assert second == first
    assert scores == again
    pd.testing.assert_frame_equal(items, same)
    # Neither is anything read that is not there: built anew, without a cache, they are the same too.
    monkeypatch.setattr(request_cache, "folder", lambda: cached_requests / "other")
    assert built("facts", "wordmath") == first
    assert work["built"] == 12


@pytest.mark.long
def test_tokens_come_from_the_file(bench, cached_requests, work):
    taken = []
    for _ in range(2):
        tasks = loaded("facts", "wordmath")
        before = work["tokenised"]
        items = scoring.score(bench.net, bench.tokenizer, tasks, 8, None)[1]
        taken.append((work["tokenised"] - before, items))
    assert taken[1][0] < 10 < taken[0][0]  # stop texts are tokenised by whoever writes answers
    pd.testing.assert_frame_equal(taken[0][1], taken[1][1])


@pytest.mark.parametrize(
    "other",
    [
        {"shots": 1},
        {"limit": 5},
        {"system_instruction": "Be brief."},
    ],
)
def test_what_is_asked_otherwise_has_another_file(cached_requests, work, other):
    first = built("facts")
    files, work["built"] = len(list(cached_requests.iterdir())), 0
    second = built("facts", **other)
    assert work["built"] > 0
    assert len(list(cached_requests.iterdir())) == 2 * files
    assert second != first


def test_other_documents_have_another_file(cached_requests, work, monkeypatch):
    first = built("facts")
    docs = ConfigurableTask.test_docs
    monkeypatch.setattr(
        ConfigurableTask, "test_docs", lambda self: docs(self).map(lambda doc: {"question": f"{doc['question']}?"})
    )
    work["built"] = 0
    second = built("facts")
    assert work["built"] == 6
    assert [one.args for one in second["facts"]] != [one.args for one in first["facts"]]


def test_requests_in_a_template_go_by_the_tokenizer_and_its_template(bench, cached_requests, work):
    found = []
    for template in (TEMPLATE, TEMPLATE, f"{TEMPLATE}!"):
        tokenizer = copy.deepcopy(bench.tokenizer)
        tokenizer.chat_template = template
        tasks = loaded("facts", limit=2, chat_template=True)
        before = work["built"]
        scoring.score(bench.net, tokenizer, tasks, 2, None)
        found.append((work["built"] - before, requests_of(tasks)["facts"][0].args[0]))
    assert [count for count, _ in found] == [2, 0, 2]
    assert found[0][1] == found[1][1]
    assert found[2][1] == f"{found[0][1]}!"
    # By the name alone, which lm-eval's own class gives, nothing is kept.
    files = len(list(cached_requests.iterdir()))
    scoring.score(bench.net, tokenizer, loaded("facts", limit=3, chat_template=True), 2, None, speedups=False)
    assert len(list(cached_requests.iterdir())) == files


def test_a_tokenizers_identity(bench):
    plain, other, dated = (copy.deepcopy(bench.tokenizer) for _ in range(3))
    assert identity(plain) == identity(bench.tokenizer)
    plain(["a", "longer text"], padding="longest")  # which the tokenizer keeps in mind
    assert identity(plain) == identity(bench.tokenizer)
    other.add_tokens(["<new>"])
    dated.chat_template = "{{ strftime_now('%d') }}"
    assert len({identity(tokenizer) for tokenizer in (plain, other, dated)}) == 3


def damages(path):
    data = path.read_bytes()
    yield "empty", b""
    yield "cut", data[: len(data) // 2]
    yield "other bits", data[:40] + bytes(255 - byte for byte in data[40:60]) + data[60:]
    yield "other text", b"{}"


@pytest.mark.parametrize("kind", range(4))
def test_a_damaged_file_is_made_again(cached_requests, work, kind):
    first = built("facts")
    (path,) = cached_requests.iterdir()
    whole = path.read_bytes()
    path.write_bytes(list(damages(path))[kind][1])
    work["built"] = 0
    assert built("facts") == first
    assert work["built"] == 6
    assert path.read_bytes() == whole
    assert built("facts") == first
    assert work["built"] == 6


def _build(queue):
    queue.put([one.args for one in built("facts")["facts"]])


def test_two_cells_may_write_at_once(cached_requests):
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    cells = [fork.Process(target=_build, args=(queue,)) for _ in range(3)]
    for cell in cells:
        cell.start()
    found = [queue.get(timeout=60) for _ in cells]
    for cell in cells:
        cell.join()
    assert found[0] == found[1] == found[2]
    assert [path.suffix for path in cached_requests.iterdir()] == [".parquet"]


def test_where_nothing_can_be_written_nothing_fails(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(request_cache, "folder", lambda: blocked / "requests")
    assert len(built("facts")["facts"]) >= 6


def test_files_that_nobody_reads_are_deleted(cached_requests):
    built("facts")
    (old,) = cached_requests.iterdir()
    os.utime(old, (0, 0))
    built("facts", limit=5)
    assert old not in cached_requests.iterdir()
    assert len(list(cached_requests.iterdir())) == 1


def test_a_sequence_is_kept_as_what_differs_from_the_one_before():
    pairs = [([1, 2, 3], [4]), ([1, 2, 3], [5, 6]), ([7], []), ([7], [8])]
    table = request_cache._coded(pairs)
    assert table["rest"].to_pylist() == [[1, 2, 3, 4], [5, 6], [7], [8]]
    assert list(request_cache._pairs(table)) == pairs
