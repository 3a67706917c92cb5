"""Training steps of all methods on a GPU that is not there (tests/fake_cuda), and the plan held against them."""

from __future__ import annotations

import json

import pytest
from on_fake_cuda import run_there
from smaller import EXTRAS, lacks_extra

from harness.config import CONF

pytestmark = pytest.mark.long

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml") if path.stem != "api")
# What else there is for GPUs, one setting at a time.
SETTINGS = [
    *(f"method={method} train.gradient_checkpointing=true" for method in ("dora", "full", "lora", "qlora")),
    *(f"method=qlora method.adamw={kind}" for kind in ("8bit", "paged", "paged_8bit")),
    "method=full method.adamw=paged",
    "method=lora model.upcast=true",
    "method=lora speedups=off",
    "method=lora train.activation_offload=true",
]
CELLS = METHODS + SETTINGS
CORE = ("dora", "full", "galore", "lora", "qlora")
# Sparse products, of which there are none without storage: a CPU build of torch has no kernel, a CUDA build no driver.
NO_KERNEL = ("Could not run", "CUDA driver version is insufficient", "Found no NVIDIA driver")
# Methods whose step can't be taken here, and what says so: one of these.
NOT_HERE = {
    **{method: (f"requires the extra `{extra}`",) for method, extra in EXTRAS.items() if lacks_extra(method)},
    "frod": NO_KERNEL,
    "shira": NO_KERNEL,
    "waveft": ("nonzero",),  # how many there are is a matter of values
}
IN_BF16 = {"full_bf16", "full_kahan", "galore_bf16"}
VIRTUAL_TOKENS = {"cartridge", "p_tuning", "prefix_tuning", "prompt_tuning"}  # are put before each sequence
PADDED = {*VIRTUAL_TOKENS, "lily"}  # which mixes over all tokens of a batch
# Methods that take something from the CPU in each step: the numbers of their tokens, a state, a draw against a dropout.
FROM_CPU = {
    **{method: {"aten._to_copy.default"} for method in [*VIRTUAL_TOKENS, "lorafa"]},
    **{method: {"aten.gt.Scalar", "aten._local_scalar_dense.default"} for method in ["loha", "lokr"]},
}
# Methods of which autocast keeps copies of other tensors on CUDA than on a CPU: their activations differ by so much.
# Adafactor's counters of steps lie on the CPU.
NEARLY = {"adafactor": 0.001, "gralora": 0.005, "psoft": 0.005, "tinylora": 0.005, "lorafa": 0.02}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict]:
    """By method or settings, what the steps on the fake GPU took."""
    asked = [_overrides(cell) for cell in CELLS]
    run = run_there("steps.py", json.dumps(asked), tmp_path_factory.mktemp("fake_cuda"))
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(lines) == len(CELLS), run.stderr[-3000:]
    return dict(zip(CELLS, lines, strict=True))


def _overrides(cell: str) -> list[str]:
    if cell in SETTINGS:
        return cell.split()
    method = cell
    unclipped = ["train.max_grad_norm=null"] if method.endswith("_layer") else []
    return [f"method={method}", *unclipped, *(["model.dtype=bfloat16"] if method in IN_BF16 else [])]


@pytest.mark.parametrize("cell", CELLS)
def test_the_step_runs_on_a_gpu_alone(answers, cell):
    answer = answers[cell]
    if cell in NOT_HERE:
        assert any(reason in answer["error"] for reason in NOT_HERE[cell]), answer["error"]
        return
    assert "error" not in answer, answer["error"]
    assert set(answer["on_cpu"]) == FROM_CPU.get(cell, set())


@pytest.mark.parametrize("cell", [*CORE, *SETTINGS])
def test_the_host_waits_for_nothing_in_a_micro_batch(answers, cell):
    """Of what tensors without storage show: tests/job/training/test_waits.py has the values that are read."""
    assert answers[cell]["awaited"] == []


@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_sequences_reach_the_kernel_made_for_them(answers, cell):
    if cell not in NOT_HERE:
        kernel = "efficient" if cell in PADDED or "speedups=off" in cell else "varlen"
        own = {"eager float32"} if cell == "adaption_prompt" else set()  # to its prompt each sequence attends apart
        assert set(answers[cell]["attention"]) == {f"{kernel} bfloat16"} | own


@pytest.mark.parametrize("cell", CELLS)
def test_the_plan_for_a_gpu_counts_what_the_step_takes_there(answers, cell):
    answer = answers[cell]
    if cell in NOT_HERE or answer["planned"] is None:
        pytest.skip("neither says what the step takes")
    totals = [{w: sum(kinds.values()) for w, kinds in answer[which].items()} for which in ("planned", "fake")]
    assert totals[0] == pytest.approx(totals[1], rel=NEARLY.get(cell, 0))
    if cell not in NEARLY:
        assert answer["planned"] == answer["fake"]
