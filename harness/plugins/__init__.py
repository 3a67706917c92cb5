"""What is not needed to run a grid and compare it: a folder each, found by harness/plugin.py, imported by no
other room."""
