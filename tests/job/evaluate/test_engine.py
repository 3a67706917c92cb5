"""The engine beside stock `HFLM`: the same numbers for every kind of model, and the reason where it stands back."""

from __future__ import annotations

import copy
import functools
import itertools
import random
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from job_helpers import prepared, tiny
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import (
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from harness.job.evaluate import engine, rows, scoring
from harness.job.evaluate.engine import Engine
from harness.job.evaluate.plain_model import PlainModel
from harness.job.evaluate.rows import CALL, grouped
from harness.job.training import attention
from harness.job.training.attention import PROMPTED
from harness.settings import EvalSettings

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "head_dim": 16}
WIDE = {"initializer_range": 0.4}  # of the weights: else what a token attends to hardly moves a logit
WINDOW = 24


@pytest.fixture(scope="module")
def tokenizer():
    return prepared(tiny("method=base")).tokenizer


def llama(vocab, **more):
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **SMALL, **HEADS, **WIDE, **more))


def gpt2(vocab):
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=512, **WIDE))


def lora(vocab):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(llama(vocab), config)


def nf4(vocab, tmp_path):
    llama(vocab).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")


def mistral(vocab, window=WINDOW):
    return MistralForCausalLM(MistralConfig(vocab_size=vocab, sliding_window=window, **SMALL, **HEADS, **WIDE))


def gemma3(vocab):
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        vocab_size=vocab, sliding_window=WINDOW, layer_types=layers, **SMALL, **HEADS, initializer_range=0.1
    )
    return Gemma3ForCausalLM(config)


def mamba(vocab):
    return MambaForCausalLM(MambaConfig(vocab_size=vocab, hidden_size=32, state_size=4, num_hidden_layers=2))


def mpt(vocab):
    return MptForCausalLM(MptConfig(vocab_size=vocab, d_model=32, n_layers=2, n_heads=4, max_seq_len=512))


def prompt_tuned(vocab):
    return get_peft_model(llama(vocab), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))


def dynamic_rope(vocab):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return llama(vocab, rope_parameters=rope, max_position_embeddings=64)


SHARING = {
    "llama": llama,
    "llama eager": lambda vocab: llama(vocab, attn_implementation="eager"),
    "gpt2": gpt2,
    "lora": lora,
    "nf4": nf4,
    "a window that no prompt exceeds": lambda vocab: mistral(vocab, 512),
}
STANDING_BACK = {
    "sliding window": (mistral, "tokens exceed the attention's window of 24"),
    "sliding and full": (gemma3, "tokens exceed the attention's window of 24"),
    "recurrent": (mamba, "recurrent state"),
    "positions of its own": (mpt, "shared prefixes"),
    "positions by length": (dynamic_rope, "positions depend on a sequence's length (dynamic)"),
}


def built(make, tokenizer, tmp_path):
    torch.manual_seed(0)
    arguments = (len(tokenizer), tmp_path) if make is nf4 else (len(tokenizer),)
    return make(*arguments).eval()


def pair(model, tokenizer, **more):
    """Stock's model class on the model, and ours on one that is the same but attends as ours do."""
    more = {"batch_size": 3, "max_length": 512} | more
    same = copy.deepcopy(model)
    if attention.unsuited(same) is None:
        attention.enable(same)
    return HFLM(pretrained=model, tokenizer=tokenizer, **more), Engine(pretrained=same, tokenizer=tokenizer, **more)


WORDS = ("the", "a", "cat", "dog", "tree", "river", "sees", "eats", "under", "with", "red", "old", "nine", "because")


def words(generator, count):
    return " ".join(generator.choices(WORDS, k=count))


def multiple_choice():
    """Two subjects with their shots, one question without, choices of one and of several tokens."""
    generator = random.Random(0)
    requests = []
    for shots in (60, 35, 0):
        examples = words(generator, shots)
        for _ in range(4 if shots else 1):
            question = f"{examples}\nQuestion: {words(generator, generator.randint(3, 12))}\nAnswer:"
            answers = [" A", " B", f" {words(generator, 2)}", f" {words(generator, 5)}"]
            requests += [Instance("loglikelihood", {}, (question, answer), 0) for answer in answers]
    return requests


def questions(count=10, until=("the", "\n"), **settings):
    generator = random.Random(1)
    settings = {"until": list(until), "do_sample": False, "temperature": 0.0, "max_gen_toks": 24} | settings
    examples = words(generator, 30)
    contexts = [f"{examples * (i % 3 > 0)}\n{words(generator, generator.randint(2, 20))}:" for i in range(count)]
    return [Instance("generate_until", {}, (context, settings), 0) for context in contexts]


