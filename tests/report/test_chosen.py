"""The cell that stands for a study is of the method that its answer puts first."""

from __future__ import annotations

from records import make_record
from test_answer import folder, trained  # noqa: F401
from test_best import leave

from harness.record import Saved
from harness.report.chosen import chosen


def test_it_is_of_the_first_method_and_its_best_seed(folder):  # noqa: F811
    records = trained(folder, {"base": 0.2, "lora": 0.61, "full": 0.4})
    for record in records:
        record.validation[-1].loss += 0.1 * (record.cell.seed != 1)
    (found,) = chosen(records, folder).values()
    assert (found.record.cell.method, found.record.cell.seed) == ("lora", 1)
    assert found.answer.startswith("At the one learning rate tried of each method, take lora lr=1e-4: at least ")


def test_a_seed_with_weights_stands_before_one_without(folder):  # noqa: F811
    records = trained(folder, {"lora": 0.61, "full": 0.4})
    kept = next(record for record in records if record.cell.method == "lora" and record.cell.seed == 2)
    kept.saved = Saved("adapter", {})
    (found,) = chosen(records, folder).values()
    assert found.record is kept


def test_each_place_has_its_own(folder):  # noqa: F811
    records = trained(folder, {"lora": 0.61, "full": 0.4}) + trained(folder, {"lora": 0.3, "full": 0.4}, model="other")
    methods = {model: found.record.cell.method for (_, model, _), found in chosen(records, folder).items()}
    assert methods == {"smollm2-135m": "lora", "other": "full"}


def test_without_scores_only_a_single_method_is_chosen():
    unscored = [make_record(method, lr=1e-4, scores=[]) for method in ("lora", "full")]
    assert chosen(unscored, None) == {}
    (found,) = chosen(unscored[:1], None).values()
    assert found.record is unscored[0]


def test_untuned_and_failed_cells_are_never_chosen(folder):  # noqa: F811
    base = leave(folder, make_record("base"), [1.0] * 20)
    assert chosen([base, make_record("lora", lr=1e-4, status="oom")], folder) == {}
