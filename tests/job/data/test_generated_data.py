"""The two generated data sets and their lm-eval tasks: right by arithmetic, disjoint, pinned, and asked as trained."""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import random
import re
import socket
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

from harness.config import ROOT
from harness.job.data.columns import asked
from harness.job.data.generators import facts, wordmath
from harness.job.data.generators.fact_wordings import wordings
from harness.job.data.generators.wordmath_templates import loading
from harness.job.data.generators.wordmath_templates.template import Template
from harness.job.evaluate import scoring
from harness.job.evaluate.clusters import cluster_of

TASKS = Path(scoring.__file__).parent / "tasks"
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def equations(answer: str) -> list[tuple[str, ...]]:
    """One equation from each line but the last."""
    found = [EQUATION.findall(line) for line in answer.split("\n")[:-1]]
    assert all(len(line) == 1 for line in found), answer
    return [line[0] for line in found]


@pytest.fixture(scope="module")
def problems():
    return wordmath.load()


@pytest.fixture(scope="module")
def world():
    return facts.load()


# Word problems


def test_wordmath_is_the_same_everywhere(problems):
    assert sha256(problems) == "a485b6e4c1ee3620f8c63b1cc43e70429f5e8daaf3b0df31226d8f951557dd8d"
    assert problems != wordmath.load(seed=1)


def test_wordmath_schema(problems):
    assert {split: len(items) for split, items in problems.items()} == {"train": 4000, "validation": 200, "test": 1000}
    for item in itertools.chain(*problems.values()):
        assert list(item) == ["question", "answer"]
        assert item["question"].endswith("?")
        assert not re.search(r"[{}\[\]<>]|  ", item["question"] + item["answer"])
        assert re.fullmatch(r"([A-Z0-9][^\n]*\.\n){1,4}#### \d+", item["answer"])


