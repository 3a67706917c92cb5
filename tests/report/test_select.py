"""Which setting of each method is chosen: by validation loss alone, over all seeds, with what was lost counted."""

from __future__ import annotations

import random

import pytest
from records import make_record, make_score

from harness.record import ValidationPoint
from harness.report.select import select
from harness.report.tables.best import best, tables


def tried(method, lr, losses, rank=None, alpha=None, accuracy=0.2, **fields):
    """Records of one setting, one a seed; a loss that is a status is a cell that came to that."""
    records = []
    for seed, loss in enumerate(losses):
        status = loss if isinstance(loss, str) else "ok"
        record = make_record(method, rank, alpha, lr, seed, status=status, scores=[make_score(accuracy)], **fields)
        if status == "ok":
            record.validation = [] if loss is None else [ValidationPoint(50, 20_000, loss)]
        records.append(record)
    return records


def chosen(records, **options):
    return {choice.label: choice for choice in select(records, **options)}


def study():
    """LoRA over two ranks and three rates, DoRA over three rates; 2 seeds."""
    losses = {(8, 1e-4): (1.3, 1.5), (8, 2e-4): (1.1, 1.3), (8, 4e-4): (1.2, "diverged")}
    losses |= {(16, 1e-4): (1.2, 1.6), (16, 2e-4): (1.15, 1.2), (16, 4e-4): (1.0, 1.4)}
    records = [r for (rank, lr), loss in losses.items() for r in tried("lora", lr, loss, rank, 2.0 * rank)]
    for lr, loss in ((1e-4, (1.5, 1.5)), (2e-4, (1.4, 1.4)), (4e-4, (1.3, 1.3))):
        records += tried("dora", lr, loss, 16, 32.0)
    return [*records, make_record("base")]


def test_the_least_mean_loss_over_seeds_is_chosen():
    found = chosen(study())
    lora = found["lora"]
    assert lora.setting == "r=16 α=32 lr=2e-4"
    assert (lora.rank, lora.alpha, lora.lr) == (16, 32.0, 2e-4)
    assert lora.loss == pytest.approx(1.175)  # 1.2 of rank 16 at 4e-4, 1.2 of rank 8 at 2e-4
    assert lora.index == (8, 9)
    assert lora.tries == 6
    assert lora.lost == {"diverged": 1}
    assert lora.place == ("demo", "smollm2-135m", "gsm8k")
    assert found["dora"].lr == 4e-4


def test_the_best_rate_of_each_rank_comes_before_the_best_rank():
    ranks = chosen([record for record in study() if record.cell.method == "lora"], by=("method", "rank"))
    assert {name: choice.lr for name, choice in ranks.items()} == {"lora 8": 2e-4, "lora 16": 2e-4}
    assert ranks["lora 8"].tries == 3
    assert min(ranks.values(), key=lambda choice: choice.loss).setting == chosen(study())["lora"].setting


def test_a_choice_at_the_end_of_its_grid_is_told():
    found = chosen(study())
    assert found["lora"].edges == ("rank=16 is the highest of 2 tried",)
    assert found["dora"].edges == ("lr=0.0004 is the highest of 3 tried",)
    assert found["base"].edges == ()


def test_beyond_the_highest_rate_that_finished_may_lie_one_that_diverged():
    records = [*tried("full", 1e-5, (1.2,)), *tried("full", 1e-4, (1.0,)), *tried("full", 1e-3, ("diverged",))]
    assert chosen(records)["full"].edges == ()


def test_a_random_search_has_the_ends_of_all_its_tries():
    drawn = [(8, 1e-4, 1.3), (16, 2e-4, 1.2), (32, 3e-4, 1.1)]
    records = [r for rank, lr, loss in drawn for r in tried("lora", lr, (loss,), rank, 2.0 * rank)]
    assert chosen(records)["lora"].edges == (
        "lr=0.0003 is the highest of 3 tried",
        "rank=32 is the highest of 3 tried",
    )


def test_test_scores_take_no_part():
    records = study()
    before, shown = select(records), best(records, None)
    setting = shown.columns.index("Setting")
    for seed in range(5):
        scores = [record.scores for record in records]
        random.Random(seed).shuffle(scores)
        for record, permuted in zip(records, scores, strict=True):
            record.scores = permuted if record.status == "ok" else []
        for record in records:
            for score in record.scores:
                score.value = random.Random(f"{seed} {record.cell.name}").random()
        assert select(records) == before
        assert [row[setting] for row in best(records, None).rows] == [row[setting] for row in shown.rows]


