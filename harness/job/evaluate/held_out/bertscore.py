"""BERTScore (Zhang et al. 2020, arXiv:1904.09675): how alike two texts are, by embeddings of their tokens in context.

Each token is matched with the most similar one of the other text, by the cosine of their embeddings in one layer of an
encoder. The mean over the answer's tokens is precision, that over the right answer's tokens recall. There are no
weights by rarity, and no rescaling. As in the authors' package (bert-score), the tokens that begin and end a text can
be matched but are not counted; a test compares the values. The package itself fails on empty texts with
transformers 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    logging,
)

from harness.errors import UserError, first_line
from harness.job.models import hub, loading

METRIC = "bertscore"  # the score's name; its value is F1
PAIRS = 32  # that are compared at a time
POSITIONS = 514  # of a model that does not say how many it has: RoBERTa's
OFFSET = 2  # positions that RoBERTa leaves out, and which its tokenizer knows of
BY_LAYER = {
    4: "distilbert-base-turkish-cased deberta-v3-small",
    5: "distilroberta-base distilbert-base-uncased distilbert-base-multilingual-cased",
    6: "xlm-mlm-en-2048",
    7: "roberta-base-openai-detector longformer-base-4096",
    8: "bert-base-chinese scibert_scivocab_uncased albert-xxlarge-v1 albert-xxlarge-v2 mpnet-base spanbert-base-cased "
    "bigbird-base-trivia-itc unsup-simcse-roberta-base",
    9: "bert-base-uncased bert-base-cased-finetuned-mrpc bert-base-multilingual-cased scibert_scivocab_cased "
    "scibert_basevocab_uncased albert-base-v2 xlm-roberta-base electra-small-generator electra-base-discriminator "
    "bertweet-base deberta-base deberta-base-mnli conv-bert-medium-small squeezebert-uncased squeezebert-mnli "
    "squeezebert-mnli-headless deberta-v3-base",
    10: "roberta-base xlm-mlm-100-1280 albert-base-v1 electra-base-generator conv-bert-base conv-bert-small finbert "
    "deberta-v2-xlarge bigbird-roberta-base unsup-simcse-bert-base-uncased sup-simcse-bert-base-uncased "
    "sup-simcse-roberta-base bert-base-turkish-cased deberta-v3-xsmall mdeberta-v3-base",
    11: "electra-small-discriminator",
    12: "deberta-v3-large",
    13: "albert-xlarge-v2 unsup-simcse-roberta-large",
    14: "albert-large-v2 electra-large-discriminator longformer-large-4096 bigbird-roberta-large",
    15: "roberta-large-openai-detector",
    16: "albert-xlarge-v1 deberta-large sup-simcse-roberta-large",
    17: "roberta-large albert-large-v1 xlm-roberta-large spanbert-large-cased deberta-v2-xlarge-mnli",
    18: "bert-large-uncased electra-large-generator deberta-large-mnli deberta-xlarge unsup-simcse-bert-large-uncased "
    "sup-simcse-bert-large-uncased DeBERTa-v3-large-mnli",
    19: "roberta-large-mnli",
    21: "deberta-v2-xxlarge",
    22: "deberta-v2-xxlarge-mnli",
    40: "deberta-xlarge-mnli",
}
"""Which encoders, by the last part of their name, are best at which layer, as bert-score 0.3.13 has it."""
LAYERS = {name: layer for layer, names in BY_LAYER.items() for name in names.split()}


class Likeness(NamedTuple):
    """How alike an answer is to the right one: three means of cosines, so at most 1."""

    precision: float
    recall: float
    f1: float


NONE = Likeness(0.0, 0.0, 0.0)  # of an empty text


class Embedded(NamedTuple):
    """Texts as an encoder sees them.

    units: embeddings of length 1 (texts × tokens × size). present: which tokens are no padding (texts × tokens).
    counted: which of them count in a mean (texts × tokens).
    """

    units: torch.Tensor
    present: torch.Tensor
    counted: torch.Tensor


class Encoder:
    """The embeddings of one layer of an encoder in fp32: of one that LAYERS knows the layer there, else the last.

    path: a folder or a hub id. Raises UserError if it is out of reach, or no encoder.
    """

    def __init__(self, path: str, on: torch.device):
        config = _config(path)
        cut_layers(config, path)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            with _without_report():
                model = AutoModel.from_pretrained(
                    path,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    trust_remote_code=False,
                    **hub.NO_KERNELS,
                )
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise _unreachable(path, error) from error
        if not loading.reads_text(self._tokenizer):
            raise UserError(
                f"eval.bertscore={path} has no tokenizer; put the model's tokenizer.json beside its config."
            )
        words, rows = len(self._tokenizer), model.get_input_embeddings().num_embeddings
        if words > rows:
            raise UserError(
                f"eval.bertscore={path} has a tokenizer of {words:,} tokens and embeddings of {rows:,}; put the "
                "tokenizer that this encoder was trained with beside its config."
            )
        self._model, self._on = model.to(on).eval(), on
        self._room = _room(self._tokenizer, config)

    @torch.inference_mode()
    def compare(self, answers: Sequence[str], right: Sequence[str]) -> list[Likeness]:
        """How alike each of `answers` is to the one of `right` in its place."""
        pairs = [(answer.strip(), other.strip()) for answer, other in zip(answers, right, strict=True)]
        result = [NONE] * len(pairs)
        order = sorted((i for i, pair in enumerate(pairs) if all(pair)), key=lambda i: sum(map(len, pairs[i])))
        for start in range(0, len(order), PAIRS):
            places = order[start : start + PAIRS]
            ours, theirs = (self._embedded([pairs[i][side] for i in places]) for side in (0, 1))
            for i, likeness in zip(places, _matched(ours, theirs), strict=True):
                result[i] = likeness
        return result

    def _embedded(self, texts: Sequence[str]) -> Embedded:
        tokenizer = self._tokenizer
        if isinstance(tokenizer, RobertaTokenizer):
            texts = [f" {text}" for text in texts]  # so that a first word has the tokens that it has elsewhere
        batch = tokenizer([*texts], padding=True, truncation=True, max_length=self._room, return_tensors="pt")
        ids, present = batch["input_ids"].to(self._on), batch["attention_mask"].to(self._on)
        states = self._model(input_ids=ids, attention_mask=present).last_hidden_state
        ends = [end for end in (tokenizer.cls_token_id, tokenizer.sep_token_id) if end is not None]
        counted = present.bool() & ~torch.isin(ids, torch.tensor(ends, device=self._on))
        return Embedded(torch.nn.functional.normalize(states, dim=-1), present.bool(), counted)


@contextmanager
def _without_report() -> Iterator[None]:
    """A context in which transformers does not list the weights of layers and heads that are left out."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def name_of(path: str) -> str:
    """What tables call the encoder: the last part of its folder or hub id."""
    return Path(path).name


