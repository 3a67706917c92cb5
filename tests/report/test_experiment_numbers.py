"""The numbers in the figure of experiments: beside their points, in their colours, and free of each other."""

from __future__ import annotations

import math

from harness.config import ROOT
from harness.record import read_study
from harness.report.figures import FIGURES

PEFT = ROOT / "results" / "reference" / "peft_llama_3_2_3b"


def test_numbers_do_not_hide_each_other_and_have_the_colours_of_their_points():
    drawn = FIGURES["experiments"](read_study(PEFT)[0], PEFT)
    drawn.svg()  # lays it out
    (panel,) = drawn.figure.axes
    numbers = [text for text in panel.texts if text.get_text().isdigit()]
    assert len(numbers) > 5
    boxes = [text.get_window_extent() for text in numbers]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert len({text.get_color() for text in numbers}) >= min(8, len(numbers))
    for text, box in zip(numbers, boxes, strict=True):
        x, y = panel.transData.transform(text.xy)
        middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        assert math.dist((x, y), middle) < 26 / 72 * drawn.figure.dpi