def test_a_setting_that_lacks_a_seed_is_not_chosen():
    records = [*tried("lora", 1e-4, (1.5, 1.5, 1.5)), *tried("lora", 2e-4, (1.0,))]
    lora = chosen(records)["lora"]
    assert (lora.lr, lora.tries, lora.lost) == (1e-4, 2, {"with fewer seeds": 1})


def test_more_seeds_do_not_disqualify_a_better_setting():
    records = [*tried("lora", 1e-4, (1.0, 1.0, 1.0)), *tried("lora", 2e-4, (1.5,) * 5)]
    lora = chosen(records)["lora"]
    assert (lora.lr, lora.lost) == (1e-4, {})
    records = [*tried("lora", 1e-4, (1.2, 1.2, 1.2)), *tried("lora", 2e-4, (1.3, 1.3, 1.3, 0.1, 0.1))]
    assert chosen(records)["lora"].lr == 1e-4, "the seeds that both have are compared"


def test_equal_losses_take_the_lower_rank_and_rate():
    records = [r for rank in (16, 8) for lr in (2e-4, 1e-4) for r in tried("lora", lr, (1.0,), rank, 2.0 * rank)]
    assert chosen(records)["lora"].setting == "r=8 α=16 lr=1e-4"


def test_without_validation_one_setting_is_chosen_and_of_several_none():
    (alone,) = select(tried("lora", 1e-4, (None,)))
    assert (alone.setting, alone.loss, alone.reason) == ("lr=1e-4", None, None)
    (choice,) = select([*tried("lora", 1e-4, (1.0,)), *tried("lora", 2e-4, (None,))])
    assert (choice.setting, choice.index, choice.tries) == (None, (), 2)
    assert choice.reason == "choosing a setting requires validation losses"


def test_when_all_failed_none_is_chosen():
    (choice,) = select([*tried("lora", 1e-4, ("oom",)), *tried("lora", 2e-4, ("diverged",))])
    assert choice.lost == {"oom": 1, "diverged": 1}
    assert choice.reason == "no setting finished with every seed"


def test_what_never_ran_did_not_fail_to_finish():
    (choice,) = select([*tried("lora", 1e-4, ("unfit", "unfit")), *tried("lora", 2e-4, ("unfit",))])
    assert (choice.reason, choice.lost) == ("no cell has run", {"unfit": 2})
    (choice,) = select([*tried("lora", 1e-4, ("unfit", "failed")), *tried("lora", 2e-4, ("unfit",))])
    assert choice.reason.startswith("no setting finished")


def test_places_are_chosen_for_apart():
    records = [*tried("lora", 1e-4, (1.0,), model="a"), *tried("lora", 2e-4, (2.0,), model="a")]
    records += [*tried("lora", 1e-4, (2.0,), model="b"), *tried("lora", 2e-4, (1.0,), model="b")]
    assert [(choice.place[1], choice.lr) for choice in select(records)] == [("a", 1e-4), ("b", 2e-4)]


def test_no_records_have_no_choice():
    assert select([]) == []


def confirming(lr, losses, first=10):
    records = tried("lora", lr, [0.0] * first + list(losses), accuracy=0.1)[first:]
    for record in records:
        record.confirmation = True
    return records


def test_fresh_seeds_stand_for_the_setting_that_they_confirm():
    records = [*tried("lora", 1e-4, (1.0, 1.1)), *tried("lora", 2e-4, (1.2, 1.3))]
    assert not chosen(records)["lora"].confirmed
    records += confirming(1e-4, (1.4, 1.5, "diverged"))
    lora = chosen(records)["lora"]
    assert (lora.lr, lora.index, lora.confirmed) == (1e-4, (4, 5), True)
    assert lora.loss == pytest.approx(1.45)
    assert (lora.tries, lora.lost) == (2, {}), "a fresh seed is no try"
    assert lora.unfinished == {"diverged": 1}
    assert best(records, None).answer[-1].endswith(" Of lora's 3 fresh seeds, 1 diverged.")


