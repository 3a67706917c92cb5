"""Options: which of them an answer means, and what is refused."""

from __future__ import annotations

import json

import pytest

from harness.errors import UserError
from harness.job.data import columns, options

CITIES = ["Paris", "Rome", "Oslo"]


@pytest.mark.parametrize(
    "answers",
    [
        ["Rome", "Paris", "Oslo"],
        ["B", "A", "C"],
        ["(b)", "a.", "C)"],
        ["1", "0", "2"],
        ["2", "1", "3"],
    ],
)
def test_an_answer_is_the_text_the_letter_or_the_number_of_an_option(answers):
    assert options.meant([(answer, CITIES) for answer in answers], "x") == ["Rome", "Paris", "Oslo"]


def test_options_that_are_letters_or_numbers_are_texts_where_both_agree():
    assert options.meant([("B", ["A", "B"]), ("A", ["A", "B"])], "x") == ["B", "A"]
    assert options.meant([("0", ["0", "1"])], "x") == ["0"]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([("1", CITIES), ("2", CITIES)], "numbers from 0 and as numbers from 1"),  # neither 0 nor 3
        ([("A", ["B", "A"])], "texts and as letters"),
        ([("2", ["1", "2", "3"]), ("1", ["1", "2", "3"])], "texts and as numbers from 0"),
    ],
)
def test_answers_that_can_be_read_in_two_ways_are_refused(records, said):
    with pytest.raises(UserError, match=f"The answers of x can be read as {said}, which mean different options"):
        options.meant(records, "x")


def test_an_answer_that_is_no_option_is_refused():
    with pytest.raises(UserError, match=r'letter or the number of an option, got "Bern" for the options \["Paris"'):
        options.meant([("Rome", CITIES), ("Bern", CITIES)], "x")
    with pytest.raises(UserError, match='got "D" for'):
        options.meant([("A", CITIES), ("D", CITIES)], "x")


def test_options_are_a_list_or_a_json_list():
    assert options.listed(CITIES, "x") == options.listed(json.dumps(CITIES), "x") == CITIES
    assert options.listed([1, 2.5], "x") == ["1", "2.5"]


@pytest.mark.parametrize(
    "value", [None, "", "Paris, Rome", ["Paris"], ["Paris", "Paris "], ["", "Rome"], {"a": 1}, [[1]]]
)
def test_other_options_are_refused(value):
    with pytest.raises(UserError, match="The options of x must be lists, or JSON lists, of two or more"):
        options.listed(value, "x")


ROW = {"ask": "Capital of Italy?", "from": CITIES, "key": "B"}
COLUMNS = {"question": "ask", "options": "from", "answer": "key"}


def test_a_record_is_answered_by_its_options_text_and_shows_its_options_where_the_prompt_asks():
    ((_, item),) = columns.mapped([ROW], list(ROW), COLUMNS, None, "x")
    assert item == {"question": "Capital of Italy?", "options": CITIES, "answer": "Rome"}
    assert columns.asked(item, "{question}\n{options}\nA:") == "Capital of Italy?\nA. Paris\nB. Rome\nC. Oslo\nA:"


def test_options_without_an_answer_are_left_out_or_refused(capsys):
    columns.mapped([ROW, ROW | {"key": None, "from": None}], list(ROW), COLUMNS, None, "x")
    assert "1 of 2 records of x are left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data\.columns\.answer must be a column of x, got null"):
        columns.mapped([ROW], list(ROW), {"question": "ask", "options": "from"}, None, "x")
    with pytest.raises(UserError, match=r"data\.columns\.options can't be combined with data\.columns\.messages"):
        columns.mapped([ROW], list(ROW), {"messages": "ask", "options": "from"}, None, "x")
