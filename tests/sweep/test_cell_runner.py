"""Cells that a plug-in runs: it composes, checks, prices and runs them; the core does all others."""

from __future__ import annotations

import pytest

from harness import cell_runner, plugin
from harness.errors import UserError
from harness.job import services
from harness.job.__main__ import runner
from harness.protocol import CheckCells, Result
from harness.settings import MethodSettings, ModelSettings, Settings
from harness.sweep import runner as sweep_runner
from harness.sweep.app import checking
from harness.sweep.app.point import point_of
from harness.sweep.app.session import Options

AFAR = "model.tokenizer=afar"


class Afar:
    """Runs the cells with AFAR, and notes what it is called with."""

    def __init__(self):
        self.admitted = []

    def runs(self, settings):
        return settings.model.tokenizer == "afar"

    def composed(self, resolved):
        if resolved["model"]["tokenizer"] != "afar":
            return None
        return Settings(MethodSettings(), ModelSettings(tokenizer="afar", name=resolved["model"]["name"]))

    def extra(self, config, answers):
        return {"rank": config.rank, "answers": answers.name}

    def admit(self, requests, costs, dollars):
        self.admitted.append(([(r.extra["rank"], costs[r.cell.id]) for r in requests], dollars))

    def check(self, cell, extra, data_root, local):
        return {"price": extra["rank"] * 2}

    def run(self, request, report):
        return request.record("ok", None)


@pytest.fixture
def afar(monkeypatch):
    there = Afar()
    others = tuple(part for part in plugin.installed() if part.cells is None)  # one that runs cells may refuse these
    monkeypatch.setattr(plugin, "installed", lambda: others)
    monkeypatch.setattr(cell_runner, "runners", lambda: (there,))
    return there


@pytest.fixture
def points(afar, compose):
    return [point_of(compose(*given, "model=tiny"), []) for given in ((AFAR, "rank=3"), ("rank=4",))]


def test_the_request_carries_what_the_plugin_adds(points):
    far, near = points
    assert (far.is_local, far.request.extra) == (False, {"rank": 3, "answers": f"{far.cell.name}.jsonl"})
    assert (near.is_local, near.request.extra) == (True, None)


def test_the_plugin_alone_checks_its_cells_and_admits_them_by_their_cost(afar, points, monkeypatch):
    checked, sent = [], []
    monkeypatch.setattr("harness.job.preflight.check", lambda cells, *_: checked.extend(cells) or [])

    def in_this_process(cells, data_root, extra, local, elsewhere):
        services.check(CheckCells(cells, data_root, extra, local=local, elsewhere=elsewhere), sent.append)
        return {event.value["id"]: event.value["cost"] for event in sent if isinstance(event, Result)}

    monkeypatch.setattr(sweep_runner, "check", in_this_process)
    checking.check(points, Options())
    assert checked == [points[1].cell]
    assert afar.admitted == [([(3, {"price": 6})], None)]
    checking.check(points[1:], Options())
    assert len(afar.admitted) == 1
    checking.check(points[:1], Options(dollars=7.0))
    assert afar.admitted[1:] == [([(3, {"price": 6})], 7.0)]
    with pytest.raises(UserError, match=r"^A budget of 7USD limits models behind an API alone"):
        checking.check(points, Options(dollars=7.0))


def test_the_job_has_the_plugin_run_it(afar, points):
    far, near = (runner(point.request) for point in points)
    assert far == afar.run
    assert near.__name__ == "run_cell"


def test_without_a_plugin_that_runs_them_such_settings_are_refused(afar, compose, monkeypatch):
    monkeypatch.setattr(cell_runner, "runners", tuple)
    for setting in ("base_url=http://host/v1", "tokenizer=afar", "thinking=4", "key_env=KEY"):
        with pytest.raises(UserError, match=rf"^model\.{setting.partition('=')[0]} is refused: no installed plug-in"):
            point_of(compose(f"model.{setting}"), [])
