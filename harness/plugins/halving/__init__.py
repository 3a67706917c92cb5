"""Ends hopeless cells of a sweep early, by successive halving on the validation loss: stop=asha."""

from pathlib import Path

from harness.plugin import Plugin

PLUGIN = Plugin(
    "halving",
    settings={"stop": "harness.plugins.halving.config:StopConfig"},
    check="harness.plugins.halving.config:check",
    conf=Path(__file__).parent / "conf",
    stop_rule="harness.plugins.halving.config:stop_rule",
    early_stop="harness.plugins.halving.job.halving:early_stop",
)