def assert_same_likelihoods(stock, ours, tolerance=1e-3):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert [total for total, _ in ours] == pytest.approx([total for total, _ in stock], abs=tolerance)


@pytest.mark.parametrize("name", SHARING)
def test_shared_prefixes_give_the_same_log_likelihoods(name, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(engine.ROW, "cpu", 100)  # the subjects exceed a row, the last question does not
    stock, ours = pair(built(SHARING[name], tokenizer, tmp_path), tokenizer)
    expected = stock.loglikelihood(multiple_choice(), disable_tqdm=True)
    assert_same_likelihoods(expected, ours.loglikelihood(multiple_choice(), disable_tqdm=True))
    assert ours.used == {"shared_prefix": "on"}
    assert len({round(total, 2) for total, _ in expected}) > 30, "questions that all score alike show nothing"


@pytest.mark.parametrize("name", SHARING)
def test_answers_are_the_same(name, tokenizer, tmp_path):
    stock, ours = pair(built(SHARING[name], tokenizer, tmp_path), tokenizer)
    expected = stock.generate_until(questions(), disable_tqdm=True)
    assert ours.generate_until(questions(), disable_tqdm=True) == expected
    assert ours.used == {"continuous_batching": "on"}
    assert len(set(map(len, expected))) > 3, "answers that all end at once show nothing"


def kernel_for_rows(query, key, value, bounds, key_bounds, _longest, _longest_keys, *, return_aux=None, **how):
    """What torch says of `varlen_attn`, on a CPU: attention (tokens, heads, width), sums of scores (heads, tokens)."""
    causal, groups = how.get("window_size") == (-1, 0), query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    parts = []
    for (begin, end), (first, last) in zip(
        *(itertools.pairwise(b.tolist()) for b in (bounds, key_bounds)), strict=True
    ):
        of_one = (t.transpose(0, 1)[None] for t in (query[begin:end], key[first:last], value[first:last]))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        parts.append(kernel(*of_one, 0.0, causal, scale=how.get("scale")))
    out, sums = torch.cat([p[0][0].transpose(0, 1) for p in parts]), torch.cat([p[1][0] for p in parts], dim=1)
    return (out, sums) if return_aux else out


@pytest.mark.parametrize("room", [100, 512])  # a prefix in a cache of its own, and prefixes in the row
def test_cudas_way_gives_the_same_numbers(tokenizer, tmp_path, monkeypatch, room):
    monkeypatch.setitem(engine.ROW, "cpu", room)
    monkeypatch.setattr(attention, "HALF", (torch.float32,))
    monkeypatch.setattr(attention, "varlen_attn", kernel_for_rows)
    monkeypatch.setattr(attention, "enable", functools.partial(attention.enable, kernels="cuda"))
    monkeypatch.setattr(rows.PlacedRow, "mask", None)  # it takes none
    stock, ours = pair(built(llama, tokenizer, tmp_path), tokenizer)
    assert ours.row_model.kernels == "cuda"
    expected = stock.loglikelihood(multiple_choice(), disable_tqdm=True)
    assert_same_likelihoods(expected, ours.loglikelihood(multiple_choice(), disable_tqdm=True))
    expected = stock.generate_until(questions(), disable_tqdm=True)
    assert ours.generate_until(questions(), disable_tqdm=True) == expected
    assert ours.used == {"shared_prefix": "on", "continuous_batching": "on"}


def in_the_dtype_of_keys(layer, keys, values):
    """How transformers 5.17 begins a layer of a cache: values that are appended are stored in the finer dtype then."""
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    layer.keys = layer.values = keys.new_empty(0)


def test_a_cache_that_stores_values_as_fine_as_keys_gives_the_same_answers(tokenizer, tmp_path, monkeypatch):
    """Under autocast keys of fp32 weights come in fp32, rotated, and values in bf16."""
    bf16 = {"mixed_precision_dtype": "bfloat16"}
    _, ours = pair(built(llama, tokenizer, tmp_path), tokenizer, **bf16)
    answers = []
    for begin in (DynamicLayer.lazy_initialization, in_the_dtype_of_keys):
        monkeypatch.setattr(DynamicLayer, "lazy_initialization", begin)
        answers.append(ours.generate_until(questions(), disable_tqdm=True))
    assert answers[0] == answers[1]
    assert ours.used == {"continuous_batching": "on"}


@pytest.mark.parametrize("name", STANDING_BACK)
def test_stands_back_where_a_prefix_can_not_be_shared(name, tokenizer, tmp_path):
    make, reason = STANDING_BACK[name]
    stock, ours = pair(built(make, tokenizer, tmp_path), tokenizer)
    requests = multiple_choice()
    assert ours.loglikelihood(requests, disable_tqdm=True) == stock.loglikelihood(requests, disable_tqdm=True)
    assert ours.generate_until(questions(4), disable_tqdm=True) == stock.generate_until(questions(4), disable_tqdm=True)
    assert set(ours.used) == {"shared_prefix", "continuous_batching"}
    assert all(used.startswith("off: ") and reason in used for used in ours.used.values())


def test_stands_back_where_a_method_puts_tokens_before_a_sequence(tokenizer, tmp_path):
    """What it writes is not stock's, which loses those tokens: test_infer.py has the answers."""
    stock, ours = pair(built(prompt_tuned, tokenizer, tmp_path), tokenizer)
    requests = multiple_choice()
    assert ours.loglikelihood(requests, disable_tqdm=True) == stock.loglikelihood(requests, disable_tqdm=True)
    assert len(ours.generate_until(questions(2), disable_tqdm=True)) == 2
    assert {*ours.used.values()} == {f"off: {PROMPTED}"}


@pytest.mark.parametrize("make", [mistral, gemma3, dynamic_rope])
def test_sharing_there_would_be_wrong(make, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "_obstacle", lambda *_: None)
    stock, ours = pair(built(make, tokenizer, tmp_path), tokenizer)
    both = [kind.loglikelihood(multiple_choice(), disable_tqdm=True) for kind in (stock, ours)]
    assert max(abs(a - b) for (a, _), (b, _) in zip(*both, strict=True)) > 0.01


@pytest.mark.parametrize("make", [mistral, gemma3, dynamic_rope])
def test_the_check_sees_what_the_configuration_does_not_tell(make, tokenizer, tmp_path):
    ours = pair(built(make, tokenizer, tmp_path), tokenizer)[1]
    assert "move a log-probability by" in ours._disagreement(tuple(range(100, 200)))


def test_the_check_looks_at_prefixes_in_a_row_and_in_a_cache(tokenizer, tmp_path, monkeypatch):
    ours = pair(built(llama, tokenizer, tmp_path), tokenizer)[1]
    assert ours._disagreement(tuple(range(100, 200))) is None
    plain = attention.sdpa_attention_forward
    monkeypatch.setattr(
        attention,
        "sdpa_attention_forward",
        lambda module, query, key, value, mask, *more, **keywords: plain(
            module, query, key, value, None, *more, **keywords
        ),
    )
    assert "move a log-probability by" in ours._disagreement(tuple(range(100, 200)))
    assert ours._disagreement(tuple(range(100, 200)), in_row=False) is None


def test_too_long_requests_are_cut_as_stock_cuts_them(tokenizer, tmp_path):
    stock, ours = pair(built(gpt2, tokenizer, tmp_path), tokenizer, max_length=48)
    requests = multiple_choice()
    assert max(len(ours.tok_encode(request.args[0])) for request in requests) > 48
    assert_same_likelihoods(*(kind.loglikelihood(requests, disable_tqdm=True) for kind in (stock, ours)))
    assert ours.generate_until(questions(), disable_tqdm=True) == stock.generate_until(questions(), disable_tqdm=True)
    assert ours.used == {"shared_prefix": "on", "continuous_batching": "on"}


def test_a_corpus_is_measured_in_windows(tokenizer, tmp_path):
    stock, ours = pair(built(llama, tokenizer, tmp_path), tokenizer, max_length=32)
    requests = [Instance("loglikelihood_rolling", {}, (words(random.Random(i), 50),), 0) for i in range(2)]
    expected = stock.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, abs=1e-3)
    assert ours.used == {"shared_prefix": "on"}


