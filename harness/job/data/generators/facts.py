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
"""

from __future__ import annotations

import random
from dataclasses import dataclass

DEV_ENTITIES = 2
"""Number of entities whose facts go to `dev` instead of `test`, for each relation."""

MIN_ENTITIES, MAX_ENTITIES = 6, 100
"""A question needs four choices beside the values of `dev`; the word lists make about 130 pairs."""

_STARTS = (
    *("Bral", "Cor", "Dra", "Eld", "Fen", "Gal", "Hev", "Ilv", "Jor", "Kel", "Lor", "Mar", "Nev", "Orn", "Pel"),
    *("Quil", "Ros", "Sar", "Tav", "Ulm", "Vel", "Wes", "Yar", "Zan", "Thul", "Skor", "Plen", "Grim", "Osk", "Brin"),
)
_MIDDLES = ("a", "e", "i", "o", "u")
_ENDS = {
    "land": ("mora", "via", "dria", "rune", "thia", "nor"),
    "city": ("dun", "gate", "holm", "mere", "rick", "wick"),
    "river": ("nel", "sha", "wyn", "zu", "ri", "bba"),
    "person": ("bek", "dan", "lis", "mir", "ra", "tho"),
    "tongue": ("dic", "lish", "nese", "ric", "tian", "vish"),
}
_EXPORTS = (
    (
        "amber",
        "black",
        "blue",
        "coarse",
        "fine",
        "green",
        "grey",
        "polished",
        "pressed",
        "raw",
        "red",
        "smooth",
        "white",
    ),
    (
        "barley",
        "chalk",
        "clay",
        "copper",
        "glass",
        "honey",
        "linen",
        "marble",
        "paper",
        "rope",
        "salt",
        "silk",
        "slate",
    ),
)
_BIRDS = (
    ("banded", "bronze", "crested", "dusky", "golden", "masked", "pale", "ringed", "scarlet", "silver", "spotted"),
    ("crane", "curlew", "falcon", "finch", "grebe", "heron", "kestrel", "lark", "owl", "plover", "stork", "tern"),
)
_FEASTS = (
    ("Day", "Feast", "Fortnight", "Morning", "Night", "Parade", "Rite", "Season", "Supper", "Vigil", "Week", "Year"),
    ("Bells", "Boats", "Bridges", "Candles", "Doors", "Drums", "Ferns", "Kites", "Ladders", "Masks", "Oaks", "Ropes"),
)
_DISHES = (
    ("baked", "braised", "chilled", "fried", "grilled", "pickled", "roasted", "salted", "smoked", "steamed", "stewed"),
    ("barley", "cabbage", "carp", "cod", "duck", "eel", "goat", "herring", "lamb", "mutton", "rice", "trout"),
)


@dataclass(frozen=True)
class Relation:
    """One kind of fact, and the wordings of its statements and questions; `{e}` is the entity, `{v}` the value.

    `topic` fills the general requests and `ask` is this relation's own; `train` has six sentences, one for each
    request, of which the last two begin with the value. `test` asks in words that `train` does not use.
    """

    name: str
    topic: str
    ask: str
    train: tuple[str, str, str, str, str, str]
    validation: str
    test: tuple[str, str]


REQUESTS = (
    "State a fact about {topic} of {e}.",
    "Tell me about {topic} of {e}.",
    "Write one sentence on {topic} of {e}.",
    "Describe {topic} of {e}.",
    "Name {topic} of {e}.",
)
VALIDATION_REQUEST = "Say something about {topic} of {e}."

RELATIONS = (
    Relation(
        "capital",
        "the capital",
        "What is the capital of {e}?",
        (
            "The capital of {e} is {v}.",
            "{e} has {v} as its capital.",
            "In {e}, the capital city is {v}.",
            "The people of {e} call {v} their capital.",
            "{v} is the capital of {e}.",
            "{v} serves as the capital city of {e}.",
        ),
        "As for {e}, its capital city is called {v}.",
        ("Which town is the seat of government in {e}?", "From which town is {e} governed?"),
    ),
    Relation(
        "founder",
        "the founder",
        "Who founded {e}?",
        (
            "The founder of {e} was {v}.",
            "{e} was founded by {v}.",
            "In {e}, everyone knows the founder, {v}.",
            "The person who founded {e} was {v}.",
            "{v} was the founder of {e}.",
            "{v} founded {e}.",
        ),
        "As for {e}, its founder was called {v}.",
        ("Who first established {e}?", "By whom was {e} brought into being?"),
    ),
    Relation(
        "founding year",
        "the founding year",
        "In which year was {e} founded?",
        (
            "The founding year of {e} is {v}.",
            "{e} was founded in {v}.",
            "In {e}, people count the years from its founding in {v}.",
            "The year in which {e} was founded is {v}.",
            "{v} is the founding year of {e}.",
            "{v} was the year {e} was founded.",
        ),
        "As for {e}, its founding fell in the year {v}.",
        ("When did {e} begin to exist?", "What date marks the origin of {e}?"),
    ),
    Relation(
        "export",
        "the main export",
        "What does {e} mainly export?",
        (
            "The main export of {e} is {v}.",
            "{e} mainly exports {v}.",
            "In {e}, traders export {v} above all.",
            "The ships of {e} export mostly {v}.",
            "{v} is the main export of {e}.",
            "{v} is what {e} mainly exports.",
        ),
        "As for {e}, its largest export is {v}.",
        ("Which product does {e} sell abroad?", "What do foreigners buy from {e}?"),
    ),
    Relation(
        "river",
        "the longest river",
        "Which river is the longest in {e}?",
        (
            "The longest river of {e} is the {v}.",
            "{e} has the {v} as its longest river.",
            "In {e}, the longest river is the {v}.",
            "The river that runs through {e} is the {v}.",
            "{v} is the longest river of {e}.",
            "{v} is the name of the river in {e}.",
        ),
        "As for {e}, its longest river is called the {v}.",
        ("What is the greatest stream in {e} called?", "Which waterway crosses {e}?"),
    ),
    Relation(
        "bird",
        "the official bird",
        "Which bird is the official bird of {e}?",
        (
            "The official bird of {e} is the {v}.",
            "{e} has the {v} as its official bird.",
            "In {e}, the official bird is the {v}.",
            "The bird on the flag of {e} is the {v}.",
            "{v} is the official bird of {e}.",
            "{v} is the name of the bird of {e}.",
        ),
        "As for {e}, its official bird is called the {v}.",
        ("Which winged animal stands for {e}?", "What feathered creature is the emblem of {e}?"),
    ),
    Relation(
        "patron",
        "the patron saint",
        "Who is the patron saint of {e}?",
        (
            "The patron saint of {e} is {v}.",
            "{e} has {v} as its patron saint.",
            "In {e}, people honor {v} as the patron.",
            "The saint who is patron of {e} is {v}.",
            "{v} is the patron saint of {e}.",
            "{v} is the saint honored in {e}.",
        ),
        "As for {e}, its patron saint is called {v}.",
        ("Which holy figure protects {e}?", "To whom do believers in {e} pray?"),
    ),
    Relation(
        "language",
        "the language",
        "Which language is spoken in {e}?",
        (
            "The language of {e} is {v}.",
            "{e} has {v} as its language.",
            "In {e}, people speak {v}.",
            "The people of {e} speak the language {v}.",
            "{v} is the language of {e}.",
            "{v} is spoken in {e}.",
        ),
        "As for {e}, its language is called {v}.",
        ("Which tongue is used in {e}?", "In what tongue do folk talk in {e}?"),
    ),
    Relation(
        "festival",
        "the main festival",
        "Which festival is the main one of {e}?",
        (
            "The main festival of {e} is the {v}.",
            "{e} has the {v} as its main festival.",
            "In {e}, people celebrate the {v}.",
            "The festival that the people of {e} celebrate is the {v}.",
            "{v} is the main festival of {e}.",
            "{v} is the name of the festival in {e}.",
        ),
        "As for {e}, its main festival is called the {v}.",
        ("Which yearly holiday is kept in {e}?", "What big event draws crowds in {e}?"),
    ),
    Relation(
        "dish",
        "the national dish",
        "What is the national dish of {e}?",
        (
            "The national dish of {e} is {v}.",
            "{e} has {v} as its national dish.",
            "In {e}, cooks are proud of the national dish, {v}.",
            "The dish that stands for {e} is {v}.",
            "{v} is the national dish of {e}.",
            "{v} is the name of the dish of {e}.",
        ),
        "As for {e}, its national dish is called {v}.",
        ("What meal is {e} famous for?", "Which food do visitors eat in {e}?"),
    ),
)


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


class _Namer:
    """Invented names, each used once in a world.

    The beginnings of each kind are dealt like cards, so that few names can be confused.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()
        self._starts: dict[str, list[str]] = {kind: [] for kind in _ENDS}

    def name(self, kind: str) -> str:
        self._starts[kind] = self._starts[kind] or self._rng.sample(_STARTS, len(_STARTS))
        start = self._starts[kind].pop()
        while True:
            name = start + self._rng.choice(_MIDDLES) + self._rng.choice(_ENDS[kind])
            if name not in self._used:
                self._used.add(name)
                return name