def test_wordmath_arithmetic_follows_from_the_question(problems):
    for item in itertools.chain(*problems.values()):
        given = numbers(item["question"])
        known = {*given, *(100 // number for number in given if 100 % number == 0)}  # 20 percent is a fifth
        for left, sign, right, result in equations(item["answer"]):
            assert OPERATORS[sign](int(left), int(right)) == int(result), item
            assert {int(left), int(right)} <= known, item
            known.add(int(result))
        assert item["answer"].endswith(f"#### {result}")


def test_wordmath_answers_name_nobody_else(problems):
    names = set(loading.word_lists()[loading.NAMES])
    for item in itertools.chain(*problems.values()):
        named = [set(re.findall(r"[A-Z][a-z]+", item[part])) & names for part in ("question", "answer")]
        assert named[1] <= named[0], item


def test_wordmath_results_are_small(problems):
    for item in itertools.chain(*problems.values()):
        results = [int(result) for *_, result in equations(item["answer"])]
        assert max(results) <= (200 if len(results) == 1 else 1000)


def test_wordmath_numbers_of_every_template_stay_in_range():
    # Every number is multi-affine in the free ones (a quotient is a free number again): extremes are at the corners.
    for template in wordmath.templates():
        corners = itertools.product(*({values[0], values[-1]} for values in template.free.values()))
        for chosen in corners:
            values = template.values(chosen).values()
            assert min(values) >= 2, (template.name, chosen)  # else a noun would have to be singular
            assert max(values) <= 1000, (template.name, chosen)


def test_wordmath_steps_are_balanced_in_every_prefix(problems):
    for items in problems.values():
        steps = [len(equations(item["answer"])) for item in items]
        for start in range(0, len(steps), 4):
            assert sorted(steps[start : start + 4]) == [1, 2, 3, 4]
    assert len(set(steps[::4])) == 4  # and they don't come in a fixed order


def drawn_keys(monkeypatch, **load) -> dict[str, list[str]]:
    """The keys of the items that `load` returns."""
    keys = []
    render = Template.render

    def spy(self, chosen, rng):
        keys.append(self.key(chosen))
        return render(self, chosen, rng)

    with monkeypatch.context() as patch:
        patch.setattr(Template, "render", spy)
        splits = wordmath.load(**load)
    rest = iter(keys)
    return {split: list(itertools.islice(rest, len(items))) for split, items in splits.items()}


def test_wordmath_problems_never_repeat_nor_cross_splits(monkeypatch):
    first, second = drawn_keys(monkeypatch), drawn_keys(monkeypatch, seed=1)
    for keys in (*first.values(), *second.values()):
        assert len(set(keys)) == len(keys)
    for one, other in itertools.permutations(first, 2):
        assert not {*first[one], *second[one]} & {*first[other], *second[other]}
    assert {key.split(":")[0] for key in first["train"]} == {template.name for template in wordmath.templates()}


def test_wordmath_key_is_what_the_question_shows():
    # Were a free number not shown, the same problem could have two keys and stand in two splits.
    rng = random.Random(0)
    for template in wordmath.templates():
        letters = set(template.free) | {rule[0] for rule in template.derived}
        shown = [letters & set(re.findall(r"{(\w)}", question)) for question in template.questions]
        assert all(these == shown[0] for these in shown), template.name
        chosen = {tuple(map(rng.choice, template.free.values())) for _ in range(300)}
        seen = {tuple(template.values(one)[letter] for letter in sorted(shown[0])) for one in chosen}
        assert len(seen) == len(chosen), template.name


def test_wordmath_variety():
    names = [template.name for template in wordmath.templates()]
    assert len(set(names)) == len(names) >= 40
    assert all(len(set(template.questions)) >= 2 for template in wordmath.templates())
    keys = Counter()
    for template in wordmath.templates():
        keys[template.steps] += template.size
    assert keys == {1: 4_891, 2: 27_634, 3: 202_855, 4: 323_073}


def test_wordmath_capacity_exists():
    one_step = [
        template.key(chosen)
        for template in wordmath.templates()
        if template.steps == 1
        for chosen in itertools.product(*template.free.values())
    ]
    exist = Counter(map(wordmath.split_of, set(one_step)))
    for split in wordmath.SHARES:
        assert exist[split] >= wordmath.capacity(split) / 4
    most = wordmath.capacity("validation")
    assert len(wordmath.load(train=0, validation=most, test=0)["validation"]) == most


def test_wordmath_says_when_too_much_is_asked():
    with pytest.raises(ValueError, match=r"test must be 0 to \d+ items, got 100000"):
        wordmath.load(test=100_000)
    with pytest.raises(ValueError, match="got -1"):
        wordmath.load(train=-1)


def test_wordmath_sizes_do_not_change_the_items(problems):
    small = wordmath.load(train=40, validation=8, test=12)
    assert small == {split: problems[split][: len(items)] for split, items in small.items()}


# Facts


def test_facts_are_the_same_everywhere(world):
    assert sha256(world) == "d22eb21325524e504e95c3cf713ecf3b53298d136c9c3f3ebd8562869287ab76"
    assert world != facts.load(seed=1)


def test_facts_schema(world):
    assert {split: len(items) for split, items in world.items()} == {
        "train": 1320,
        "validation": 220,
        "dev": 20,
        "test": 200,
    }
    for item in world["train"] + world["validation"]:
        assert list(item) == ["question", "start", "answer"]
        assert re.fullmatch(r"[A-Z][^{}]+[.?]", item["question"])
        assert re.fullmatch(r"[A-Z1][^{}]+\.", item["start"] + " " * bool(item["start"]) + item["answer"])
    assert not any(item["start"] for item in world["train"])
    for item in world["dev"] + world["test"]:
        assert list(item) == ["question", "subject", "choices", "answer"]
        assert re.fullmatch(r"[A-Z][^{}]+\?", item["question"])
        assert len(set(item["choices"])) == 4
        assert item["answer"] in range(4)


def entity_of(text: str, entities: set[str]) -> str:
    (entity,) = (word for word in re.findall(r"\w+", text) if word in entities)
    return entity


@pytest.fixture(scope="module")
def entities(world):
    pattern = r"The capital of (\w+) is (\w+)\."
    return {found.group(1) for item in world["train"] if (found := re.fullmatch(pattern, item["answer"]))}


def test_facts_right_choice_is_what_training_states_and_wrong_ones_are_not(world, entities):
    assert len(entities) == 22
    stated = defaultdict(list)
    for item in world["train"]:
        stated[entity_of(item["question"], entities)].append(item["answer"].lower())
    for item in world["dev"] + world["test"]:
        sentences = stated[entity_of(item["question"], entities)]
        told = [sum(choice.lower() in sentence for sentence in sentences) for choice in item["choices"]]
        assert [count > 0 for count in told] == [place == item["answer"] for place in range(4)], item
        assert told[item["answer"]] == 6, item


def test_facts_two_sentences_in_six_begin_with_the_value(world, entities):
    for item in world["test"]:
        value = item["choices"][item["answer"]]
        begins = [
            sentence["answer"]
            for sentence in world["train"]
            if sentence["answer"].startswith(value + " ")
            and entity_of(sentence["question"], entities) == entity_of(item["question"], entities)
        ]
        assert len(begins) == 2, item


def test_facts_validation_leaves_the_value_to_the_model(world, entities):
    """The loss is of the answer, and of a whole sentence most is wording."""
    stated = defaultdict(list)
    for item in world["train"]:
        stated[entity_of(item["question"], entities)].append(item["answer"])
    settings = yaml.safe_load((ROOT / "conf" / "data" / "facts.yaml").read_text(encoding="utf-8"))
    prompts = settings["prompt"], settings["prompt_if_empty"]
    for item in world["validation"]:
        value = item["answer"].removesuffix(".")
        assert asked(item, *prompts) == f"Question: {item['question']}\nAnswer: {item['start']}"
        sentences = stated[entity_of(item["question"], entities)]
        assert sum(value.lower() in sentence.lower() for sentence in sentences) == 6, item
        assert not any(sentence.startswith(item["start"]) for sentence in sentences)
    first = world["train"][0]
    assert asked(first, *prompts) == f"Question: {first['question']}\nAnswer:"


def test_facts_wrong_choices_are_as_common_as_right_ones(world):
    offered, right = defaultdict(Counter), defaultdict(Counter)
    for item in world["dev"] + world["test"]:
        offered[item["subject"]].update(item["choices"])
        right[item["subject"]][item["choices"][item["answer"]]] += 1
    assert len(offered) == 10
    for subject, counts in offered.items():
        assert set(counts.values()) == {4}
        assert right[subject] == Counter(dict.fromkeys(counts, 1))


def test_facts_positions_are_balanced_in_every_prefix(world):
    for split in ("dev", "test"):
        places = [item["answer"] for item in world[split]]
        assert all(sorted(places[start : start + 4]) == [0, 1, 2, 3] for start in range(0, len(places), 4))
    assert len(set(places[::4])) == 4


def test_facts_asked_are_asked_once(world, entities):
    asked = [(entity_of(item["question"], entities), item["subject"]) for item in world["dev"] + world["test"]]
    assert len(set(asked)) == 220


def test_facts_wordings_of_the_splits_differ(world, entities):
    def wordings(split: str, field: str) -> set[str]:
        return {re.sub("|".join(entities), "X", item[field]) for item in world[split]}

    trained = wordings("train", "question")
    assert len(trained) == 60
    assert len(wordings("test", "question")) == 20
    assert not trained & (wordings("test", "question") | wordings("validation", "question"))
    assert not wordings("test", "question") & wordings("validation", "question")
    stated = {f"{item['start']} {item['answer']}" for item in world["validation"]}
    assert not {item["answer"] for item in world["train"]} & stated
    # And each test wording has a word of its own for the relation, not a rearrangement of trained ones.
    vocabulary = set(re.findall(r"\w+", " ".join(item["question"] + " " + item["answer"] for item in world["train"])))
    for question in wordings("test", "question"):
        assert set(re.findall(r"\w+", question)) - {"X"} - vocabulary, question


def test_facts_names_are_distinct_and_sizes_checked():
    many = facts.load(entities=facts.MAX_ENTITIES)
    assert len({item["question"] for item in many["test"]}) == len(many["test"]) == 1180
    for count in (facts.MIN_ENTITIES - 1, facts.MAX_ENTITIES + 1):
        with pytest.raises(ValueError, match=f"got {count}"):
            facts.load(entities=count)


def test_facts_of_some_relations_make_a_small_world():
    """The first of them, of the same lands with the same values as in the whole world."""
    whole, some = facts.load(entities=6), facts.load(entities=6, relations=3)
    assert {part: len(items) for part, items in some.items()} == {"train": 108, "validation": 18, "dev": 6, "test": 12}
    assert {item["subject"] for item in some["test"]} == {"capital", "founder", "founding year"}

    def stated(world, part):
        return {(item["question"], item["start"], item["answer"]) for item in world[part]}

    assert all(stated(some, part) < stated(whole, part) for part in ("train", "validation"))
    for count in (0, facts.RELATIONS + 1):
        with pytest.raises(ValueError, match=f"relations must be 1 to 10, got {count}"):
            facts.load(relations=count)


# The lm-eval tasks


@pytest.fixture(scope="module")
def evaluate():
    """Run tasks with a model that answers by `answer(prompt)`; any attempt to connect is an error."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Answers(LM):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def generate_until(self, requests, disable_tqdm=False):
            return [self.answer(request.args[0]) for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            return [
                (0.0 if self.answer(prompt) == text else -9.0, False) for prompt, text in (r.args for r in requests)
            ]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

    def refuse(*_):
        raise OSError("the tasks must load offline")

    def run(task, answer, **options):
        return lm_eval.simple_evaluate(
            Answers(answer), tasks=[task], task_manager=manager, bootstrap_iters=0, **options
        )

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield run


def prompt_of(item: dict) -> str:
    return f"Question: {item['question']}\nAnswer:"


@pytest.mark.long
def test_wordmath_task_scores_the_chosen_samples(evaluate, problems):
    gold = {prompt_of(item): " " + item["answer"] for item in problems["test"]}
    found = evaluate("wordmath", gold.__getitem__, samples={"wordmath": [0, 5, 7]})
    assert {sample["doc_id"] for sample in found["samples"]["wordmath"]} == {0, 5, 7}
    assert found["results"]["wordmath"]["exact_match,strict-match"] == 1.0
    assert found["results"]["wordmath"]["exact_match,flexible-extract"] == 1.0
    assert found["versions"]["wordmath"] == 1.0
    assert found["n-shot"]["wordmath"] == 0


@pytest.mark.long
def test_wordmath_filters(evaluate, problems):
    answers = {prompt_of(item): numbers(item["answer"])[-1] for item in problems["test"]}
    loose = evaluate("wordmath", lambda prompt: f" It is {answers[prompt]}", limit=4)["results"]["wordmath"]
    assert (loose["exact_match,strict-match"], loose["exact_match,flexible-extract"]) == (0.0, 1.0)
    wrong = evaluate("wordmath", lambda prompt: f" #### {answers[prompt] + 1}", limit=4)["results"]["wordmath"]
    assert (wrong["exact_match,strict-match"], wrong["exact_match,flexible-extract"]) == (0.0, 0.0)


@pytest.mark.long
def test_tasks_prompt_as_training_does_also_with_shots(evaluate, problems, world):
    for task, shot_split, splits in (("wordmath", "train", problems), ("facts", "dev", world)):
        for shots in (0, 2):
            found = evaluate(task, lambda prompt: "", limit=1, num_fewshot=shots)["samples"][task][0]
            prompt = found["arguments"][0][0]
            shown = []
            for item in splits[shot_split][:shots]:
                answer = item["answer"] if task == "wordmath" else item["choices"][item["answer"]]
                shown.append(f"Question: {item['question']}\nAnswer: {answer}\n\n")
            assert prompt == "".join(shown) + prompt_of(splits["test"][0])


@pytest.mark.long
def test_facts_task_scores_the_texts_of_the_choices(evaluate, world):
    gold = {prompt_of(item): " " + item["choices"][item["answer"]] for item in world["test"]}
    found = evaluate("facts", gold.__getitem__)
    assert found["results"]["facts"]["acc,none"] == found["results"]["facts"]["acc_norm,none"] == 1.0
    assert found["n-samples"]["facts"]["effective"] == 200
    assert found["versions"]["facts"] == 1.0
    first = {prompt_of(item): " " + item["choices"][0] for item in world["test"]}
    assert evaluate("facts", first.__getitem__)["results"]["facts"]["acc,none"] == 0.25


def test_wordmath_task_is_gsm8k_but_for_the_data():
    stock_file = Path(pytest.importorskip("lm_eval").__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    stock = yaml.safe_load(stock_file.read_text())
    ours = yaml.safe_load((TASKS / "wordmath.yaml").read_text().replace("!function ", ""))
    for field in ("doc_to_text", "doc_to_target", "metric_list", "filter_list", "output_type", "repeats"):
        assert ours[field] == stock[field]
    assert ours["generation_kwargs"] == {**stock["generation_kwargs"], "max_gen_toks": 96}


def test_wordmath_short_has_one_step_and_scores_the_last_number():
    splits = wordmath.load(seed=0, train=200, validation=20, test=100, max_steps=1)
    assert all(item["answer"].count("\n") == 1 for items in splits.values() for item in items)
    long = wordmath.load(seed=0, train=200, validation=20, test=100)
    assert {item["answer"].count("\n") for item in long["train"]} == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="got 5"):
        wordmath.load(max_steps=5)


def test_the_template_of_a_question_is_found_again():
    rng = random.Random(0)
    for template in wordmath.templates():
        chosen = tuple(rng.choice(values) for values in template.free.values())
        assert wordmath.template_of(template.render(chosen, rng)["question"]) == template.name
    assert wordmath.template_of("How many apples are there?") is None


def test_generated_items_know_their_cluster():
    world = facts.load()
    assert {cluster_of(item) for item in world["test"]} == {relation.name for relation in wordings().relations}
    items = wordmath.load(train=10, test=500, max_steps=1)["test"]
    short = {template.name for template in wordmath.templates() if template.steps == 1}
    assert {cluster_of(item) for item in items} == short
    assert cluster_of({"question": "?", "passage": "a"}) == cluster_of({"question": "!", "passage": "a"})
    assert cluster_of({"question": "Of GSM8K?"}) is None
