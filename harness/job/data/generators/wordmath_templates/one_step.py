"""Word problems of one step."""

from __future__ import annotations

from harness.job.data.generators.wordmath_templates.template import Template
from harness.job.data.generators.wordmath_templates.words import BOXES, FRUIT, GOODS, PLANTS, SINGLE, SMALL, TREATS

TEMPLATES = (
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
)
