"""What tells apart where a claim holds and where it fails."""

from __future__ import annotations

from harness.plugins.articles.apart import distinctions
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, Part


def part(decision, **settings):
    return Part(decision, {name: frozenset({str(value)}) for name, value in settings.items()})


def told(*parts):
    return [one.text for one in distinctions(parts)]


def test_a_setting_in_which_alone_two_parts_differ_is_told_with_its_values():
    assert told(part(REFUTED, batch_size=16, rank=8), part(SUPPORTED, batch_size=2, rank=8)) == [
        "batch size (supported at 2, refuted at 16)"
    ]


def test_what_is_told_already_explains_parts_that_differ_in_more():
    parts = [part(SUPPORTED, data="a", batch_size=2), part(REFUTED, data="a", batch_size=16)]
    assert len(told(*parts, part(REFUTED, data="b", batch_size=32))) == 1
    assert told(*parts, part(REFUTED, data="b", batch_size=2))[0] == "data (supported at a, refuted at b)"


def test_of_several_settings_it_is_one_and_lengths_only_where_nothing_else_differs():
    one, other = part(SUPPORTED, rank=4, batch_size=2), part(REFUTED, rank=8, batch_size=4)
    assert told(one, other) == ["batch size or rank"]
    assert told(part(SUPPORTED, data="a", rank=4, batch_size=2), part(REFUTED, data="b", rank=8, batch_size=4)) == [
        "data or batch size or more"
    ]
    assert told(part(SUPPORTED, max_steps=4, packing="on"), part(REFUTED, max_steps=8)) == [
        "packing (supported at on, refuted at off)"
    ]
    assert told(part(SUPPORTED, max_steps=4), part(REFUTED, max_steps=8)) == [
        "max steps (supported at 4, refuted at 8)"
    ]


def test_where_no_setting_differs_the_study_does():
    """Values in common and ranks of one side tell nothing."""
    both = Part(SUPPORTED, {"batch_size": frozenset({"2", "4"})})
    assert told(both, part(REFUTED, batch_size=4, rank=8)) == ["study"]


def test_parts_that_decide_nothing_or_agree_are_not_compared():
    assert told(part(SUPPORTED, rank=1), part(OPEN, rank=2), part(DEPENDS, rank=3), part(SUPPORTED, rank=4)) == []
