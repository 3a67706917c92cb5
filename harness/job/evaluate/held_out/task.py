"""The test part of one's own data as a task of lm-eval, made from the records themselves.

The prompt is the one of training; a conversation is written by the model's chat template up to its last answer. What is
measured depends on the answers:

- choice: the likeliest option, by its log-probability (acc) and by that per character (acc_norm); of preference data
  the options are the two answers, and the chosen one is right;
- classify: the likeliest of the labels that the records have (acc), and macro-F1 (f1_macro); a model that only writes
  is told the labels;
- exact: a greedy answer that is the same but for its form (harness/job/evaluate/held_out/matching.py);
- marked: the bits per byte of the answers that are marked as good (rewards.py scores the bad ones too);
- text: ROUGE-L (Lin 2004) and BLEU (Papineni et al. 2002) of a greedy answer, and the bits per byte of the right one;
  with an encoder, BERTScore too (harness/job/evaluate/held_out/bertscore.py), which scoring adds for all answers;
- documents: the bits per byte of whole documents, in windows (harness/job/evaluate/windows.py);
- verified: a greedy answer that the verifier of its task in reasoning-gym takes for wholly right (solved).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from harness import units
from harness.errors import UserError
from harness.job.data import words
from harness.job.data.chat import WORDS
from harness.job.data.columns import CHAT, OPTIONS, Item, answer_of, asked, last_answer, text_before
from harness.job.data.documents import DOCUMENTS, TEXT
from harness.job.data.generators.reasoning_gym import Verifier
from harness.job.data.labels import SHORT_WORDS, Labels, are_labels, is_short, labels_of
from harness.job.data.normalising import normalised
from harness.job.data.preferences import BAD, GOOD, MARK, REJECTED
from harness.job.data.turns import TOOLS, words_of
from harness.job.evaluate import windows
from harness.job.evaluate.held_out import bertscore, bits, classes, matching
from harness.settings import HELD_OUT, DataSettings

MARKED = "marked"  # how answers with marks are scored
MOST = 0.9  # share of the answers that decides what they all are
FEWEST_TOKENS, MOST_TOKENS = 16, 4096  # room for a written answer
BYTES = 2  # of the longest answer for each token of room, which is about twice what it takes
SPARE = 32  # tokens beside, as where each byte is a token; never more than the answer has bytes
BYTES_OF_A_TOKEN = 4  # about, of prose in English
OPENING = 200  # characters of a document that stand for it where people read items
NAMED = 8  # labels that a sentence names
SCORED_BY = {
    "choice": "the likeliest option",
    "classify": "the likeliest label",
    "exact": "exact match",
    "text": "ROUGE-L and BLEU, as prose",
}
BY_ENCODER = "ROUGE-L, BLEU and BERTScore by {}, as prose"
LAST_NUMBER = r"(-?[$\d.,٫٬]{2,})|(-?\d+)"  # as in lm-eval's gsm8k, with the digits of all scripts


class HeldOutTask(ConfigurableTask):
    """The records `docs` by split: prompt, answer, of a choice options and gold (an index), of a conversation turns.

    questions: what each record of the test asks, without the prompt's words. kind: how answers are scored. labels: of
    answers that are classified. bits: whether the bits per byte of the answers are measured as well. runs_code: whether
    answers are run as code. window: tokens of a window of a document. encoder: folder or hub id of BERTScore's model.
    """

    def __init__(
        self,
        config: dict[str, Any],
        docs: dict[str, list[dict[str, Any]]],
        questions: Sequence[str],
        kind: str,
        labels: Labels | None,
        bits: bool,
        runs_code: bool = False,
        window: int | None = None,
        encoder: str | None = None,
    ):
        self.questions, self.kind, self.labels = questions, kind, labels
        self._docs, self._bits, self.runs_code, self.window, self.encoder = docs, bits, runs_code, window, encoder
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        self.dataset = DatasetDict({split: Dataset.from_list(docs) for split, docs in self._docs.items()})

    @property
    def chats(self) -> bool:
        """Whether the records are conversations, which a chat template writes."""
        return "turns" in self._docs["test"][0]

    @property
    def notes(self) -> list[str]:
        """How the answers are scored, and which labels none of them has, a sentence each."""
        if self.kind == "verified":
            return []
        if self.kind == DOCUMENTS:
            count = units.plural(len(self._docs["test"]), "document")
            return [f"{HELD_OUT}: {count}, scored by bits per byte in windows of {self.window} tokens."]
        count = units.plural(len(self._docs["test"]), "answer")
        if self.kind == MARKED:
            good = sum(doc[MARK] == GOOD for doc in self._docs["test"])
            return [f"{HELD_OUT}: {count}, {good:,} of them good, which are scored by bits per byte."]
        scored_by = SCORED_BY[self.kind] if self.encoder is None else BY_ENCODER.format(bertscore.name_of(self.encoder))
        by = f"{scored_by} (data.answers={self.kind})"
        if self.labels is None:
            return [f"{HELD_OUT}: {count}, scored by {by}.", *self._without_room]
        each = Counter(doc["answer"] for doc in self._docs["test"])
        named = [f"{text} {each[text]}" for text in sorted(self.labels.texts, key=lambda text: -each[text])]
        sizes = ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")
        return [
            f"{HELD_OUT}: {count} with {len(named)} labels ({sizes}), scored by {by}.",
            *(f"{HELD_OUT} has no record with the label {text}." for text in self.labels.texts if not each[text]),
            *(
                f"The label {other} begins with the label {text}, which is therefore never less likely: rename one."
                for text, other in itertools.permutations(self.labels.texts, 2)
                if other.startswith(text) and self.OUTPUT_TYPE == "multiple_choice"
            ),
        ]

    @property
    def _without_room(self) -> list[str]:
        """How many right answers are longer than a written one can be; empty if none is."""
        longest = BYTES_OF_A_TOKEN * MOST_TOKENS
        long = sum(len(doc["answer"].encode()) > longest for doc in self._docs["test"])
        if self.OUTPUT_TYPE != "generate_until" or not long:
            return []
        return [
            f"{HELD_OUT}: {units.plural(long, 'right answer')} with more than {longest:,} bytes, about "
            f"{MOST_TOKENS:,} tokens, after which a written answer ends."
        ]

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, **form: Any) -> str:
        """lm-eval's context; of a conversation its turns before the answer, after whole ones as examples.

        Raises UserError for a system instruction beside a conversation that has its own.
        """
        if not self.chats:
            return super().fewshot_context(doc, num_fewshot, **form)
        turns, system = json.loads(doc["turns"]), form.get("system_instruction")
        own = [turn for turn in turns if turn["role"] == "system"]
        if system and own:
            raise UserError("eval.system_instruction can't be combined with conversations that have a system turn.")
        examples = []
        for example in self.sampler.sample(num_fewshot):
            talk = [*json.loads(example["turns"]), {"role": "assistant", "content": example["answer"]}]
            examples += [turn for turn in talk if turn["role"] != "system"]
        first = [{"role": "system", "content": system}] if system else own
        rest = [turn for turn in turns if turn["role"] != "system"]
        write = form["chat_template"]
        if doc.get(TOOLS):
            write = _with_tools(write, json.loads(doc[TOOLS]))
        return _up_to_words(write, first + examples + rest)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **form: Any) -> list[Instance] | Instance:
        """lm-eval's request; for the bits per byte a second one, with the answer. Of a document its text and window."""
        if self.kind == DOCUMENTS:
            return Instance(windows.KIND, doc, (doc["text"], self.window), 0, metadata=form["metadata"])
        between = "" if form.get("apply_chat_template") else " "
        answer = (ctx, between + doc["answer"])
        if self.kind == MARKED:
            return Instance("loglikelihood", doc, answer, 0, metadata=form["metadata"])
        request = super().construct_requests(doc, ctx, **form)
        if not self._bits:
            return request
        return [request, Instance("loglikelihood", doc, answer, 1, metadata=form["metadata"])]


