"""Every notebook runs from top to bottom, on the study it is committed with and on another one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from plugin_list import some_needs_a_plugin
from records import make_record, make_score, measured, sound

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STUDY = re.compile(r'STUDY = "reference/(\w+)"')


def opened(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(notebook, path):
    with some_needs_a_plugin():
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": path.parent}}).execute()


def kinds(notebook):
    return [[output["output_type"] for output in cell.outputs] for cell in code(notebook)]


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


def texts(notebook):
    """What its outputs say: printed text, tables and Markdown."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    data = [output.get("data", {}) for output in outputs]
    return [
        output.get("text") or of.get("text/markdown") or of.get("text/html", "")
        for output, of in zip(outputs, data, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_is_committed_with_what_it_shows(path):
    """`make publish` runs them anew."""
    notebook = opened(path)
    committed, drawn, said = kinds(notebook), pictures(notebook), texts(notebook)
    run(notebook, path)
    assert kinds(notebook) == committed
    assert texts(notebook) == said
    assert pictures(notebook) == drawn > 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("study", ["reference/quickstart", "reference/gsm8k"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_another_study_takes_one_other_name(path, study):
    notebook = opened(path)
    first, *others = code(notebook)
    (name,) = STUDY.findall(first.source)
    assert not [cell for cell in others if name in cell.source or "wordmath" in cell.source]
    first.source = STUDY.sub(f'STUDY = "{study}"', first.source)
    run(notebook, path)
    assert pictures(notebook) > 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("study", ["reference/memory", "reference/peft_llama_3_2_3b"])
def test_a_study_without_questions_is_told_so(study):
    path = NOTEBOOKS[2]
    notebook = opened(path)
    first = code(notebook)[0]
    first.source = STUDY.sub(f'STUDY = "{study}"', first.source)
    run(notebook, path)
    said = texts(notebook)
    assert said.count(f"`{study}` has no questions that two methods answered.") == 3
    assert f"`{study}` has no right or wrong answers of an untuned and a tuned model." in said
    assert "`harness power` without a study goes by assumptions." in said[-1]


def opened_on(path, folder):
    """The notebook at `path` for the study in `folder`."""
    notebook = opened(path)
    first = code(notebook)[0]
    first.source = STUDY.sub(f'STUDY = "{os.path.relpath(folder, ROOT / "results")}"', first.source)
    return notebook


def small_study(folder, *, models=("small",), **fields):
    """Three methods of each model with 4 answers each: all right, half of them, and one."""
    for model in models:
        for method, values in {"lora": (1, 1, 1, 1), "dora": (1, 1, 0, 0), "galore": (0, 0, 0, 1)}.items():
            turned = values if model == models[0] else values[::-1]
            record = measured(make_record(method, 8, lr=1e-3, model=model, scores=[make_score(**fields)]))
            sound(record, folder, tuple(map(float, turned)))
    return folder


@pytest.mark.long
@pytest.mark.slow
def test_two_models_have_rows_of_their_own(tmp_path):
    folder = small_study(tmp_path / "demo", models=("small", "large"))
    for path in (NOTEBOOKS[0], NOTEBOOKS[2]):
        notebook = opened_on(path, folder)
        run(notebook, path)
        tables = [text for text in texts(notebook) if "dataframe" in text]
        assert len(tables) > 1
        assert all("<th>model</th>" in table for table in tables if "galore" in table)
    said = texts(notebook)
    assert {"small", "large"} <= {*said}
    assert sum("<th>wrong</th>" in text for text in said) == 2


@pytest.mark.long
@pytest.mark.slow
def test_the_best_score_is_first_also_where_lower_is_better(tmp_path):
    folder = small_study(tmp_path / "demo", higher_is_better=False)
    notebook = opened_on(NOTEBOOKS[0], folder)
    run(notebook, NOTEBOOKS[0])
    by_score = [text for text in texts(notebook) if "dataframe" in text][1]
    assert re.findall("lora|dora|galore", by_score) == ["galore", "dora", "lora"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("status", "sentences"), [("ok", 2), ("failed", 5)])
def test_a_study_without_scores_or_finished_cells_is_told_so(tmp_path, status, sentences):
    for method in ("lora", "dora"):
        record = make_record(method, 8, lr=1e-3, status=status, scores=[])
        sound(measured(record) if status == "ok" else record, tmp_path / "demo")
    notebook = opened_on(NOTEBOOKS[0], tmp_path / "demo")
    run(notebook, NOTEBOOKS[0])
    assert sum(" has no " in text for text in texts(notebook)[1:]) == sentences


@pytest.mark.slow
def test_an_empty_folder_is_one_sentence_and_no_traceback(tmp_path):
    notebook = opened_on(NOTEBOOKS[0], tmp_path)
    with pytest.raises(CellExecutionError):
        run(notebook, NOTEBOOKS[0])
    (error,) = code(notebook)[0].outputs
    (sentence,) = error.traceback
    assert re.fullmatch(r"There are no records in \S+; run a sweep first\.", sentence)


def test_there_are_notebooks():
    named = ["01_choose_a_method", "02_rank_alpha_lr", "03_is_the_difference_real"]
    assert [path.stem for path in NOTEBOOKS] == named


COLAB = NOTEBOOKS[0].parent / "colab" / "first_sweep.ipynb"


@pytest.mark.slow
@pytest.mark.long
def test_the_notebook_for_a_gpu_runs_with_a_tiny_model(tmp_path):
    notebook = opened(COLAB)
    install, *rest = code(notebook)
    assert '%pip install --quiet "finetune-harness @ git+{REPOSITORY}"' in install.source
    notebook.cells.remove(install)
    sizes = {
        'MODEL, DATA, METHODS = "qwen3_0_6b", "gsm8k", ["lora", "qlora", "dora", "galore"]': (
            'MODEL, DATA, METHODS = "tiny", "facts", ["lora"]'
        ),
        "BATCH, STEPS, ITEMS = 4, 200, 200": "BATCH, STEPS, ITEMS = 2, 1, 4",
    }
    assert all(large in rest[0].source for large in sizes)
    for cell in rest:
        for large, small in sizes.items():
            cell.source = cell.source.replace(large, small)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert len(list((tmp_path / "results" / "first").glob("*.json"))) == 2
    assert pictures(notebook) == 2
    assert "lora" in " ".join(texts(notebook))


@pytest.mark.slow
@pytest.mark.long
def test_the_notebook_for_a_gpu_installs_the_package_of_a_repository(tmp_path):
    """By the line that it has, of this checkout; without what the package requires."""
    root = NOTEBOOKS[0].parents[1]
    (requirement,) = re.findall(r'"(finetune-harness @ [^"]+)"', code(opened(COLAB))[0].source)
    alone = ["--no-deps", "--no-build-isolation", "--target", str(tmp_path)]
    where = requirement.format(REPOSITORY=f"file://localhost{root}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *alone, where], check=True)
    assert (tmp_path / "harness" / "shipped" / "conf" / "config.yaml").exists()
