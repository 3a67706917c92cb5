"""A generated fictional world: knowledge that no model can have seen before fine-tuning.

The world has entities (invented lands), each with one value for every relation (capital, founder, …). Names are made
of syllables; goods, birds, feasts and dishes are everyday words in chance pairs. What is measured is whether facts
stated in training can be told apart afterwards when they are asked for in other words.

`train` and `validation` have `{"question": str, "start": str, "answer": str}`: a short request and one plain sentence.
`start` is what is given of the sentence: nothing in `train`, all but the value in `validation`. `dev` and `test` have
MMLU's, `{"question": str, "subject": str, "choices": list[str] of four, "answer": int}`, with the relation as subject.

Choices, and why:

- Every fact, also those asked for in `test`, is stated in six wordings in `train`: one wording is memorised as a
  string, several as a fact. Two of the six sentences begin with the value, because scoring a choice asks for the value
  straight after `Answer:`.
- `validation` states the same facts in a seventh wording, of which the model completes the value, so its loss is of
  facts. That of the whole sentence is mostly of its wording, which a model expects the less the better it knows the six
  others. It shares no question with `test`, so settings may be chosen on it.
- `test` asks in words that never occur in `train`, and always from the entity to the value: the other direction would
  measure the reversal curse instead.
- The three wrong choices are other entities' values of the same relation. Within a relation every value is offered
  equally often, so knowing the strings does not help; what is needed is whose they are.
- Each block of four questions has the right answer once at every position.
- `dev` (few-shot examples) asks about two entities a relation whose facts of this relation `test` leaves out.

Words and wordings are in facts.yaml.
"""

from __future__ import annotations

import itertools
import random

from harness.job.data.generators.fact_wordings import FactWordings, Relation, wordings

DEV_ENTITIES = 2
"""Number of entities whose facts go to `dev` instead of `test`, for each relation."""

MIN_ENTITIES, MAX_ENTITIES = 6, 120
"""A question needs four choices beside the values of `dev`; the word lists make about 130 pairs."""

RELATIONS = 10


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


class _Namer:
    """Invented names, each used once in a world.

    The beginnings of each kind are dealt like cards, so that few names can be confused.
    """

    def __init__(self, rng: random.Random, parts: FactWordings) -> None:
        self._rng, self._parts = rng, parts
        self._used: set[str] = set()
        self._starts: dict[str, list[str]] = {kind: [] for kind in parts.ends}

    def name(self, kind: str) -> str:
        starts, middles, ends = self._parts.starts, self._parts.middles, self._parts.ends[kind]
        self._starts[kind] = self._starts[kind] or self._rng.sample(starts, len(starts))
        start = self._starts[kind].pop()
        while True:
            name = start + self._rng.choice(middles) + self._rng.choice(ends)
            if name not in self._used:
                self._used.add(name)
                return name


def _pairs(rng: random.Random, lists: tuple[tuple[str, ...], ...], joint: str, count: int) -> list[str]:
    return rng.sample([joint.join(words) for words in itertools.product(*lists)], count)


def _world(rng: random.Random, entities: int, parts: FactWordings) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the entities, and by relation their values in the same order, all different."""
    namer = _Namer(rng, parts)
    names = [namer.name("land") for _ in range(entities)]
    values = {
        "capital": [namer.name("city") for _ in names],
        "founder": [f"{namer.name('person')} {namer.name('person')}" for _ in names],
        "founding year": [str(year) for year in rng.sample(range(1100, 1900), entities)],
        "export": _pairs(rng, parts.pairs["export"], " ", entities),
        "river": [namer.name("river") for _ in names],
        "bird": _pairs(rng, parts.pairs["bird"], " ", entities),
        "patron": [f"Saint {namer.name('person')}" for _ in names],
        "language": [namer.name("tongue") for _ in names],
        "festival": _pairs(rng, parts.pairs["festival"], " of ", entities),
        "dish": _pairs(rng, parts.pairs["dish"], " ", entities),
    }
    return names, values


def _state(request: str, sentence: str, topic: str, entity: str, value: str) -> dict[str, str]:
    answer = sentence.format(e=entity, v=value)
    return {"question": request.format(topic=topic, e=entity), "start": "", "answer": _capitalized(answer)}


def _complete(request: str, relation: Relation, entity: str, value: str) -> dict[str, str]:
    start, end = (part.format(e=entity) for part in relation.validation.split("{v}"))
    question = request.format(topic=relation.topic, e=entity)
    return {"question": question, "start": start.rstrip(), "answer": value + end}


def load(seed: int = 0, entities: int = 22, relations: int = RELATIONS) -> dict[str, list[dict]]:
    """Return the splits `train`, `validation`, `dev` and `test` of the world of this seed.

    An entity has ten facts, or those of its first `relations`: the smallest world has 36 items with one of them, 360
    with all. `train` has six items for each fact and `validation` one, in random order; `dev` has two questions a
    relation, and `test` one for each other fact (200 by default). Raises ValueError if the word lists do not allow that
    number of entities, and for a number of relations that there is not.
    """
    if not MIN_ENTITIES <= entities <= MAX_ENTITIES:
        raise ValueError(f"facts' entities must be {MIN_ENTITIES} to {MAX_ENTITIES}, got {entities}")
    if not 1 <= relations <= RELATIONS:
        raise ValueError(f"facts' relations must be 1 to {RELATIONS}, got {relations}")
    rng = random.Random(f"facts/{seed}")
    world = wordings()
    names, values = _world(rng, entities, world)
    splits: dict[str, list[dict]] = {"train": [], "validation": [], "dev": [], "test": []}

    asked: dict[str, list[tuple[Relation, str, list[str]]]] = {"dev": [], "test": []}
    for relation in world.relations[:relations]:
        owners = list(zip(names, values[relation.name], strict=True))
        for entity, value in owners:
            for request, sentence in zip((*world.requests, relation.ask), relation.train, strict=True):
                splits["train"].append(_state(request, sentence, relation.topic, entity, value))
            splits["validation"].append(_complete(world.validation_request, relation, entity, value))

        # Each question offers its own value and the next three of a shuffled ring, so all values are offered equally.
        rng.shuffle(owners)
        for place, (entity, _) in enumerate(owners):
            offered = [owners[(place + step) % entities][1] for step in range(4)]
            asked["dev" if place < DEV_ENTITIES else "test"].append((relation, entity, offered))

    for split, questions in asked.items():
        rng.shuffle(questions)
        positions: list[int] = []
        for relation, entity, offered in questions:
            positions = positions or rng.sample(range(4), 4)
            answer = positions.pop()
            others = rng.sample(offered[1:], 3)
            choices = [*others[:answer], offered[0], *others[answer:]]
            splits[split].append(
                {
                    "question": rng.choice(relation.test).format(e=entity),
                    "subject": relation.name,
                    "choices": [_capitalized(choice) for choice in choices],
                    "answer": answer,
                }
            )
    rng.shuffle(splits["train"])
    rng.shuffle(splits["validation"])
    return splits