def _up_to_words(write: Callable[..., Any], turns: list[dict[str, Any]]) -> Any:
    """The text of `turns` and all that the chat template writes before the words of the answer.

    That is the generation prompt, and in some templates more, such as an empty thought, which training has too.
    """
    head = write(turns, add_generation_prompt=True)
    if not isinstance(head, str):  # the turns as an endpoint takes them
        return head
    whole = write([*turns, {"role": "assistant", "content": WORDS}], add_generation_prompt=False)
    return whole[: whole.rindex(WORDS)] if whole.startswith(head) else head


def _with_tools(write: Any, tools: list[dict[str, Any]]) -> Callable[..., str]:
    """What writes conversations as `write`, lm-eval's method of a model, and beside them the tools to be called.

    Raises UserError for a model behind an API.
    """
    tokenizer = getattr(write.__self__, "tokenizer", None)  # lm-eval's own method takes no tools
    if tokenizer is None or not hasattr(tokenizer, "apply_chat_template"):
        raise UserError("Conversations with tools can't be asked of a model behind an API; take weights of your own.")
    return functools.partial(tokenizer.apply_chat_template, tokenize=False, tools=tools)


def task(
    data: DataSettings,
    items: dict[str, list[Item]],
    num_fewshot: int | None,
    likelihoods: bool = True,
    encoder: str | None = None,
) -> HeldOutTask:
    """The task on the split ``test`` of `items`, as `_of_records` or `_of_documents` makes it.

    likelihoods: False for a model that only writes. encoder: of BERTScore; null for none. Raises UserError if there is
    no such split, for an encoder where answers are no prose, and as these do.
    """
    if "test" not in items:
        raise UserError(
            f"eval.tasks={HELD_OUT} requires data.test_share=, the share of the records that is held out for the test."
        )
    if data.documents:
        task = _of_documents(data, items["test"], num_fewshot, likelihoods)
    else:
        task = _of_records(data, items, num_fewshot, likelihoods, encoder)
    if encoder is not None and task.kind != "text":
        raise UserError(f"eval.bertscore requires answers in prose, data.answers=text, got {task.kind}.")
    return task


