"""What tests demand of the command line."""

from __future__ import annotations


def assert_refused(stderr, *culprits):
    """One line that starts with "error: " and names `culprits`, and no word of Python's."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    assert "Error executing job" not in stderr
    for culprit in culprits:
        assert culprit in errors[0]