def test_the_first_token_of_a_corpus_is_predicted_from_one_begin(tokenizer, tmp_path):
    """Also by a tokenizer that begins each text with that token."""
    model, begun = built(llama, tokenizer, tmp_path), copy.deepcopy(tokenizer)
    begin = [(begun.bos_token, begun.bos_token_id)]
    begun.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begun.bos_token} $A", special_tokens=begin)
    requests = [Instance("loglikelihood_rolling", {}, ("a b c", 8), 0)]
    assert begun("a b c").input_ids == [begun.bos_token_id, *tokenizer("a b c").input_ids]
    plain, other = (
        pair(model, each)[1].loglikelihood_rolling(requests, disable_tqdm=True) for each in (tokenizer, begun)
    )
    assert plain == pytest.approx(other, abs=1e-5)


def test_the_end_token_ends_an_answer(tokenizer, tmp_path):
    model = built(llama, tokenizer, tmp_path)
    requests = questions(until=["never"])
    plain = pair(model, tokenizer)[0].generate_until(requests, disable_tqdm=True)
    prompt = tokenizer(requests[0].args[0], return_tensors="pt").input_ids
    fifth = int(model.generate(prompt, max_new_tokens=5, do_sample=False)[0, -1])
    model.generation_config.eos_token_id = [fifth, tokenizer.eos_token_id]
    stock, ours = pair(model, tokenizer)
    expected = stock.generate_until(requests, disable_tqdm=True)
    assert ours.generate_until(requests, disable_tqdm=True) == expected
    assert ours.used == {"continuous_batching": "on"}
    assert plain[0].startswith(expected[0])
    assert len(expected[0]) < len(plain[0])