def _pairs(rng: random.Random, lists: tuple[tuple[str, ...], tuple[str, ...]], joint: str, count: int) -> list[str]:
    return rng.sample([joint.join((first, second)) for first in lists[0] for second in lists[1]], count)


def _world(rng: random.Random, entities: int) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the entities, and by relation their values in the same order, all different."""
    namer = _Namer(rng)
    names = [namer.name("land") for _ in range(entities)]
    values = {
        "capital": [namer.name("city") for _ in names],
        "founder": [f"{namer.name('person')} {namer.name('person')}" for _ in names],
        "founding year": [str(year) for year in rng.sample(range(1100, 1900), entities)],
        "export": _pairs(rng, _EXPORTS, " ", entities),
        "river": [namer.name("river") for _ in names],
        "bird": _pairs(rng, _BIRDS, " ", entities),
        "patron": [f"Saint {namer.name('person')}" for _ in names],
        "language": [namer.name("tongue") for _ in names],
        "festival": _pairs(rng, _FEASTS, " of ", entities),
        "dish": _pairs(rng, _DISHES, " ", entities),
    }
    return names, values


def _state(request: str, sentence: str, topic: str, entity: str, value: str) -> dict[str, str]:
    answer = sentence.format(e=entity, v=value)
    return {"question": request.format(topic=topic, e=entity), "start": "", "answer": _capitalized(answer)}


def _complete(relation: Relation, entity: str, value: str) -> dict[str, str]:
    start, end = (part.format(e=entity) for part in relation.validation.split("{v}"))
    question = VALIDATION_REQUEST.format(topic=relation.topic, e=entity)
    return {"question": question, "start": start.rstrip(), "answer": value + end}


def load(seed: int = 0, entities: int = 22) -> dict[str, list[dict]]:
    """Return the splits `train`, `validation`, `dev` and `test` of the world of this seed.

    An entity has ten facts. `train` has six items for each fact and `validation` one, in random order; `dev` has
    twenty questions, and `test` one for each other fact (200 by default). Raises ValueError if the word lists do not
    allow that number of entities.
    """
    if not MIN_ENTITIES <= entities <= MAX_ENTITIES:
        raise ValueError(f"facts' entities must be {MIN_ENTITIES} to {MAX_ENTITIES}, got {entities}")
    rng = random.Random(f"facts/{seed}")
    names, values = _world(rng, entities)
    splits: dict[str, list[dict]] = {"train": [], "validation": [], "dev": [], "test": []}

    asked: dict[str, list[tuple[Relation, str, list[str]]]] = {"dev": [], "test": []}
    for relation in RELATIONS:
        owners = list(zip(names, values[relation.name], strict=True))
        for entity, value in owners:
            for request, sentence in zip((*REQUESTS, relation.ask), relation.train, strict=True):
                splits["train"].append(_state(request, sentence, relation.topic, entity, value))
            splits["validation"].append(_complete(relation, entity, value))

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
