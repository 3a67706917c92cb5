"""The pages of docs/: generated ones are up to date, quoted files exist, links lead somewhere, the site builds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest
import yaml
from plugin_list import MISSING, needs_all_plugins

from harness.config import CONF, ROOT
from harness.sweep import planner

sys.path.append(str(ROOT / "docs"))
import catalogue
import reference

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md"]
GONE = tuple(f"{folder}/plugins/{name}" for folder in ("harness", "tests") for name in MISSING)
METHODS = catalogue.TARGET.read_text(encoding="utf-8")


def test_the_page_of_methods_has_every_method_as_its_file_says():
    files = sorted((CONF / "method").glob("*.yaml"))
    assert sorted(re.findall(r"^### (.+)$", METHODS, re.MULTILINE)) == [path.stem for path in files]
    for path in files:
        about = "\n".join(catalogue.about(path.read_text(encoding="utf-8")))
        assert about
        assert f"### {path.stem}\n\n{about}\n" in METHODS


@pytest.mark.long
def test_the_page_of_methods_has_what_plan_counts():
    some = catalogue.entries("lora", "galore", "frod")
    assert len(some) == 3
    planned = planner.make([(entry.name, entry.cell) for entry in some], {}, None, None).points
    for entry, point in zip(some, planned, strict=True):
        assert catalogue.section(entry, point.prediction) in METHODS


def test_the_page_of_methods_begins_as_its_script_says():
    assert METHODS.startswith(catalogue.HEAD.format(core=catalogue.core_table()))


@pytest.mark.long
def test_the_page_of_methods_has_the_five_first_and_then_families():
    headings = re.findall(r"^##+ .+$", METHODS, re.MULTILINE)
    families = list(catalogue.by_family(catalogue.entries()))
    assert headings == [line for name, of in families for line in (f"## {name}", *(f"### {e.name}" for e in of))]
    assert [entry.name for entry in families[0][1]] == ["full", "lora", "qlora", "dora", "galore"]
    assert len(families) == len(catalogue.FAMILIES)


@needs_all_plugins
def test_the_page_of_settings_is_up_to_date():
    assert reference.SETTINGS.read_text(encoding="utf-8") == reference.settings_page(), "`make publish` renews it"


def test_the_page_of_the_record_is_up_to_date():
    assert reference.RECORD.read_text(encoding="utf-8") == reference.record_page(), "`make publish` renews it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        target, _, anchor = " ".join(link.split()).partition("#")
        found = page.parent / target if target else page
        assert found.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    """Paths in backticks that begin with a folder of the repository; those with a capital NAME in them are examples."""
    folders = "benchmarks|conf|docs|harness|notebooks|results/reference|sweeps|tests"
    for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8")):
        assert "NAME" in path or path.startswith(GONE) or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_modules_and_functions_that_are_named_exist(page):
    for module, name in re.findall(r"\b(harness(?:\.\w+)+)\.(\w+)", page.read_text(encoding="utf-8")):
        path = ROOT / module.replace(".", "/")
        if f"{module}.{name}".replace(".", "/").startswith(GONE):
            continue
        if name != "NAME" and not (path / f"{name}.py").is_file():
            text = path.with_suffix(".py").read_text(encoding="utf-8")
            assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), name


def test_the_layout_names_every_room_and_nothing_else():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    layout = text[text.index("## Rooms") :].split("```text\n")[1].partition("```")[0]
    paths, above = set(), {-2: ROOT}  # above: the last path of each indentation
    for indent, name in re.findall(r"^( *)([\w./]+)", layout, re.MULTILINE):
        above[len(indent)] = above[len(indent) - 2] / name
        paths.add(above[len(indent)])
    wrong = [path for path in paths if not path.exists() and not path.relative_to(ROOT).as_posix().startswith(GONE)]
    assert not wrong, wrong
    package = ROOT / "harness"
    rooms = [path for room in (package, package / "job", package / "plugins") for path in room.iterdir()]
    missing = {path for path in rooms if any(path.glob("*.py"))} - paths
    assert not missing, missing


def test_the_method_that_is_shown_is_a_file():
    shown = re.search(r"```yaml\n(.*?)```", (DOCS / "adding" / "method.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert shown == (CONF / "method" / "rslora.yaml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = re.findall(r"[\w/-]+\.md", str(nav))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
