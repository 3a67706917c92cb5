"""What runs the command lines of tests of settings and options."""

from run_lines import only, run, tasks  # noqa: F401