def _of_records(
    data: DataSettings, items: dict[str, list[Item]], num_fewshot: int | None, likelihoods: bool, encoder: str | None
) -> HeldOutTask:
    """The task on the split ``test`` of `items`, with the first of ``train`` as examples, but for bad answers.

    Raises UserError if `data.answers` does not fit the records, if there are too few examples, and of marked answers
    for a model that only writes.
    """
    shots, examples = num_fewshot or 0, [item for item in items["train"] if item.get(MARK) != BAD]
    if shots > len(examples):
        raise UserError(f"eval.num_fewshot must be at most {len(examples)}, the items to train on, got {shots}.")
    of = {"test": items["test"], **({"train": examples[:shots]} if shots else {})}
    verifier = _verifier(data)
    kind = kind_of(data, items) if verifier is None else "verified"
    if kind == MARKED and not likelihoods:
        raise _only_writes(data)
    labels = labels_of(items) if kind == "classify" else None
    docs = {split: [_doc(item, data, kind) for item in part] for split, part in of.items()}
    if labels is not None:
        _classified([doc for part in docs.values() for doc in part], labels, likelihoods)
    config = _config(kind, data, docs["test"], likelihoods)
    if shots:
        config |= {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    if labels is not None and not likelihoods:
        config |= {"process_results": classification(labels), "metric_list": [_metric("acc")]}
    if kind == "text" and not likelihoods:
        config["metric_list"] = config["metric_list"][:-1]
    if verifier is not None:
        config["process_results"] = verification(verifier)
        for doc in docs["test"]:
            doc["template"] = verifier.template(doc["question"])
    questions = [text_before(item) for item in items["test"]]
    if verifier is None:
        _group_doubles(docs["test"], questions)
    runs_code = verifier is not None and verifier.runs_code
    return HeldOutTask(
        config, docs, questions, kind, labels, kind == "text" and likelihoods, runs_code, encoder=encoder
    )


def _config(kind: str, data: DataSettings, docs: list[dict[str, Any]], likelihoods: bool) -> dict[str, Any]:
    """lm-eval's config of a task with the records `docs`, whose answers are of `kind`."""
    shared = {"task": HELD_OUT, "test_split": "test", "doc_to_text": "prompt", "metadata": {"version": 1.0}}
    if kind == MARKED:
        return shared | _marked()
    if kind == "choice" or (kind == "classify" and likelihoods):
        return shared | _choice()
    return shared | _written(kind, data, [doc["answer"] for doc in docs], "turns" in docs[0])


def _of_documents(data: DataSettings, items: Sequence[Item], num_fewshot: int | None, likelihoods: bool) -> HeldOutTask:
    """The task on documents. Raises UserError for examples before them, and for a model that only writes."""
    if num_fewshot:
        raise UserError(f"eval.num_fewshot={num_fewshot} can't be combined with data={data.name}, which asks nothing.")
    if not likelihoods:
        raise _only_writes(data)
    texts = [item[TEXT] for item in items]
    docs = [{"prompt": text[:OPENING], "answer": "", "text": text} for text in texts]
    _group_doubles(docs, texts)
    config = {
        "task": HELD_OUT,
        "test_split": "test",
        "output_type": windows.KIND,
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "process_results": bits.of_document,
        "metric_list": [_metric("bits_per_byte") | {"higher_is_better": False}],
        "metadata": {"version": 1.0},
    }
    return HeldOutTask(config, {"test": docs}, texts, DOCUMENTS, None, False, window=data.load["window"])


def _only_writes(data: DataSettings) -> UserError:
    return UserError(
        f"eval.tasks={HELD_OUT} of data={data.name} requires log-probabilities of an endpoint (model.tokenizer=)."
    )


def _verifier(data: DataSettings) -> Verifier | None:
    """What scores the answers to a task of reasoning-gym; None for other data."""
    if data.task is None:
        return None
    return Verifier(**{name: value for name, value in data.load.items() if name != "_target_"})


def kind_of(data: DataSettings, parts: dict[str, list[Item]]) -> str:
    """How the part ``test`` is scored: choice, classify, exact or text; marked if its answers have marks.

    `auto` says classify if the answers of all parts are labels, and exact if nearly all of the test are short or a
    result. Raises UserError for data.answers=choice without options, for marks with another one than `auto`, and as
    `are_labels`.
    """
    items = parts["test"]
    if MARK in items[0]:
        if data.answers != "auto":
            raise UserError(f"data.answers={data.answers} can't be combined with data.columns.mark: bad answers count.")
        return MARKED
    options = not items[0].keys().isdisjoint((OPTIONS, REJECTED))
    if data.answers == "choice" and not options:
        raise UserError("data.answers=choice requires data.columns.options, the column of the options.")
    if are_labels([item for part in parts.values() for item in part], data.answers):
        return "classify"
    if data.answers != "auto":
        return data.answers
    if options:
        return "choice"
    return "exact" if _mostly(_is_result(answer_of(item)) for item in items) else "text"


def _mostly(of: Iterable[bool]) -> bool:
    answers = list(of)
    return sum(answers) >= MOST * len(answers)


def _is_result(answer: str) -> bool:
    """Whether an answer is a few words of any script, or ends in a result."""
    return (is_short(answer) and words.length(answer) <= SHORT_WORDS) or matching.states_result(answer)


def _doc(item: Item, data: DataSettings, kind: str) -> dict[str, Any]:
    if CHAT in item:
        last = last_answer(item[CHAT])
        turns = item[CHAT][:last]
        text = "\n".join(turn["content"] for turn in turns)
        doc: dict[str, Any] = {"prompt": text, "answer": words_of(item[CHAT][last]), "turns": json.dumps(turns)}
        doc |= {TOOLS: json.dumps(item[TOOLS])} if TOOLS in item else {}
    else:
        doc = {"prompt": asked(item, data.template, data.prompt_if_empty), "answer": item["answer"]}
    if kind == "verified":
        doc["question"] = item["question"]
    if kind == MARKED:
        doc[MARK] = item[MARK]
    if kind == "choice":
        options = [doc["answer"], item[REJECTED]] if REJECTED in item else item[OPTIONS]
        doc |= {"options": options, "gold": options.index(doc["answer"])}
    return doc


def _classified(docs: Iterable[dict[str, Any]], labels: Labels, likelihoods: bool) -> None:
    """Give `docs` the labels as options; those of a model that only writes name them before the question."""
    for doc in docs:
        doc["answer"] = doc["answer"].strip()
        doc |= {"options": list(labels.texts), "gold": labels.texts.index(doc["answer"])}
        if not likelihoods:
            before = f"Answer with one of these labels: {', '.join(labels.texts)}.\n\n"
            doc["prompt"] = before + doc["prompt"]
            if "turns" in doc:
                *turns, last = json.loads(doc["turns"])
                doc["turns"] = json.dumps([*turns, last | {"content": before + last["content"]}])


def _group_doubles(docs: Sequence[dict[str, Any]], questions: Sequence[str]) -> None:
    """Name what `docs` with the same question share, if there are some: standard errors count them as one group."""
    forms = [normalised(question) for question in questions]
    sizes = Counter(forms)
    if len(sizes) < len(docs):
        for doc, form in zip(docs, forms, strict=True):
            doc["template"] = form if sizes[form] > 1 else None


def _choice() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [_metric("acc"), _metric("acc_norm")],
    }


