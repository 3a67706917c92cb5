"""Short answers: what is only written in another way, and what is another answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.job.evaluate.held_out.matching import last_number, same


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("42", "42"),
        (" 42.\n", "42"),
        ("$1,234.50", "1234.5"),
        ("1234", "1,234"),
        ("-3", "−3"),
        (".5", "0.50"),
        ("50 %", "50%"),
        ("paris", "Paris"),
        ('"Paris".', "Paris"),
        ("**Paris**", "paris"),
        ("New\n  York", "new york"),
        ("so 6 * 7 = 42\n#### 42", "40 + 2\n#### 42"),
        ("42", "40 + 2\n#### 42"),
        ("It is 42.", "It is 42"),
        ("42", "It is 42."),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "café"),
        ("\u0130stanbul", "istanbul"),
        ("「北京」。", "北京"),
        ("نعم؟", "نعم"),
        ("हाँ।", "हाँ"),
        ("«Да»…", "да"),
        ("１，２３４．５", "1234.5"),
        ("٤٢", "42"),
        ("٣٫٥", "3.5"),
        ("४२", "42"),
        ("\u200b42\ufeff", "42"),
        ("42", "答案是42。"),
    ],
)
def test_form_does_not_count(said, answer):
    assert same(said, answer)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("", "42"),
        ("420", "42"),
        ("4.2", "42"),
        ("-42", "42"),
        ("12,34", "1234"),
        ("007", "7"),
        ("C", "C++"),
        ("It is 43", "It is 42"),
        ("#### 42 #### 43", "#### 42"),
        ("42", "42 apples"),
        ("Paris, Rome", "Paris"),
        ("北京", "南京"),
        ("हा", "हाँ"),
        ("x²", "x2"),
        ("3,5", "3.5"),
    ],
)
def test_another_answer_is_wrong(said, answer):
    assert not same(said, answer)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,200.", "$1,200"),
        ("x = -5", "-5"),
        ("10-5", "5"),
        ("half (0.5)", "0.5"),
        ("75 %", "75"),
        ("#### 7\n", "7"),
        ("version v2.5", None),
        ("一共有 ４２ 。", "42"),
        ("答えは-5", "-5"),
        ("12,34", None),
        ("agent 007", None),
        ("42 apples", None),
        ("none", None),
    ],
)
def test_a_number_at_the_end(text, number):
    assert last_number(text) == number


@given(st.text(st.characters(categories=("L", "Nd")), min_size=1))
def test_quotes_stops_and_white_space_around_a_text_do_not_count(text):
    assert same(f' "{text}".\n', text)


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=3))
def test_a_number_is_the_same_in_every_form(value):
    assert same(f"${value:,}." if value >= 0 else f"{value:,}", f"{value:f}")
