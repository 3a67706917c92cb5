"""What people read of a score is a name; what programs read is its key."""

from __future__ import annotations

import json

import pytest

from harness.__main__ import main
from harness.config import ROOT
from harness.record import read_study
from harness.score_names import score_label, task_label

RESULTS = ROOT / "results"
KEYS = ("held_out", "flexible-extract", "strict-match", "exact_match", "bits_per_byte", "/none")
REFERENCE = ["--results-dir", str(RESULTS / "reference")]


def test_names_say_what_is_scored():
    assert score_label("held_out", "solved", "flexible-extract") == "skill, solved"
    assert score_label("held_out (chat)", "acc", "none") == "held-out data (chat), accuracy"
    assert (task_label("wordmath_short"), task_label("gsm8k")) == ("one-step word problems", "gsm8k")


@pytest.mark.parametrize(
    "command",
    ["lint", "verify", "forgetting", "table", "table --format md", "table --columns all"],
)
@pytest.mark.parametrize("study", ["quickstart", "study_skill"])
def test_commands_say_names(command, study, capsys):
    name, *options = command.split()
    main([name, "--study", study, *options, *REFERENCE])
    text = capsys.readouterr().out
    text = text.replace("skill (held_out) on", "").replace("(wordmath_short) on", "")  # the caption says both, once
    assert not [key for key in KEYS if key in text]


def test_a_difference_has_names_and_its_json_keys(capsys):
    cells = [record.cell.name for record in read_study(RESULTS / "reference" / "quickstart")[0]][:2]
    main(["diff", *cells, "--study", "quickstart", *REFERENCE])
    text = capsys.readouterr().out
    assert "one-step word problems, exact match stderr" in text
    assert "flexible-extract" not in text
    main(["diff", *cells, "--study", "quickstart", "--format", "json", *REFERENCE])
    assert "wordmath_short/exact_match/flexible-extract" in json.loads(capsys.readouterr().out)["results"]


def test_a_caption_has_the_name_that_settings_take(capsys):
    main(["table", "--study", "quickstart", *REFERENCE])
    assert "Scores: one-step word problems (wordmath_short) on 320 items" in capsys.readouterr().out