def test_where_no_fresh_seed_finished_the_answer_says_which_seeds_stand_for_the_method():
    records = [*tried("lora", 1e-4, (1.0, 1.1)), *tried("lora", 2e-4, (1.2, 1.3)), *tried("full", 1e-5, (1.2, 1.2))]
    records += confirming(1e-4, ("diverged", "oom"))
    lora = chosen(records)["lora"]
    assert (lora.lr, lora.index, lora.confirmed) == (1e-4, (0, 1), False)
    said = "f lora's 2 fresh seeds, 1 diverged, 1 oom, so the seeds that chose its setting stand for it"
    assert any(said in sentence for sentence in best(records, None).answer)


@pytest.mark.parametrize("status", ["diverged", "oom", "failed"])
def test_a_fresh_seed_that_did_not_finish_is_counted_beside_the_others(status):
    records = [*tried("lora", 1e-4, (1.0, 1.1), accuracy=0.9), *tried("full", 1e-5, (1.2, 1.3), accuracy=0.2)]
    records += confirming(1e-4, (status, 1.5, 1.6))
    shown = best(records, None)
    seeds = {row[shown.columns.index("Method")]: row[shown.columns.index("Seeds")] for row in shown.rows}
    assert seeds == {"lora": f"2 (1 {status})", "full": "2"}


def test_fresh_seeds_take_no_part_in_the_choice():
    records = [*tried("lora", 1e-4, (1.0, 1.1)), *tried("lora", 2e-4, (1.2, 1.3)), *confirming(2e-4, (0.1, 0.1, 0.1))]
    lora = chosen(records)["lora"]
    assert (lora.lr, lora.index, lora.confirmed) == (1e-4, (0, 1), False)


def test_the_table_shows_fresh_seeds_alone_and_says_so():
    records = [*tried("lora", 1e-4, (1.0, 1.1), accuracy=0.9), *tried("lora", 2e-4, (1.2, 1.3), accuracy=0.8)]
    told = "\n".join(best(records, None).caption)
    assert "looks better than it is" in told
    records += confirming(1e-4, (1.4, 1.5, 1.6))
    shown, every = tables(records, None)
    (line,) = shown.rows
    cells = dict(zip(shown.columns, line, strict=True))
    assert (cells["Tries"], cells["Seeds"]) == ("2", "3")
    assert cells["Validation loss"].startswith("1.500 (")
    assert cells["gsm8k, exact match, strict format (%)"].startswith("10.0 (")
    told = "\n".join(shown.caption)
    assert "Fresh seeds, which took no part in the choice, stand for lora" in told
    assert "looks better than it is" not in told
    settings = [row[every.columns.index("Setting")] for row in every.rows]
    assert settings == ["lr=1e-4", "lr=1e-4 (fresh seeds) *", "lr=2e-4"]


def test_settings_whose_loss_is_surely_higher_are_no_rivals_of_the_chosen_one():
    near = {1e-4: (1.0, 1.1, 1.2), 2e-4: (1.01, 1.08, 1.22), 4e-4: (1.02, 1.13, 1.19), 1e-2: (5.0, 5.1, 5.2)}
    records = [r for lr, losses in near.items() for r in tried("lora", lr, losses)]
    assert chosen(records)["lora"].rivals == 3
    assert chosen([record for record in records if record.cell.seed == 0])["lora"].rivals == 4, "one seed can't tell"
    assert chosen(tried("lora", 1e-4, (1.0, 1.1)))["lora"].rivals == 1
    fresh = make_record("lora", None, None, 1e-4, 7, scores=[make_score(0.2)])
    fresh.confirmation = True
    assert chosen([*records, fresh])["lora"].rivals == 1


def test_a_setting_that_was_evaluated_in_two_ways_is_one_try():
    """As the linter counts them."""
    ways = [{}, {"eval": {"limit": 9}}, {"infer": {"repeats": 9}}]
    records = [make_record("lora", 16, 32.0, lr, settings=way) for lr in (1e-4, 2e-4) for way in ways]
    (lora,) = select(records)
    assert (lora.tries, lora.lost) == (2, {})
    records[0].status = "failed"
    (lora,) = select(records)
    assert (lora.tries, lora.lost) == (2, {}), "it finished with another evaluation"
    for record in records[:3]:
        record.status = "failed"
    (lora,) = select(records)
    assert (lora.tries, lora.lost) == (2, {"failed": 1})
