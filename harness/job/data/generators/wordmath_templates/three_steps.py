"""Word problems of three steps."""

from __future__ import annotations

from harness.job.data.generators.wordmath_templates.template import Template
from harness.job.data.generators.wordmath_templates.words import (
    BOXES,
    DEAR,
    FRUIT,
    GOODS,
    JOBS,
    PLANTS,
    RIDES,
    SHOPS,
    SINGLE,
    SMALL,
    TREATS,
)

TEMPLATES = (
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
)
