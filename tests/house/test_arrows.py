"""Who may import whom: the directions that keep the rooms of the package apart, read from the source itself."""

from __future__ import annotations

import ast
import re
import resource
import sys
from collections import defaultdict
from graphlib import TopologicalSorter

import pytest
from plugin_list import MISSING

from harness.config import CONF, ROOT

PACKAGE = ROOT / "harness"
FILES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
HEAVY = {"torch", "transformers", "peft", "lm_eval", "accelerate", "datasets", "bitsandbytes", "galore_torch"}


def imports(tree):
    """All modules that `tree` imports, anywhere in it, dotted; ``from a import b`` counts as a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would slip past these rules"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages(tree):
    return {name.partition(".")[0] for name in imports(tree)}


def importers(package):
    return {path for path, tree in FILES.items() if package in packages(tree)}


def within(room):
    files = {path: tree for path, tree in FILES.items() if path.startswith(f"{room}/")}
    assert files, f"there is no {room}/; this test would hold anything"
    return files.items()


def of_jobs():
    """The files of the core that run in jobs, and those of plug-ins."""
    return [(path, tree) for path, tree in FILES.items() if re.match(r"(plugins/\w+/)?job/", path)]


def test_no_two_classes_have_one_name():
    """Except for a file's private ones, which nobody else reads about."""
    at = defaultdict(list)
    for path, tree in FILES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                at[node.name].append(path)
    assert len(at) > 100, "nothing was read"
    assert not {name: paths for name, paths in at.items() if len(paths) > 1}


def test_no_two_files_import_each_other():
    """Nor several in a circle, an import within a function included."""
    names = {f"harness.{path.removesuffix('.py').replace('/', '.').removesuffix('.__init__')}": path for path in FILES}

    def files(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                dotted = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name if name in names else node.module for name in dotted)

    graph = {name: names.keys() & set(files(FILES[path])) for name, path in names.items()}
    assert sum(map(len, graph.values())) > 300, "nothing was read"
    TopologicalSorter(graph).prepare()


LEAVES = {"errors", "grouping", "plugin", "program", "redact", "score_names", "terminal", "units", "yaml_file"}
BELOW = {
    "record",
    "settings",
    "schema",
    "protocol",
    "validate",
    "config",
    "config_folders",
    "config_help",
    "data_files",
    "task_names",
    "boot",
    "cell_runner",
    "env",
    "gate",
}
BELOW |= LEAVES
ARROWS = {  # of each room, the rooms and files it may import
    "record": {"settings"} | LEAVES,
    "sweep": BELOW,
    "studies": {"sweep"} | BELOW,
    "job": BELOW,
    "report": {"record", "settings"} | LEAVES,
    "plugins/articles": {"plugins", "cli", "report", "record", "settings", "config", "config_folders"} | LEAVES,
    "python": {"sweep", "report"} | BELOW,
}


def test_the_core_imports_no_plugin():
    """It asks harness/plugin.py for what is installed."""
    core = {path: tree for path, tree in FILES.items() if not path.startswith("plugins/")}
    importers = [path for path, tree in core.items() if any(n.startswith("harness.plugins") for n in imports(tree))]
    assert not importers
    assert len(core) < len(FILES), "there are no plug-ins; this test would hold anything"


def test_no_plugin_imports_another():
    for path, tree in FILES.items():
        if own := re.match(r"plugins/(\w+)/", path):
            others = {n for n in imports(tree) if re.match(rf"harness\.plugins\.(?!{own[1]}\b)", n)}
            assert not others, path


@pytest.mark.parametrize("room", [room for room in ARROWS if room.rpartition("/")[2] not in MISSING])
def test_arrows_point_one_way(room):
    for path, tree in within(room):
        rooms = {name.split(".")[1] for name in imports(tree) if name.startswith("harness.")}
        assert rooms <= ARROWS[room] | {room}, path


def test_the_record_imports_the_standard_library_and_a_reader_of_json_alone():
    for path, tree in within("record"):
        assert packages(tree) - {"harness", "orjson"} <= sys.stdlib_module_names, path
    assert importers("orjson") == {"record/reading.py"}


