"""facts.yaml is checked when loaded: what is wrong is one sentence with the file and the relation."""

from __future__ import annotations

import re

import pytest

from harness.errors import UserError
from harness.job.data.generators import fact_wordings


@pytest.mark.parametrize(
    ("text", "other", "message"),
    [
        ("The capital of {e} is {v}.", "The capital of {e} is X.", "relation capital: a wording must have {e} and {v}"),
        ("From which town is {e} governed?", "From which town is {v} governed?", "relation capital: a wording must"),
        ("From which town is {e} governed?", "From which town is {e governed?", "relation capital: a wording must"),
        ("{v} founded {e}.", "By {v}, {e} was founded.", "relation founder: train must have six sentences, of which"),
        (
            "    topic: the capital\n",
            "",
            "relation capital: keys must be name, topic, ask, train, validation, test, got",
        ),
        ("topic: the capital\n", "topic: no\n", "relation capital: topic must be a text, got False."),
        ("name: capital", "name: mayor", "relations must be capital, founder, "),
        (
            "Describe {topic} of {e}.",
            "Describe {e}.",
            "a wording must have {topic} and {e} once and no other field, got",
        ),
        ('  - "Describe {topic} of {e}."\n', "", "requests must be five, got 4."),
        ("middles: [a, e, i, o, u]", "middles: []", "middles must be a list of texts, got []."),
        ("  bird:\n", "  fish:\n", "keys must be export, bird, festival, dish, got export, fish, festival, dish."),
        ("    - [banded, ", "    - [eggs]\n    - [banded, ", "bird must be two lists of words, got "),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, other, message):
    stock = fact_wordings.FILE.read_text(encoding="utf-8")
    assert stock.count(text) == 1
    (tmp_path / "facts.yaml").write_text(stock.replace(text, other))
    with pytest.raises(UserError, match=rf"^facts\.yaml: {re.escape(message)}"):
        fact_wordings.wordings(tmp_path / "facts.yaml")


@pytest.mark.parametrize("content", ["", "- capital\n", "starts: [Bral\n"])
def test_a_file_of_another_form_is_refused(tmp_path, content):
    (tmp_path / "facts.yaml").write_text(content)
    with pytest.raises(UserError, match=r"^facts\.yaml(: keys must be starts, |, line 2, is not valid YAML: )"):
        fact_wordings.wordings(tmp_path / "facts.yaml")
