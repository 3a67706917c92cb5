"""Word problems of two steps."""

from __future__ import annotations

from harness.job.data.generators.wordmath_templates.template import Template
from harness.job.data.generators.wordmath_templates.words import (
    BOXES,
    FRUIT,
    GOODS,
    JOBS,
    PLANTS,
    RIDES,
    SINGLE,
    SMALL,
    TREATS,
)

TEMPLATES = (
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
)