def test_only_jobs_import_model_libraries():
    jobs = {path for path, _ in of_jobs()}
    for path, tree in FILES.items():
        assert path in jobs or not packages(tree) & HEAVY, path


def test_jobs_read_records_through_the_gate_alone():
    """Whatever a record names, a job would run or load."""
    gated = set()
    for path, tree in of_jobs():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("record", "read"), ("record", "read_study")}, path
                gated |= {path} if (node.value.id, node.attr) == ("gate", "admitted") else set()
        assert not {"harness.record.read", "harness.record.read_study", "harness.record.reading"} & imports(tree), path
    of_core = {path for path in gated if path.startswith("job/")}
    assert of_core == {"job/evaluate/rescoring.py"}


def test_measure_imports_no_other_room_of_jobs():
    for path, tree in within("job/measure"):
        others = [name for name in imports(tree) if re.match(r"harness\.job\.(?!measure)", name)]
        assert not others, path


def test_only_scoring_imports_lm_eval():
    names = (
        "scoring",
        "task_index",
        "held_out/task",
        "engine",
        "request_cache",
        "tokenised_once",
        "windows",
        "plain_model",
    )
    evaluate = {f"job/evaluate/{name}.py" for name in names}
    assert {path for path in importers("lm_eval") if not path.startswith("plugins/")} == evaluate


PREDICTING = {"job/predict/fake_probe.py", "job/predict/calibrating.py"}  # which build optimizers


def test_only_the_entry_and_the_slots_import_hydra():
    entry = ("sweep/app/", "sweep/launchers/")
    slots = {path for path in importers("hydra") if not path.startswith(entry)}
    models = {f"job/models/{name}.py" for name in ("adapting", "checks", "empty_weights", "loading")}
    assert slots <= models | {"job/data/sources.py", "job/phases/prepare.py"} | PREDICTING
    for path in slots:
        used = {name for name in imports(FILES[path]) if re.match(r"hydra(\.\w+){2}|hydra$", name)}
        assert "hydra.utils.instantiate" in used or path == "job/models/empty_weights.py", (
            path
        )  # whose slots others fill
        assert used <= {"hydra.utils.instantiate", "hydra.errors.InstantiationException"}, path


def test_the_training_loop_names_no_method():
    methods = {path.stem for path in (CONF / "method").glob("*.yaml")}
    assert "lora" in methods
    tree = FILES["job/training/loop.py"]
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    said = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            said |= set(re.findall(r"\w+", node.value))
        for name in ("id", "attr", "arg", "name"):
            said |= set(re.split(r"_", getattr(node, name, None) or "")) | {getattr(node, name, None)}
    assert "model" in said, "nothing was read"
    assert not methods & said


def test_the_training_loop_fits_a_screen():
    loops = [node for node in FILES["job/training/loop.py"].body if getattr(node, "name", None) == "train"]
    assert [node.end_lineno - node.lineno < 60 for node in loops] == [True]


def test_no_attribute_of_a_job_is_born_outside_init():
    """Phases take values and return values. An objective of pairs has what its base class has."""
    for path, tree in within("job"):
        if not re.fullmatch(r"job/(training/|phases/|measure/)?\w+\.py", path):
            continue
        for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            parts = {part.name: part for part in kind.body if isinstance(part, ast.FunctionDef)}
            fields = {part.target.id for part in kind.body if isinstance(part, ast.AnnAssign)}
            born = fields | (own_attributes(parts["__init__"]) if "__init__" in parts else set())
            bases = {getattr(base, "id", None) for base in kind.bases}
            for part in parts.values():
                assert own_attributes(part) <= born or bases & {"PairObjective"}, (path, kind.name, part.name)


def own_attributes(function):
    """Names that `function` sets on self."""
    stored = (n for n in ast.walk(function) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {node.attr for node in stored if isinstance(node.value, ast.Name) and node.value.id == "self"}


def test_help_comes_at_once_and_loads_nothing_heavy(harness):
    """Within a second of the processor's time: other tests run beside this one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = harness("table", "--help", python=("-X", "importtime"))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0
    assert 0 < after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in run.stderr.splitlines()}
    assert "argparse" in loaded, "nothing was traced"
    assert not loaded & (HEAVY | {"pandas", "numpy", "hydra", "omegaconf"})
