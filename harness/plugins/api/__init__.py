"""Models behind an API: cells that ask one, commands that put prompts to several, have one judge, or write problems."""

from pathlib import Path

from harness.plugin import Plugin

PLUGIN = Plugin(
    name="api",
    commands="harness.plugins.api.commands:add",
    settings={"api": "harness.plugins.api.config:ApiConfig"},
    check="harness.plugins.api.checks:check",
    conf=Path(__file__).parent / "conf",
    requests=(
        "harness.plugins.api.requests:Synthesize",
        "harness.plugins.api.requests:AskModels",
        "harness.plugins.api.requests:JudgeAnswers",
    ),
    cells="harness.plugins.api.cells:ApiCells",
)
