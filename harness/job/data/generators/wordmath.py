"""Generated word problems in GSM8K's schema: a reasoning data set that needs no download.

`load()` returns splits of items `{"question": str, "answer": str}`. The answer is a worked solution, one short line
a step (`Mia pays 3 * 4 = 12 dollars.`), and a last line `#### N`, as in GSM8K but without calculator annotations. A
quarter of the items each takes one, two, three and four steps. The numbers are small (operands mostly up to 20,
results up to 200 after one step and up to 1000 later), so that a model of some hundred million parameters can learn
the task in minutes; the variety is in what has to be worked out.

An item's key is its template and its numbers. A hash of the key alone chooses the split: the same problem never
stands in two splits, whatever the names, the wording or the seed. So an item trained on under one seed is not a test
item under another.

Every number shown is at least 2, so that every noun beside a number is rightly a plural.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

SHARES = {"train": 0.80, "validation": 0.05, "test": 0.15}
"""How much of all keys belongs to each split."""

# fmt: off
NAMES = (
    "Ada", "Alan", "Amir", "Anna", "Ben", "Bella", "Carl", "Clara", "Dan", "Diego", "Elena", "Emma", "Eric", "Farah",
    "Felix", "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jack", "Jana", "Kai", "Kate", "Leo", "Lina", "Luca", "Maria",
    "Max", "Mei", "Mia", "Nina", "Noah", "Nora", "Omar", "Owen", "Paul", "Priya", "Rosa", "Ruth", "Sam", "Sara",
    "Tara", "Theo", "Tom", "Uma", "Vera", "Will", "Yara", "Zoe",
)
# fmt: on

SMALL = ("apples", "buttons", "cards", "coins", "marbles", "pebbles", "pencils", "shells", "stamps", "stickers")
GOODS = ("bowls", "candles", "cups", "mugs", "notebooks", "pens", "plates", "scarves", "socks", "towels")
TREATS = ("biscuits", "cookies", "muffins", "pancakes", "pies", "rolls", "tarts", "waffles")
FRUIT = ("lemons", "mangoes", "melons", "oranges", "peaches", "pears", "plums", "tomatoes")
SINGLE = ("a bag", "a book", "a clock", "a hat", "a kite", "a lamp", "a puzzle", "an apron", "an umbrella")
DEAR = ("a bike", "a camera", "a guitar", "a phone", "a radio", "a scooter", "a telescope", "an armchair")
BOXES = ("bags", "baskets", "boxes", "crates", "sacks", "trays")
PLANTS = ("beans", "cabbages", "carrots", "roses", "tulips", "vines")
SHOPS = ("A bakery", "A corner shop", "A farm shop", "A kiosk", "A market stall")
RIDES = ("A bus", "A ferry", "A train", "A tram")
JOBS = ("at a bakery", "at a cafe", "at a farm", "at a garage", "at a library", "in a garden", "in a shop")

_RESULT = re.compile(r"\[(\w)=(\w)([-+*/])(\w)\]")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.?] ))[a-z]")


def _apply(left: int, operator: str, right: int) -> int:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    return left // right  # exact: templates derive every dividend from its divisor and quotient


@dataclass(frozen=True)
class Template:
    """One kind of problem.

    `numbers` lists, in order, free numbers (`a=2..20`, `q=2|4|5`) and numbers derived from earlier ones (`t=a+b`).
    Deriving what a subtraction or a division starts from makes every choice of free numbers a valid problem, so the
    number of keys is a product and nothing has to be thrown away. `questions` are paraphrases, `lines` the worked
    steps; in a line `[x=a*b]` works out x and shows `3 * 4 = 12`. `words` gives the choices for other fields; `n`,
    `m` and `o` are three different people.
    """

    name: str
    numbers: str
    questions: tuple[str, ...]
    lines: tuple[str, ...]
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The number of worked steps."""
        return len(self.lines)

    @cached_property
    def free(self) -> dict[str, tuple[int, ...]]:
        """The values each free number may take."""
        found = {}
        for letter, rule in (part.split("=") for part in self.numbers.split()):
            if ".." in rule:
                low, high = map(int, rule.split(".."))
                found[letter] = tuple(range(low, high + 1))
            elif "|" in rule:
                found[letter] = tuple(map(int, rule.split("|")))
        return found

    @cached_property
    def derived(self) -> tuple[tuple[str, int | str, str, str], ...]:
        """Numbers worked out in turn from earlier ones: those of the question first, then each step's result."""
        rules = [part.split("=") for part in self.numbers.split()]
        given = [
            (letter, *re.fullmatch(r"(\w+)([-+*/])(\w)", rule).groups())
            for letter, rule in rules
            if letter not in self.free
        ]
        return tuple(given) + tuple(_RESULT.search(line).groups() for line in self.lines)

    @cached_property
    def _answer(self) -> str:
        shown = [_RESULT.sub(r"{\2} \3 {\4} = {\1}", line) for line in self.lines]
        last = _RESULT.search(self.lines[-1]).group(1)
        return "\n".join([*shown, f"#### {{{last}}}"])

    @property
    def size(self) -> int:
        """The number of distinct keys."""
        return prod(map(len, self.free.values()))

    def key(self, chosen: tuple[int, ...]) -> str:
        """What makes a problem the same problem: the template and its free numbers, in the order of `free`."""
        return f"{self.name}:{','.join(map(str, chosen))}"

    def values(self, chosen: tuple[int, ...]) -> dict[str, int]:
        """Every number of the problem by its letter, steps' results included."""
        known = dict(zip(self.free, chosen, strict=True))
        for letter, left, operator, right in self.derived:
            known[letter] = _apply(int(left) if left.isdigit() else known[left], operator, known[right])
        return known

    def render(self, chosen: tuple[int, ...], rng: random.Random) -> dict[str, str]:
        """One item: these numbers, in words that `rng` chooses."""
        fields = dict(zip("nmo", rng.sample(NAMES, 3), strict=True))
        fields |= {slot: rng.choice(choices) for slot, choices in self.words.items()}
        fields |= self.values(chosen)
        question = rng.choice(self.questions).format_map(fields)
        question = _SENTENCE_START.sub(lambda first: first.group().upper(), question)
        return {"question": question, "answer": self._answer.format_map(fields)}