@pytest.mark.parametrize(
    ("settings", "defaults", "reason"),
    [
        ({"num_beams": 2}, {}, "num_beams"),
        ({"do_sample": True, "temperature": 0.5}, {}, "do_sample, temperature"),
        ({}, {"repetition_penalty": 2.0}, "repetition_penalty"),
    ],
)
def test_other_ways_to_generate_are_stocks(settings, defaults, reason, tokenizer, tmp_path):
    model = built(llama, tokenizer, tmp_path)
    model.generation_config.update(**defaults)
    stock, ours = pair(model, tokenizer)
    answers = []
    for kind in (stock, ours):
        torch.manual_seed(0)
        answers.append(kind.generate_until(questions(6, **settings), disable_tqdm=True))
    assert answers[0] == answers[1]
    assert ours.used == {"continuous_batching": f"off: generation is set to {reason}"}


def test_requests_with_different_settings_keep_their_order(tokenizer, tmp_path):
    stock, ours = pair(built(llama, tokenizer, tmp_path), tokenizer)
    mixed = [r for both in zip(questions(5), questions(5, max_gen_toks=3), strict=True) for r in both]
    assert ours.generate_until(mixed, disable_tqdm=True) == stock.generate_until(mixed, disable_tqdm=True)


def test_every_answer_goes_to_lm_evals_cache(tokenizer, tmp_path):
    model = built(llama, tokenizer, tmp_path)
    seen = []
    for kind in pair(model, tokenizer):
        kept = {}
        add = lambda name, request, answer, kept=kept: kept.update({(name, str(request)): answer})  # noqa: E731
        kind.cache_hook = SimpleNamespace(add_partial=add)
        kind.loglikelihood(multiple_choice(), disable_tqdm=True)
        kind.generate_until(questions(), disable_tqdm=True)
        seen.append(kept)
    assert seen[0].keys() == seen[1].keys()
    assert len(seen[1]) == len(multiple_choice()) + len(questions())


@pytest.mark.parametrize(("task", "limit", "written"), [("gsm8k", 50, 50), ("gsm8k", 64, 32), ("held_out", 50, 32)])
def test_an_answer_leaves_room_for_its_question(task, limit, written, tokenizer, tmp_path):
    """lm-eval alone ends with an error where an answer may fill the context; one's own long answers get half of it."""
    model = built(llama, tokenizer, tmp_path)
    requests = questions(4, until=["never"], max_gen_toks=limit)
    for request in requests:
        request.task_name = task
    ours = [kind(model, tokenizer=tokenizer, max_length=64, batch_size=2) for kind in (PlainModel, Engine)]
    answers = [each.generate_until(requests, disable_tqdm=True) for each in ours]
    stock = HFLM(model, tokenizer=tokenizer, max_length=64, batch_size=2)
    same = questions(4, until=["never"], max_gen_toks=written)
    assert answers[0] == answers[1] == stock.generate_until(same, disable_tqdm=True)


