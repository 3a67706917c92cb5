"""Word problems of four steps."""

from __future__ import annotations

from harness.job.data.generators.wordmath_templates.template import Template
from harness.job.data.generators.wordmath_templates.words import FRUIT, GOODS, JOBS, SMALL, TREATS

TEMPLATES = (
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