TEMPLATES = (
    # One step.
    Template(
        "gift",
        "a=2..20 b=2..20",
        (
            "{n} has {a} {thing}. {m} gives {n} {b} more. How many {thing} does {n} have now?",
            "{m} gives {b} {thing} to {n}, who already had {a}. How many {thing} does {n} have now?",
            "{n} had {a} {thing} and got {b} more from {m}. How many {thing} is that in all?",
        ),
        ("{n} has [x=a+b] {thing}.",),
        {"thing": SMALL},
    ),
    Template(
        "given away",
        "b=2..20 c=2..20 t=b+c",
        (
            "{n} has {t} {thing} and gives {b} of them to {m}. How many {thing} are left?",
            "{n} gives {m} {b} {thing} out of {t}. How many {thing} does {n} keep?",
            "Of the {t} {thing} that {n} had, {b} are now with {m}. How many {thing} does {n} still have?",
        ),
        ("{n} has [x=t-b] {thing} left.",),
        {"thing": SMALL},
    ),
    Template(
        "full boxes",
        "a=2..20 b=2..10",
        (
            "There are {a} {box} with {b} {thing} in each. How many {thing} are there?",
            "{n} fills {a} {box}. Each holds {b} {thing}. How many {thing} does {n} need?",
            "{n} packs {b} {thing} into each of {a} {box}. How many {thing} are packed?",
        ),
        ("There are [x=a*b] {thing}.",),
        {"thing": FRUIT, "box": BOXES},
    ),
    Template(
        "equal shares",
        "k=2..12 q=2..20 t=k*q",
        (
            "{n} shares {t} {thing} equally among {k} friends. How many {thing} does each friend get?",
            "{k} children share {t} {thing} equally. How many {thing} does each child get?",
            "{t} {thing} are put on {k} plates, the same number on each. How many {thing} are on a plate?",
        ),
        ("Each gets [x=t/k] {thing}.",),
        {"thing": TREATS},
    ),
    Template(
        "price",
        "a=2..15 p=2..13",
        (
            "{n} buys {a} {thing} for {p} dollars each. How many dollars does {n} pay?",
            "One of the {thing} costs {p} dollars. How many dollars do {a} of them cost?",
            "At {p} dollars each, how many dollars does {n} pay for {a} {thing}?",
        ),
        ("The price is [x=a*p] dollars.",),
        {"thing": GOODS},
    ),
    Template(
        "difference",
        "b=2..20 c=2..20 t=b+c",
        (
            "{n} has {t} {thing} and {m} has {b}. How many more {thing} does {n} have than {m}?",
            "{m} has {b} {thing}. {n} has {t}. How many fewer {thing} does {m} have than {n}?",
            "{n} collected {t} {thing}, but {m} collected only {b}. By how many {thing} is {n} ahead?",
        ),
        ("The difference is [x=t-b] {thing}.",),
        {"thing": SMALL},
    ),
    Template(
        "more than",
        "a=2..20 b=2..20",
        (
            "{n} has {a} {thing}. {m} has {b} more than {n}. How many {thing} does {m} have?",
            "{m} has {b} more {thing} than {n}, who has {a}. How many {thing} does {m} have?",
            "{n} bakes {a} {thing}. {m} bakes {b} more than that. How many {thing} does {m} bake?",
        ),
        ("{m} has [x=a+b] {thing}.",),
        {"thing": TREATS},
    ),
    Template(
        "times as many",
        "a=2..20 k=2..10",
        (
            "{n} has {a} {thing}. {m} has {k} times as many. How many {thing} does {m} have?",
            "{m} has {k} times as many {thing} as {n}, who has {a}. How many {thing} does {m} have?",
            "{n} found {a} {thing} and {m} found {k} times that number. How many {thing} did {m} find?",
        ),
        ("{m} has [x=a*k] {thing}.",),
        {"thing": SMALL},
    ),
    Template(
        "change",
        "b=2..30 c=2..20 t=b+c",
        (
            "{n} has {t} dollars and buys {item} for {b} dollars. How many dollars are left?",
            "{n} pays {b} dollars for {item} out of {t} dollars. How many dollars does {n} have left?",
            "With {t} dollars, {n} goes to buy {item} that costs {b} dollars. How many dollars remain?",
        ),
        ("{n} has [x=t-b] dollars left.",),
        {"item": SINGLE},
    ),
    Template(
        "distance",
        "s=4..20 h=2..10",
        (
            "{n} cycles at {s} miles an hour for {h} hours. How many miles is that?",
            "For {h} hours {n} rides at {s} miles an hour. How many miles does {n} ride?",
            "{n} covers {s} miles every hour. How many miles does {n} cover in {h} hours?",
        ),
        ("{n} covers [x=s*h] miles.",),
    ),
    Template(
        "how many bags",
        "k=2..12 q=2..16 t=k*q",
        (
            "{n} puts {t} {thing} into bags of {k}. How many bags does {n} fill?",
            "A bag holds {k} {thing}. How many bags does {n} need for {t} {thing}?",
            "{t} {thing} are sold in bags of {k}. How many bags is that?",
        ),
        ("That is [x=t/k] bags.",),
        {"thing": FRUIT},
    ),
    Template(
        "percent of",
        "q=2|4|5|10 k=2..20 p=100/q t=k*q",
        (
            "{n} has {t} {thing}. {p} percent of them are blue. How many {thing} are blue?",
            "Of {t} {thing}, {p} percent are sold. How many {thing} are sold?",
            "{n} gives away {p} percent of {t} {thing}. How many {thing} does {n} give away?",
        ),
        ("{p} percent of {t} is [x=t/q] {thing}.",),
        {"thing": GOODS},
    ),
    Template(
        "minutes left",
        "b=5..40 c=5..25 t=b+c",
        (
            "A film lasts {t} minutes. {n} has watched {b} minutes. How many minutes are left?",
            "{n} is {b} minutes into a lesson of {t} minutes. How many minutes remain?",
            "{n} wants to run for {t} minutes and stops after {b}. How many minutes are missing?",
        ),
        ("[x=t-b] minutes are left.",),
    ),
    Template(
        "rows",
        "a=2..18 b=2..11",
        (
            "{n} plants {a} rows of {b} {plant}. How many {plant} does {n} plant?",
            "A garden has {a} rows with {b} {plant} in every row. How many {plant} are in the garden?",
            "In every row grow {b} {plant}, and there are {a} rows. How many {plant} grow there?",
        ),
        ("There are [x=a*b] {plant}.",),
        {"plant": PLANTS},
    ),
    Template(
        "age",
        "a=4..40 b=2..20",
        (
            "{n} is {a} years old. How old will {n} be in {b} years?",
            "{m} is {b} years older than {n}, who is {a}. How old is {m}?",
            "{n} turned {a} this year. What age will {n} reach {b} years from now?",
        ),
        ("The age is [x=a+b] years.",),
    ),
    Template(
        "cut",
        "k=2..12 q=2..15 t=k*q",
        (
            "{n} cuts a rope of {t} meters into {k} equal pieces. How many meters long is each piece?",
            "A ribbon is {t} meters long. {n} cuts it into {k} equal parts. How many meters is one part?",
            "{k} equal pieces make a pipe of {t} meters. How many meters long is one piece?",
        ),
        ("One piece is [x=t/k] meters long.",),
    ),
    # Two steps.
    Template(
        "boxes and loose",
        "a=2..12 b=2..12 c=2..20",
        (
            "{n} has {a} {box} with {b} {thing} each and {c} loose {thing}. How many {thing} does {n} have?",
            "Besides {c} loose {thing}, {n} has {a} {box} of {b}. How many {thing} are there in all?",
            "There are {b} {thing} in each of {a} {box}. {n} adds {c} more {thing}. How many {thing} is that?",
        ),
        ("The {box} hold [x=a*b] {thing}.", "In all there are [y=x+c] {thing}."),
        {"thing": FRUIT, "box": BOXES},
    ),
    Template(
        "price and change",
        "a=2..9 p=2..12 c=2..20 u=a*p w=u+c",
        (
            "{n} buys {a} {thing} for {p} dollars each and had {w} dollars. How many dollars are left?",
            "{n} has {w} dollars. {n} buys {a} {thing} at {p} dollars each. How many dollars does {n} keep?",
            "From {w} dollars {n} pays for {a} {thing}, each {p} dollars. How many dollars remain?",
        ),
        ("The {thing} cost [x=a*p] dollars.", "{n} has [y=w-x] dollars left."),
        {"thing": GOODS},
    ),
    Template(
        "two gifts",
        "b=2..20 c=2..20 r=2..20 u=b+c t=u+r",
        (
            "{n} has {t} {thing}, gives {b} to {m} and {c} to {o}. How many {thing} are left?",
            "{n} had {t} {thing}. First {b} went to {m}, then {c} to {o}. How many {thing} does {n} still have?",
            "After giving {m} {b} and {o} {c} of {t} {thing}, how many {thing} does {n} have?",
        ),
        ("After {m}, {n} has [x=t-b] {thing}.", "After {o}, {n} has [y=x-c] {thing}."),
        {"thing": SMALL},
    ),
    Template(
        "put together and share",
        "a=2..9 k=2..8 q=6..14 u=k*q b=u-a",
        (
            "{n} has {a} {thing} and {m} has {b}. They share all equally among {k} people. How many does each get?",
            "{n} brings {a} {thing}, {m} brings {b}. {k} people share them equally. How many {thing} does each get?",
            "{a} {thing} from {n} and {b} from {m} are split among {k} people. How many {thing} are there for each?",
        ),
        ("Together they have [x=a+b] {thing}.", "Each gets [y=x/k] {thing}."),
        {"thing": TREATS},
    ),
    Template(
        "wage less spending",
        "p=6..15 h=3..8 s=2..15",
        (
            "{n} works {h} hours {job} for {p} dollars an hour, then spends {s} dollars. How many dollars are left?",
            "For {p} dollars an hour {n} works {job} for {h} hours. {n} spends {s} dollars. How many dollars remain?",
            "{n} earns {p} dollars an hour {job}. After {h} hours {n} pays {s} dollars for lunch. "
            "How many dollars are left?",
        ),
        ("{n} earns [x=p*h] dollars.", "{n} has [y=x-s] dollars left."),
        {"job": JOBS},
    ),
    Template(
        "times together",
        "a=2..20 k=2..9",
        (
            "{n} has {a} {thing}. {m} has {k} times as many. How many {thing} do they have together?",
            "{m} has {k} times as many {thing} as {n}, who has {a}. How many {thing} do both have in all?",
            "{n} picks {a} {thing} and {m} picks {k} times that number. How many {thing} do they pick together?",
        ),
        ("{m} has [x=a*k] {thing}.", "Together they have [y=a+x] {thing}."),
        {"thing": FRUIT},
    ),
    Template(
        "more together",
        "a=2..20 b=2..20",
        (
            "{n} has {a} {thing}. {m} has {b} more than {n}. How many {thing} do they have together?",
            "{m} has {b} more {thing} than {n}, who has {a}. How many {thing} do both have in all?",
            "{n} owns {a} {thing} and {m} owns {b} more than that. How many {thing} do they own together?",
        ),
        ("{m} has [x=a+b] {thing}.", "Together they have [y=a+x] {thing}."),
        {"thing": SMALL},
    ),
    Template(
        "rows less some",
        "a=3..15 b=6..12 d=2..15",
        (
            "{n} plants {a} rows of {b} {plant}. {d} of them die. How many {plant} are left?",
            "Rabbits eat {d} of the {plant} in a garden of {a} rows with {b} in each. How many {plant} are left?",
            "A field has {a} rows of {b} {plant}. {n} pulls out {d}. How many {plant} remain?",
        ),
        ("There are [x=a*b] {plant}.", "[y=x-d] {plant} are left."),
        {"plant": PLANTS},
    ),
    Template(
        "share and add",
        "k=2..9 q=2..12 e=2..20 t=k*q",
        (
            "{k} friends share {t} {thing} equally. {n} is one of them and already had {e}. "
            "How many {thing} does {n} have now?",
            "{n} already has {e} {thing} and gets an equal share when {k} people split {t} {thing}. "
            "How many {thing} does {n} have?",
            "{t} {thing} are split equally among {k} people. {n} gets a share and had {e} before. "
            "How many {thing} does {n} have?",
        ),
        ("One share is [x=t/k] {thing}.", "{n} has [y=x+e] {thing}."),
        {"thing": SMALL},
    ),
    Template(
        "pages left",
        "p=2..15 d=2..9 r=2..30 u=p*d t=u+r",
        (
            "A book has {t} pages. {n} reads {p} pages a day for {d} days. How many pages are left?",
            "{n} reads {p} pages a day. After {d} days, how many pages of a book of {t} pages are left?",
            "For {d} days {n} reads {p} pages a day of a book with {t} pages. How many pages remain?",
        ),
        ("{n} reads [x=p*d] pages.", "[y=t-x] pages are left."),
    ),
    Template(
        "percent off",
        "q=2|4|5|10 k=2..20 p=100/q t=k*q",
        (
            "{item} costs {t} dollars. Now it is {p} percent off. What is the new price in dollars?",
            "The price of {item} was {t} dollars and falls by {p} percent. How many dollars is it now?",
            "{n} gets {p} percent off {item} that costs {t} dollars. How many dollars does {n} pay?",
        ),
        ("The discount is [x=t/q] dollars.", "The new price is [y=t-x] dollars."),
        {"item": SINGLE},
    ),
    Template(
        "packs to buy",
        "k=2..10 q=2..10 p=2..10 t=k*q",
        (
            "{n} needs {t} {thing}. They come in packs of {k} for {p} dollars a pack. How many dollars does {n} pay?",
            "A pack of {k} {thing} costs {p} dollars. How many dollars do {t} {thing} cost?",
            "{thing} are sold only in packs of {k}. At {p} dollars a pack, how many dollars do {t} {thing} cost?",
        ),
        ("That is [x=t/k] packs.", "The packs cost [y=x*p] dollars."),
        {"thing": GOODS},
    ),
    Template(
        "off and on",
        "b=2..20 c=2..20 r=2..20 t=b+r",
        (
            "{ride} has {t} people on board. {b} get off and {c} get on. How many people are on board now?",
            "{ride} leaves with {t} people. At a stop {c} people get on and {b} get off. How many are on board?",
            "{ride} carried {t} people until {b} left and {c} new ones came. How many people does it carry now?",
        ),
        ("[x=t-b] people stay.", "Now there are [y=x+c] people."),
        {"ride": RIDES},
    ),
    Template(
        "unit price",
        "k=2..10 p=2..12 c=2..12 t=k*p",
        (
            "{k} {thing} cost {t} dollars. How many dollars do {c} {thing} cost?",
            "A shop sells {k} {thing} for {t} dollars. At this price, how many dollars do {c} cost?",
            "{n} paid {t} dollars for {k} {thing}. How many dollars would {c} {thing} cost?",
        ),
        ("One costs [x=t/k] dollars.", "{c} {thing} cost [y=x*c] dollars."),
        {"thing": GOODS},
    ),
    # Three steps.
    Template(
        "two purchases",
        "a=2..10 p=2..10 b=2..10 q=2..10",
        (
            "{n} buys {a} {thing} for {p} dollars each and {b} {fruit} for {q} dollars each. "
            "How many dollars does {n} pay?",
            "{thing} cost {p} dollars each and {fruit} cost {q} dollars each. How many dollars do {a} {thing} and "
            "{b} {fruit} cost?",
            "How many dollars does {n} pay for {b} {fruit} at {q} dollars each and {a} {thing} at {p} dollars each?",
        ),
        (
            "The {thing} cost [x=a*p] dollars.",
            "The {fruit} cost [y=b*q] dollars.",
            "In all it is [z=x+y] dollars.",
        ),
        {"thing": GOODS, "fruit": FRUIT},
    ),
    Template(
        "purchase, item, change",
        "a=2..9 p=2..9 c=2..20 r=2..20 u=a*p v=u+c w=v+r",
        (
            "{n} buys {a} {thing} at {p} dollars each and {item} for {c} dollars. {n} had {w} dollars. "
            "How many dollars are left?",
            "With {w} dollars {n} buys {item} for {c} dollars and {a} {thing} at {p} dollars each. "
            "How many dollars remain?",
            "{n} has {w} dollars and pays {p} dollars each for {a} {thing}, and {c} dollars for {item}. "
            "How many dollars does {n} keep?",
        ),
        (
            "The {thing} cost [x=a*p] dollars.",
            "With {item} it is [y=x+c] dollars.",
            "{n} has [z=w-y] dollars left.",
        ),
        {"thing": GOODS, "item": SINGLE},
    ),
    Template(
        "stock",
        "a=2..10 b=6..12 c=2..20 d=2..12",
        (
            "{shop} gets {a} {box} of {b} {thing}. It already had {c} and sells {d}. How many {thing} are left?",
            "{shop} has {c} {thing}. It gets {a} {box} with {b} each, then sells {d} {thing}. How many {thing} remain?",
            "{shop} sells {d} {thing}. Before, it had {c} loose ones and {a} {box} of {b}. How many {thing} are left?",
        ),
        (
            "The {box} hold [x=a*b] {thing}.",
            "There were [y=x+c] {thing}.",
            "[z=y-d] {thing} are left.",
        ),
        {"shop": SHOPS, "thing": FRUIT, "box": BOXES},
    ),
    Template(
        "bake, eat, share",
        "a=6..10 b=5..9 k=2..5 q=2..5 u=a*b v=k*q c=u-v",
        (
            "{n} bakes {a} trays of {b} {thing}. {c} are eaten and {k} friends share the rest equally. "
            "How many {thing} does each friend get?",
            "From {a} trays with {b} {thing} each, {n} sells {c}. The rest is shared by {k} people. "
            "How many {thing} does each get?",
            "{n} bakes {b} {thing} on each of {a} trays, drops {c}, and splits the others among {k} plates. "
            "How many {thing} are on a plate?",
        ),
        (
            "There are [x=a*b] {thing}.",
            "[y=x-c] {thing} are left.",
            "Each gets [z=y/k] {thing}.",
        ),
        {"thing": TREATS},
    ),
    Template(
        "chain of two",
        "a=2..15 b=2..15 k=2..6",
        (
            "{n} has {a} {thing}. {m} has {b} more than {n}. {o} has {k} times as many as {m}. "
            "How many more {thing} does {o} have than {n}?",
            "{m} has {b} more {thing} than {n}, and {o} has {k} times as many as {m}. {n} has {a}. "
            "By how many {thing} is {o} ahead of {n}?",
            "{o} has {k} times as many {thing} as {m}, who has {b} more than {n}. If {n} has {a}, "
            "how many fewer does {n} have than {o}?",
        ),
        (
            "{m} has [x=a+b] {thing}.",
            "{o} has [y=x*k] {thing}.",
            "The difference is [z=y-a] {thing}.",
        ),
        {"thing": SMALL},
    ),
    Template(
        "two shifts",
        "a=2..8 b=2..8 p=6..15 s=2..20",
        (
            "{n} works {a} hours on Monday and {b} hours on Tuesday for {p} dollars an hour and spends {s} dollars. "
            "How many dollars are left?",
            "At {p} dollars an hour, {n} works {job} for {a} hours and then for {b} more. {n} spends {s} dollars. "
            "How many dollars remain?",
            "{n} gets {p} dollars an hour {job}. After {a} hours one day and {b} the next, {n} spends {s} dollars. "
            "How many dollars are left?",
        ),
        (
            "{n} works [x=a+b] hours.",
            "{n} earns [y=x*p] dollars.",
            "{n} has [z=y-s] dollars left.",
        ),
        {"job": JOBS},
    ),
    Template(
        "saving up",
        "s=2..15 w=2..10 h=2..20 r=2..30 u=s*w v=u+h g=v+r",
        (
            "{n} wants {item} for {g} dollars. {n} has {h} dollars and saves {s} dollars a week for {w} weeks. "
            "How many dollars are missing?",
            "{n} saves {s} dollars a week for {w} weeks and had {h} dollars before. {item} costs {g} dollars. "
            "How many more dollars does {n} need?",
            "{n} had {h} dollars, then saved {s} dollars in each of {w} weeks. How many dollars short is {n} of {g} "
            "dollars for {item}?",
        ),
        (
            "{n} saves [x=s*w] dollars.",
            "{n} has [y=x+h] dollars.",
            "{n} needs [z=g-y] dollars more.",
        ),
        {"item": DEAR},
    ),
    Template(
        "two gardens",
        "a=8..12 b=8..12 c=2..7 d=2..8",
        (
            "{n} has {a} rows of {b} {plant}. {m} has {c} rows of {d}. How many more {plant} does {n} have?",
            "{m} plants {c} rows of {d} {plant} and {n} plants {a} rows of {b}. How many more {plant} does {n} plant?",
            "There are {a} rows of {b} {plant} at the home of {n} and {c} rows of {d} at the home of {m}. "
            "How many fewer does {m} have?",
        ),
        (
            "{n} has [x=a*b] {plant}.",
            "{m} has [y=c*d] {plant}.",
            "The difference is [z=x-y] {plant}.",
        ),
        {"plant": PLANTS},
    ),
    Template(
        "tickets with discount",
        "a=2..10 u=2..8 q=2|4|5|10 s=100/q p=u*q",
        (
            "{n} buys {a} tickets at {p} dollars each and gets {s} percent off. How many dollars does {n} pay?",
            "A ticket costs {p} dollars. A group buys {a} and gets {s} percent off. How many dollars do they pay?",
            "With {s} percent off, how many dollars do {a} tickets cost that are {p} dollars each?",
        ),
        (
            "Without discount it is [x=a*p] dollars.",
            "The discount is [y=x/q] dollars.",
            "The price is [z=x-y] dollars.",
        ),
    ),
    Template(
        "two legs",
        "a=3..15 b=2..8 c=3..15 d=2..8",
        (
            "{n} rides at {a} miles an hour for {b} hours, then at {c} miles an hour for {d} hours. "
            "How many miles is that in all?",
            "On a trip {n} goes {a} miles an hour for {b} hours and {c} miles an hour for {d} hours. "
            "How many miles long is the trip?",
            "How many miles does {n} travel in {b} hours at {a} miles an hour and {d} hours at {c} miles an hour?",
        ),
        (
            "The first part is [x=a*b] miles.",
            "The second part is [y=c*d] miles.",
            "In all it is [z=x+y] miles.",
        ),
    ),
    Template(
        "eggs to buy",
        "c=5..9 k=4..6 u=2..6 v=2|3 s=c*k t=u*v h=s-t",
        (
            "{n} makes {c} cakes with {k} eggs each and has {h} eggs. Eggs come in packs of {u}. "
            "How many packs must {n} buy?",
            "A cake takes {k} eggs. {n} has {h} eggs and wants to make {c} cakes. "
            "How many packs of {u} eggs are missing?",
            "Eggs are sold in packs of {u}. {n} has {h} eggs but needs {k} for each of {c} cakes. "
            "How many packs must {n} buy?",
        ),
        (
            "The cakes take [x=c*k] eggs.",
            "[y=x-h] eggs are missing.",
            "{n} buys [z=y/u] packs.",
        ),
    ),
    Template(
        "groups and sheets",
        "a=2..10 k=2..5 q=6..9 r=2..12 u=k*q b=u-a",
        (
            "{a} boys and {b} girls form groups of {k}. Each group gets {r} sheets. How many sheets is that?",
            "A class of {a} boys and {b} girls works in groups of {k}, and every group needs {r} sheets. "
            "How many sheets are needed?",
            "{a} boys and {b} girls sit in groups of {k}. {n} hands {r} sheets to each group. "
            "How many sheets does {n} hand out?",
        ),
        (
            "There are [x=a+b] children.",
            "They form [y=x/k] groups.",
            "They need [z=y*r] sheets.",
        ),
    ),
    Template(
        "three stops",
        "a=2..20 b=2..20 c=2..20 e=21..30 t=a+e",
        (
            "{ride} has {t} people on board. {a} get off, {b} get on, then {c} get off. How many people are on board?",
            "{ride} starts with {t} people. First {a} leave, then {b} join, then {c} leave. How many people remain?",
            "Of {t} people on board, {a} get off. At the next stop {b} get on, and at the last {c} get off. "
            "How many people are left?",
        ),
        (
            "After the first stop there are [x=t-a] people.",
            "Then there are [y=x+b] people.",
            "At last there are [z=y-c] people.",
        ),
        {"ride": RIDES},
    ),
    # Four steps.
    Template(
        "two purchases, change",
        "a=2..9 p=2..9 b=2..9 q=2..9 r=2..20 s=a*p t=b*q u=s+t w=u+r",
        (
            "{n} has {w} dollars and buys {a} {thing} at {p} dollars each and {b} {fruit} at {q} dollars each. "
            "How many dollars are left?",
            "{n} buys {b} {fruit} for {q} dollars each and {a} {thing} for {p} dollars each out of {w} dollars. "
            "How many dollars remain?",
        ),
        (
            "The {thing} cost [x=a*p] dollars.",
            "The {fruit} cost [y=b*q] dollars.",
            "In all it is [z=x+y] dollars.",
            "{n} has [v=w-z] dollars left.",
        ),
        {"thing": GOODS, "fruit": FRUIT},
    ),
    Template(
        "chain of three",
        "a=2..15 b=2..15 k=2..6",
        (
            "{n} has {a} {thing}. {m} has {b} more than {n}. {o} has {k} times as many as {m}. "
            "How many {thing} do all three have together?",
            "{o} has {k} times as many {thing} as {m}, and {m} has {b} more than {n}. {n} has {a}. "
            "How many {thing} do the three have in all?",
        ),
        (
            "{m} has [x=a+b] {thing}.",
            "{o} has [y=x*k] {thing}.",
            "{n} and {m} have [z=a+x] {thing}.",
            "All three have [w=z+y] {thing}.",
        ),
        {"thing": SMALL},
    ),
    Template(
        "split the bill",
        "a=2..6 b=2..6 k=2..5 s=2..6 t=2..6 p=k*s q=k*t",
        (
            "{k} friends buy {a} pizzas at {p} dollars each and {b} salads at {q} dollars each and share the bill "
            "equally. How many dollars does each pay?",
            "A pizza costs {p} dollars and a salad {q}. {k} friends order {a} pizzas and {b} salads and split the "
            "bill equally. How many dollars does each pay?",
        ),
        (
            "The pizzas cost [x=a*p] dollars.",
            "The salads cost [y=b*q] dollars.",
            "The bill is [z=x+y] dollars.",
            "Each pays [w=z/k] dollars.",
        ),
    ),
    Template(
        "wage less lunch",
        "h=2..6 p=6..12 d=2..6 c=2..9",
        (
            "{n} works {h} hours a day for {p} dollars an hour and pays {c} dollars a day for lunch. "
            "How many dollars does {n} have after {d} days?",
            "For {d} days {n} works {h} hours a day {job} at {p} dollars an hour. Lunch costs {c} dollars a day. "
            "How many dollars does {n} keep?",
        ),
        (
            "{n} earns [x=h*p] dollars a day.",
            "In {d} days it is [y=x*d] dollars.",
            "Lunch costs [z=c*d] dollars.",
            "{n} has [w=y-z] dollars.",
        ),
        {"job": JOBS},
    ),
    Template(
        "egg sales",
        "a=2..6 k=2..4 u=2|3 d=2..5 p=2..5 b=k*u",
        (
            "{a} hens lay {b} eggs each a week. {n} collects for {d} weeks and sells them in boxes of {k} for {p} "
            "dollars a box. How many dollars does {n} get?",
            "{n} has {a} hens, and each lays {b} eggs a week. A box of {k} eggs sells for {p} dollars. "
            "How many dollars do the eggs of {d} weeks bring?",
        ),
        (
            "The hens lay [x=a*b] eggs a week.",
            "In {d} weeks it is [y=x*d] eggs.",
            "They fill [z=y/k] boxes.",
            "{n} gets [w=z*p] dollars.",
        ),
    ),
    Template(
        "rest of the book",
        "a=2..15 b=2..15 c=2..15 d=2..8 q=2..9 s=a+b u=s+c v=d*q t=u+v",
        (
            "{n} reads {a}, {b} and {c} pages on three days. The book has {t} pages. How many pages a day must {n} "
            "read to finish in {d} more days?",
            "A book has {t} pages. {n} has read {a} pages, then {b}, then {c}, and has {d} days for the rest. "
            "How many pages a day is that?",
        ),
        (
            "On two days it is [x=a+b] pages.",
            "On three days it is [y=x+c] pages.",
            "[z=t-y] pages are left.",
            "That is [w=z/d] pages a day.",
        ),
    ),
    Template(
        "bake sale",
        "a=6..10 b=5..9 k=2..5 q=2..5 p=2..9 u=a*b v=k*q e=u-v",
        (
            "{n} bakes {a} trays of {b} {thing}. {e} are eaten. The rest goes into bags of {k} sold for {p} dollars "
            "each. How many dollars does {n} get?",
            "{n} sells bags of {k} {thing} for {p} dollars. From {a} trays of {b}, friends ate {e} before. "
            "How many dollars do the bags bring?",
        ),
        (
            "There are [x=a*b] {thing}.",
            "[y=x-e] {thing} are left.",
            "They fill [z=y/k] bags.",
            "{n} gets [w=z*p] dollars.",
        ),
        {"thing": TREATS},
    ),
    Template(
        "way to go",
        "a=3..12 b=2..6 c=3..12 d=2..6 r=2..30 s=a*b t=c*d u=s+t w=u+r",
        (
            "A trip is {w} miles long. {n} rides {b} hours at {a} miles an hour and {d} hours at {c} miles an hour. "
            "How many miles are left?",
            "{n} goes {a} miles an hour for {b} hours, then {c} miles an hour for {d} hours. How many miles are left "
            "of {w} miles?",
        ),
        (
            "The first part is [x=a*b] miles.",
            "The second part is [y=c*d] miles.",
            "So far it is [z=x+y] miles.",
            "[v=w-z] miles are left.",
        ),
    ),
    Template(
        "times, then more",
        "a=2..12 k=2..6 b=2..20",
        (
            "{n} picks {a} {thing}. {m} picks {k} times as many as {n}. {o} picks {b} more than {m}. "
            "How many {thing} do they pick in all?",
            "{o} has {b} more {thing} than {m}, and {m} has {k} times as many as {n}, who has {a}. "
            "How many {thing} do the three have together?",
        ),
        (
            "{m} has [x=a*k] {thing}.",
            "{o} has [y=x+b] {thing}.",
            "{n} and {m} have [z=a+x] {thing}.",
            "All three have [w=z+y] {thing}.",
        ),
        {"thing": FRUIT},
    ),
    Template(
        "discount and delivery",
        "a=2..8 u=2..6 q=2|4|5|10 f=2..15 s=100/q p=u*q",
        (
            "{n} orders {a} {thing} at {p} dollars each, gets {s} percent off and pays {f} dollars for delivery. "
            "How many dollars is that in all?",
            "Delivery costs {f} dollars. {n} orders {a} {thing} for {p} dollars each with {s} percent off the {thing}. "
            "How many dollars does {n} pay?",
        ),
        (
            "The {thing} cost [x=a*p] dollars.",
            "The discount is [y=x/q] dollars.",
            "That makes [z=x-y] dollars.",
            "With delivery it is [w=z+f] dollars.",
        ),
        {"thing": GOODS},
    ),
    Template(
        "points",
        "a=3..12 k=4..6 b=2..10 l=2|3 c=2..10",
        (
            "A win gives {k} points and a draw {l}. {n} has {a} wins and {b} draws but loses {c} points for fouls. "
            "How many points does {n} have?",
            "{n} wins {a} games for {k} points each and draws {b} for {l} points each. {c} points are taken off. "
            "How many points are left?",
        ),
        (
            "The wins give [x=a*k] points.",
            "The draws give [y=b*l] points.",
            "In all it is [z=x+y] points.",
            "{n} has [w=z-c] points.",
        ),
    ),
    Template(
        "guests",
        "q=2|4|5|10 k=2..6 c=2..20 r=2..8 p=100/q t=k*q",
        (
            "{t} guests come to a party. {p} percent of them go home and {c} new guests come. Each guest then gets "
            "{r} {thing}. How many {thing} is that?",
            "Of {t} guests {p} percent leave. Then {c} more arrive, and {n} gives {r} {thing} to everyone there. "
            "How many {thing} does {n} give?",
        ),
        (
            "[x=t/q] guests leave.",
            "[y=t-x] guests stay.",
            "Then there are [z=y+c] guests.",
            "They get [w=z*r] {thing}.",
        ),
        {"thing": TREATS},
    ),
)

