"""Texts that begin alike: the tokens are a tokenizer's own, and few texts are tokenised in whole."""

from __future__ import annotations

import random

import pytest
from job_helpers import prepared, tiny
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.job.evaluate.engine import Engine
from harness.job.evaluate.tokenising import OVERLAP, SharedBeginnings

LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
PIECES = ("Question", ": ", "\n\n", "\n", " ", "   ", "123", "4567", ".", ".\n", " the", " cat", "'s", "é", "漢字")
PIECES += ("🙂", "<|end|>", "\tx", " A", ", ", "because", "(b) ", "ab" * 30)


def bpe(pre_tokenizer, normalizer=None, processor=None) -> PreTrainedTokenizerFast:
    """A tokenizer trained on such pieces, with a special token before each text."""
    built = Tokenizer(models.BPE(byte_fallback=True))
    built.pre_tokenizer, built.normalizer, built.decoder = pre_tokenizer, normalizer, decoders.ByteLevel()
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "▁"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "<|end|>"], initial_alphabet=alphabet)
    generator = random.Random(0)
    built.train_from_iterator(("".join(generator.choices(PIECES, k=40)) for _ in range(200)), trainer)
    begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    built.post_processor = processors.Sequence([processor, begin]) if processor else begin
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="<|end|>")


TOKENIZERS = {
    "gpt2": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), processor=processors.ByteLevel()),
    "a space before each text": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama3": lambda: bpe(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
        processor=processors.ByteLevel(trim_offsets=True),
    ),
    "digits": lambda: bpe(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    ),
    "metaspace": lambda: bpe(pre_tokenizers.Metaspace()),
    "one word": lambda: bpe(
        None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.NFC()])
    ),
}
SHARING = {"gpt2", "llama3", "digits", "metaspace"}


@pytest.fixture
def taken(monkeypatch):
    """Tokens that tokenizers returned, in a list of one number."""
    counted, plain = [0], PreTrainedTokenizerFast._encode_plus

    def encode(self, *args, **kwargs):
        found = plain(self, *args, **kwargs)
        counted[0] += sum(len(encoding.ids) for encoding in found.encodings)
        return found

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", encode)
    return counted


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_the_tokenizers_own(name):
    tokenizer, generator = TOKENIZERS[name](), random.Random(1)
    shared, text = SharedBeginnings(tokenizer, tokenizer.encode), ""
    for _ in range(400):
        # Texts branch off one another anywhere, within words and runs of spaces too.
        text = text[: generator.randint(max(0, len(text) - 150), len(text))] if generator.random() < 0.95 else ""
        text += "".join(generator.choices(PIECES, k=generator.randint(1, 40)))
        assert shared.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("name", sorted(SHARING))
def test_examples_before_many_questions_are_tokenised_once(name, taken):
    tokenizer, generator = TOKENIZERS[name](), random.Random(2)
    shared, examples = SharedBeginnings(tokenizer, tokenizer.encode), "".join(generator.choices(PIECES, k=500))
    texts = [examples + "".join(generator.choices(PIECES, k=5)) for _ in range(30)]
    before = taken[0]
    expected = [tokenizer.encode(text) for text in texts]
    between = taken[0]
    assert [shared.encode(text) for text in texts] == expected
    assert taken[0] - between < (between - before) / 3


def test_an_equal_text_is_not_tokenised_again(taken):
    tokenizer = TOKENIZERS["one word"]()
    shared = SharedBeginnings(tokenizer, tokenizer.encode)
    first = shared.encode("What is it? " * 20)
    before = taken[0]
    assert shared.encode("What is it? " * 20) == first
    assert taken[0] == before


def test_contexts_are_encoded_once_for_all_their_questions_and_choices(taken):
    bench, generator = prepared(tiny("method=base")), random.Random(0)
    plain = bench.tokenizer
    stock, ours = (kind(pretrained=bench.net, tokenizer=plain, batch_size=1) for kind in (HFLM, Engine))
    words = ("the", "cat", "sees", "nine", "rivers", "because", "dogs", "eat")
    examples = " ".join(generator.choices(words, k=300))
    contexts = [f"{examples}\nQuestion: {' '.join(generator.choices(words, k=20))}\nAnswer:" for _ in range(20)]
    asked = [(context, choice) for context in contexts for choice in (" A", " B", " C", " D")]
    before = taken[0]
    pairs = [ours._encode_pair(*pair) for pair in asked]
    ours_took, before = taken[0] - before, taken[0]
    assert pairs == [stock._encode_pair(*pair) for pair in asked]
    expected = [plain.encode(context) for context in contexts]
    assert [context for context, _ in pairs] == [ids for ids in expected for _ in range(4)]
    once = len(plain.encode(examples)) + sum(len(ids) - len(plain.encode(examples)) for ids in expected)
    again = len(asked) * OVERLAP  # a few words before each choice; tokens are fewer than characters
    assert ours_took < 3 * once + again
    assert ours_took < sum(len(ids) for ids in expected), "each context would have been encoded whole"


def test_prompts_are_encoded_as_stock_encodes_them(taken):
    bench = prepared(tiny("method=base"))
    ours = Engine(pretrained=bench.net, tokenizer=bench.tokenizer, batch_size=2, max_length=100)
    contexts = [f"{'a red cat under a tree ' * 9}{i}: {i * 7}?" for i in range(5)]
    requests = [Instance("generate_until", {}, (text, {"until": ["\n"], "max_gen_toks": 8}), 0) for text in contexts]
    seen = []
    ours._written = lambda prompts, *_: seen.extend(prompts) or [(i, [1]) for i in range(len(prompts))]
    ours.generate_until(requests, disable_tqdm=True)
    stock = [ours.tok_batch_encode([text], "left", 92)[0][0].tolist() for text in contexts]
    assert [list(prompt) for prompt in seen] == stock
    assert max(map(len, stock)) == 92
