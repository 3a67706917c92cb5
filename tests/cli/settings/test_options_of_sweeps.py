"""Options of run, sweep, plan and calibrate."""

from __future__ import annotations

import pytest
from tested_settings import CELL, Line, lines

from harness.record import read_study

SHOWING = "--cfg job --resolve --package train"


def shown(command: str) -> list[str | Line]:
    """The lines by which a command shows its configuration."""
    return [
        Line(f"{command} rank=3 {SHOWING}", said="max_steps: 200"),
        Line(f"{command} rank=3 --cfg hydra", said=r"hydra: "),
        Line(f"{command} rank=3 --cfg all", said=r"hydra: .* rank: 3"),
        Line(f"{command} --info defaults", said="method/lora"),
        Line(f"{command} --hydra-help", said="Hydra"),
        Line(f"{command} --config-name quickstart --cfg job", said="study: quickstart"),
    ]


@pytest.mark.long
@lines(*shown("run"), *shown("sweep"), *shown("plan"), *shown("calibrate"))
def test_configurations_are_shown_and_nothing_is_run(run, tmp_path):
    run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@lines(
    Line("run model=theirs --config-dir {folder}/mine --cfg job", said="path: somewhere"),
    Line("sweep named --config-dir {folder}/mine --cfg job", said="study: named"),
    Line("plan named --config-dir {folder}/mine", said="lora-r3"),
    Line("calibrate named --config-dir {folder}/mine", said=r"lora-r3.* \(1 of 1\)"),
)
def test_another_folder_adds_choices_and_sweeps(run, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "theirs.yaml").write_text("name: theirs\npath: somewhere\n")
    (tmp_path / "mine" / "named.yaml").write_text(
        "defaults: [config, {override model: tiny}, {override data: facts}, _self_]\nstudy: named\nrank: 3\n"
        "hydra: {sweeper: {params: {seed: '1,2'}}}\n"
    )
    run()


@lines(
    f"sweep {CELL} study=fitted method=base,lora,galore_layer --fit --budget 8GB --device cpu --order grid --drift 1 "
    "--skip-impossible --confirm 1",
    Line(f"sweep {CELL} study=small method=lora --fit --budget 1MB --order random", said="1 unfit"),
)
@pytest.mark.long
def test_a_sweep_fits_repeats_and_confirms(run, tmp_path):
    first, small = run()
    assert "Left out: method=galore_layer can't" in first.stderr
    assert "Confirming: 1 fresh seed of" in first.stderr
    fitted, _ = read_study(tmp_path / "results" / "fitted")
    assert sum(record.confirmation for record in fitted) == 1
    assert any(record.repeats for record in fitted)
    assert "is skipped." in small.stderr


@pytest.mark.long
@lines(
    Line("plan model=tiny data=facts results_dir={folder}/damaged", 2, said="is no calibration; remove it"),
    Line("calibrate model=tiny data=facts results_dir={folder}/damaged", 2, said="is no calibration; remove it"),
    Line("calibrate model=tiny data=facts method=base", 2, said="requires methods that train here, got method=base"),
    Line("plan model=tiny data=facts --device rtx_9090", 2, said="rtx_9090"),
)
def test_a_damaged_calibration_is_named_before_anything_runs(run, tmp_path):
    (tmp_path / "damaged" / "calibration").mkdir(parents=True)
    (tmp_path / "damaged" / "calibration" / "cpu-x-1.jsonl").write_text("{}\n")
    run()


@pytest.mark.long
@lines(
    "calibrate model=tiny data=facts train.max_length=64 train.batch_size=2",
    Line("plan model=tiny data=facts train.max_length=64 train.max_steps=3", said="from kernels that were timed on"),
)
def test_a_calibration_gives_plan_its_times(run, tmp_path):
    run()
    assert [path.suffix for path in (tmp_path / "results" / "calibration").iterdir()] == [".jsonl"]


GRID = "plan model=llama_3_2_1b method=full,lora data=facts eval.tasks=[] train.max_steps=5"


@lines(
    Line(f"{GRID} --budget 24GiB --device cuda --throughput 1000 --price 2", said=r"\$"),
    Line(f"{GRID} --device rtx_4090 --advise", said="Fastest that fits"),
)
@pytest.mark.long
def test_a_grid_is_planned_for_another_card(run):
    run()


@pytest.mark.parametrize("command", ["run", "sweep", "plan"])
def test_help_is_shown(inside, command):
    assert "settings (KEY=VALUE):" in inside(command, "--help").stdout
