"""Hands a tuned model over: to what serves it, and to the hub."""

from harness.plugin import Plugin

PLUGIN = Plugin(
    name="export",
    commands="harness.plugins.export.commands:add",
    requests=("harness.plugins.export.requests:ExportModel",),
)