@pytest.mark.parametrize("make", [llama, mistral])
def test_answers_that_end_at_their_limit_are_counted(make, tokenizer, tmp_path):
    """In every way to write them: mistral's window is too narrow for ours. Two kinds of ends, by text and by token."""
    model, requests = built(make, tokenizer, tmp_path), questions(12, max_gen_toks=8)
    alone = [
        model.generate(**tokenizer(request.args[0], return_tensors="pt"), max_new_tokens=8, do_sample=False)[0, -8:]
        for request in requests
    ]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, int(alone[0][3])]
    ends = model.generation_config.eos_token_id
    texts = [tokenizer.decode(tokens) for tokens in alone]
    by_token, by_text = (
        [bool({*tokens.tolist()} & {*ends}) for tokens in alone],
        ["the" in text or "\n" in text for text in texts],
    )
    unfinished = sum(not (token or text) for token, text in zip(by_token, by_text, strict=True))
    assert any(by_token)
    assert any(by_text)
    assert 0 < unfinished < 12
    more = {"batch_size": 3, "max_length": 512}
    for kind in (PlainModel, Engine):
        lm = kind(pretrained=copy.deepcopy(model), tokenizer=tokenizer, **more)
        lm.generate_until(requests, disable_tqdm=True)
        assert (lm.cut.answers, lm.cut.unfinished) == (12, unfinished)


def test_answers_of_a_model_with_virtual_tokens_are_counted(tokenizer, tmp_path):
    lm = pair(built(prompt_tuned, tokenizer, tmp_path), tokenizer)[1]
    lm.generate_until(questions(4, until=["never"], max_gen_toks=3), disable_tqdm=True)
    assert (lm.cut.answers, lm.cut.unfinished) == (4, 4)


def test_what_ran_out_of_memory_is_not_counted(tokenizer, tmp_path, monkeypatch):
    model = built(mistral, tokenizer, tmp_path)
    lm, calls = Engine(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=512), []
    lm.batch.chooses = True  # as on CUDA, where half as many are tried then
    monkeypatch.setattr(lm.batch, "fit", lambda each, most: None)
    generate = HFLM._model_generate

    def fails_once(self, context, *rest, **more):
        calls.append(len(context))
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return generate(self, context, *rest, **more)

    monkeypatch.setattr(HFLM, "_model_generate", fails_once)
    lm.generate_until(questions(8, until=["never"], max_gen_toks=3), disable_tqdm=True)
    assert calls == [4, 4, 2, 2, 2, 2]
    assert (lm.cut.answers, lm.cut.unfinished) == (8, 8)


@pytest.mark.long
def test_scores_are_the_same_without_speedups():
    bench = prepared(tiny("method=base"))
    tasks = scoring.Tasks(
        EvalSettings(tasks=["facts", "wordmath"], limit=20, num_fewshot=2, seed=0, batch_size=8), None
    )
    (fast, items, used), (plain, expected, none) = (
        scoring.score(bench.net, bench.tokenizer, tasks, 8, None, speedups=on) for on in (True, False)
    )
    assert fast == plain
    written = items["task"] == "wordmath"  # of a choice, the prediction is its log-likelihood
    pd.testing.assert_frame_equal(items[written], expected[written])
    pd.testing.assert_frame_equal(items.drop(columns="prediction"), expected.drop(columns="prediction"))
    assert used == {"shared_prefix": "on", "continuous_batching": "on"}
    assert none == {}


# Groups


def saved(groups, stems):
    for shared, members in groups:
        assert all(stems[m][:shared] == stems[members[0]][:shared] for m in members)
    return sum(shared * (len(members) - 1) - CALL * (len(members) > 1) for shared, members in groups)


def test_a_prefix_is_read_once_for_all_that_begin_with_it():
    first, second = tuple(range(100)), tuple(range(200, 300))
    stems = [(*first, 1), (*second, 2, 3), (*first, 4), (5,), (*first, 6, 7), second]
    assert grouped(stems) == [(100, [4, 0, 2]), (100, [1, 5]), (0, [3])]


@pytest.mark.parametrize("seed", range(20))
def test_no_division_into_branches_saves_more(seed):
    generator = random.Random(seed)
    stems = [()]
    for _ in range(7):
        stems.append(generator.choice(stems) + tuple(generator.choices(range(3), k=generator.randint(0, 60))))
    groups = grouped(stems)
    assert sorted(m for _, members in groups for m in members) == list(range(8))
    for length in range(max(map(len, stems))):
        key = lambda m, length=length: stems[m][:length]  # noqa: E731
        cut = [list(g) for _, g in itertools.groupby(sorted(range(8), key=key), key)]
        other = [(min(length, min(len(stems[m]) for m in g)) if len(g) > 1 else 0, g) for g in cut]
        assert saved(groups, stems) >= saved(other, stems)