def cut_layers(config: PretrainedConfig, path: str) -> None:
    """Leave the layers above the compared one out of the `config` of the encoder at `path`, where LAYERS knows it."""
    layer = LAYERS.get(name_of(path))
    if layer is not None:
        config.num_hidden_layers = min(layer, config.num_hidden_layers)


def _matched(ours: Embedded, theirs: Embedded) -> list[Likeness]:
    """How alike texts are: each of `ours` and that of `theirs` in its place."""
    cosines = ours.units @ theirs.units.mT
    cosines = cosines.masked_fill(~(ours.present[:, :, None] & theirs.present[:, None, :]), -1.0)
    precisions = _means(cosines.amax(2), ours.counted)
    recalls = _means(cosines.amax(1), theirs.counted)
    return [Likeness(p, r, 2 * p * r / (p + r) if p + r else 0.0) for p, r in zip(precisions, recalls, strict=True)]


def _means(values: torch.Tensor, counted: torch.Tensor) -> list[float]:
    """Of each row, over what is counted; 0 if nothing is."""
    means: list[float] = ((values * counted).sum(1) / counted.sum(1).clamp(min=1)).tolist()
    return means


def _room(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """Tokens at which a text is cut; a tokenizer that does not say has an immense number."""
    positions: int = getattr(config, "max_position_embeddings", None) or POSITIONS
    return min(int(tokenizer.model_max_length), positions) if tokenizer.model_max_length < 10**9 else positions - OFFSET


def _config(path: str) -> PretrainedConfig:
    """The config of the encoder at `path`. Raises UserError if it is out of reach, or of another kind of model."""
    if not Path(path).is_dir():
        hub.settle()
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"eval.bertscore must be an encoder such as roberta-large, got {path}, a model of the type "
            f"{config.model_type}."
        )
    return config


def _unreachable(path: str, error: Exception) -> UserError:
    """Why an encoder did not load, and the remedy, in one sentence."""
    if "safetensors" in str(error):
        return UserError(f"eval.bertscore={path} has no safetensors, and pickled weights can run code; name another.")
    if Path(path).is_dir():
        return UserError(f"eval.bertscore={path} has no model that transformers can load ({first_line(error)}).")
    remedy = "there is no such local folder; check eval.bertscore and the connection"
    return hub.refused(f"The model {path}", error, remedy)