_BY_STEPS = {steps: tuple(t for t in TEMPLATES if t.steps == steps) for steps in (1, 2, 3, 4)}


def split_of(key: str) -> str:
    """The split a key belongs to, the same on every machine and for every seed."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if place < SHARES["test"]:
        return "test"
    return "validation" if place < SHARES["test"] + SHARES["validation"] else "train"


def capacity(split: str, max_steps: int = 4) -> int:
    """How many items `load` gives for a split at most.

    Each number of steps has an equal share of the items, so the scarcest, the one-step problems, sets the limit. Nine
    tenths of the split's expected share is promised: a hash shares out only nearly evenly, and drawing the very last
    keys by chance takes long.
    """
    groups = [_BY_STEPS[steps] for steps in range(1, max_steps + 1)]
    return max_steps * min(int(0.9 * SHARES[split] * sum(t.size for t in group)) for group in groups)


def _draw(split: str, count: int, seed: int, max_steps: int) -> list[dict[str, str]]:
    rng = random.Random(f"wordmath/{seed}/{split}")
    items: list[dict[str, str]] = []
    seen: set[str] = set()
    order: list[int] = []
    while len(items) < count:
        if not order:  # each block of `max_steps` has every number of steps once, so any first n items are balanced
            order = rng.sample(range(1, max_steps + 1), max_steps)
        template = rng.choice(_BY_STEPS[order[-1]])
        chosen = tuple(rng.choice(values) for values in template.free.values())
        key = template.key(chosen)
        if key in seen or split_of(key) != split:
            continue
        order.pop()
        seen.add(key)
        items.append(template.render(chosen, rng))
    return items


def load(
    seed: int = 0, train: int = 4000, validation: int = 200, test: int = 1000, max_steps: int = 4
) -> dict[str, list[dict[str, str]]]:
    """Return the splits `train`, `validation` and `test` as lists of `{"question": str, "answer": str}`.

    Problems take one to `max_steps` steps, each as often. Each split is drawn by itself: its first n items are the
    same whatever the sizes. Raises ValueError when more items are asked for than there are distinct problems, or
    problems of more than four steps.
    """
    if max_steps not in _BY_STEPS:
        raise ValueError(f"wordmath has problems of 1 to 4 steps, up to {max_steps} were asked for")
    sizes = {"train": train, "validation": validation, "test": test}
    for split, count in sizes.items():
        most = capacity(split, max_steps)
        if not 0 <= count <= most:
            raise ValueError(f"wordmath has up to {most} {split} items, {count} were asked for")
    return {split: _draw(split, count, seed, max_steps) for split, count in sizes.items()}