def _marked() -> dict[str, Any]:
    return {
        "output_type": "loglikelihood",
        "doc_to_target": MARK,
        "process_results": bits.of_good_answer,
        "metric_list": [_metric("bits_per_byte") | {"higher_is_better": False}],
    }


def _written(kind: str, data: DataSettings, answers: list[str], chats: bool) -> dict[str, Any]:
    """The config of a task with written `answers`, of `chats` or to questions.

    A written answer ends where another question begins, and at a line's end, if no right answer has that.
    """
    begin = data.template.partition("{")[0].rstrip().rpartition("\n")[2]
    another = [f"\n{begin}"] if begin and not chats else []
    until = [stop for stop in [*another, "\n"] if not any(stop in answer.strip() for answer in answers)]
    longest = max(len(answer.encode()) for answer in answers)
    room = min(longest, longest // BYTES + SPARE)
    config: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {
            "until": until,
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": min(max(room, FEWEST_TOKENS), MOST_TOKENS),
        },
    }
    if kind == "text":
        from harness.job.evaluate.held_out.prose import likeness  # late: few cells score prose, and nltk comes with it

        lower = _metric("bits_per_byte") | {"higher_is_better": False}
        return config | {"process_results": likeness, "metric_list": [_metric("rougeL"), _metric("bleu"), lower]}
    if kind == "verified":
        config["metric_list"] = [_metric("solved")]
        numbers = (matching.last_number(answer) == matching.final(answer).strip() for answer in answers)
    else:
        config |= {"process_results": exactness, "metric_list": [_metric("exact_match")]}
        numbers = (matching.last_number(answer) is not None for answer in answers)
    if _mostly(numbers):
        number = {"function": "regex", "group_select": -1, "regex_pattern": LAST_NUMBER}
        config["filter_list"] = [_filter("flexible-extract", number), _filter("strict-match")]
    return config


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


def _filter(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "filter": [*steps, {"function": "take_first"}]}


# What an answer is worth


def exactness(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the written answer is the right one."""
    return {"exact_match": float(matching.same(results[0], doc["answer"]))}


def classification(labels: Labels) -> Callable[[dict[str, Any], list[str]], dict[str, float]]:
    """Whether the written answer names the right label alone."""

    def accuracy(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        return {"acc": float(classes.written_label(results[0], labels.texts) == doc["answer"])}

    return accuracy


def verification(verifier: Verifier) -> Callable[[dict[str, Any], list[str]], dict[str, float]]:
    """Whether `verifier` takes the written answer, or what follows its last `####`, for wholly right."""

    def solved(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        answer = matching.final(results[0]).strip()
        return {"solved": float(verifier.score(doc["question"], answer) >= 1)}

    return solved
