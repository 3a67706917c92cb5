"""What continuous integration runs: `.ci/run`, the checks that take turns in it, and the workflow that calls it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from harness.config import ROOT

RUN = ROOT / ".ci" / "run"
LINES = (ROOT / ".ci" / "turns").read_text(encoding="utf-8").splitlines()
TURNS = [line for line in LINES if not line.startswith("#")]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
MAKEFILE = """\
%:
	@echo $@ >> called
	@test $@ != "$(FAILS)"
"""


def targets(text: str) -> set[str]:
    """The targets of make that a script calls."""
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", re.sub(r"(?m)^\s*#.*$", "", text)))


@pytest.fixture
def ci(tmp_path):
    """ci(fails): `.ci/run` in a repository of one more commit, whose Makefile notes its targets; what it ran."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(RUN, tmp_path / ".ci")
    (tmp_path / ".ci" / "turns").write_text("# three\nmake a\nmake one && make two\nmake b\n")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "--quiet"], cwd=tmp_path, check=True)

    def run(fails=""):
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "more"], cwd=tmp_path, check=True)
        (tmp_path / "called").unlink(missing_ok=True)
        environment = os.environ | {"FAILS": fails}
        done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done, (tmp_path / "called").read_text().split()

    return run


def test_each_commit_runs_the_steps_and_one_line_of_the_checks_in_turn(ci):
    runs = [ci() for _ in range(4)]
    assert [done.returncode for done, _ in runs] == [0, 0, 0, 0]
    steps = ["lint", "test", "test-faults", "docs"]
    for (_, called), turns in zip(runs, ["one two", "b", "a", "one two"], strict=True):
        assert called == [*steps, *turns.split()]
    assert "Step: make one && make two\n" in runs[0][0].stdout


def test_a_step_that_fails_is_the_exit_status_and_stops_no_other(ci):
    done, called = ci("test")
    assert done.returncode == 1
    assert called[-2:] == ["one", "two"]
    table = done.stdout.partition("== Steps of .ci/run")[2].splitlines()[1:]
    assert len(table) == len(called) - 1
    assert [re.fullmatch(r" *\d+ s  (\w+)  (.*)", line).groups() for line in table if " failed " in line] == [
        ("failed", "make test")
    ]


def test_a_check_of_several_commands_ends_with_the_first_that_fails(ci):
    done, called = ci("one")
    assert done.returncode == 1
    assert called[-1] == "one"


@pytest.mark.parametrize("line", [*TURNS, RUN.read_text(encoding="utf-8")], ids=[*TURNS, "run"])
def test_the_steps_exist(line):
    for target in targets(line):
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for program in re.findall(r"\.ci/benchmark (\S+)", line):
        assert (ROOT / "benchmarks" / program).is_file()
    for path in re.findall(r"(?m)^\.ci/\w+", line):
        assert os.access(ROOT / path, os.X_OK)


def test_what_ci_leaves_out_of_each_run_takes_turns():
    every = set(re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8")))
    in_each = targets(RUN.read_text(encoding="utf-8"))
    in_turns = set().union(*map(targets, TURNS))
    scripts = {"bench": "speed.py", "halving": "halving.py", "validity": "validity.py", "gpu": "benchmarks.gpu"}
    in_turns |= {target for target, script in scripts.items() if any(script in line for line in TURNS)}
    parts = {"help", "setup", "test-all", "check", "format", "clean"}  # of others, or nothing to check
    assert every - in_each - in_turns - parts == {"lock"}, "it resolves anew what the locks hold still"


def test_the_workflow_calls_it_with_few_rights():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    (job,) = WORKFLOW["jobs"].values()
    assert "permissions" not in job
    assert job["timeout-minutes"] <= 120
    used, run = ([step[key] for step in job["steps"] if key in step] for key in ("uses", "run"))
    assert [re.fullmatch(r"(actions/[\w-]+)@[0-9a-f]{40}", action)[1] for action in used] == [
        "actions/checkout",
        "actions/setup-python",
    ]
    assert job["steps"][0]["with"]["fetch-depth"] == 0, "a shallow clone has one commit, and always the same turn"
    assert len(run) == 1
    assert run[0].split()[-1] == ".ci/run"
    assert os.access(RUN, os.X_OK)


def test_the_workflow_has_the_oldest_python_that_is_admitted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (job,) = WORKFLOW["jobs"].values()
    (python,) = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(f">={python}")
