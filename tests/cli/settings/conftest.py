"""What runs the command lines of these tests."""

from run_lines import only, run, tasks  # noqa: F401
