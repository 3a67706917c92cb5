"""Exchanges results with others: files of peft and lm-eval in; files of lm-eval's form and data sets of the hub out."""

from harness.plugin import Plugin

PLUGIN = Plugin(name="exchange", commands="harness.plugins.exchange.commands:add")
