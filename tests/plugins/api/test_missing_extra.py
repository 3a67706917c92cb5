"""Without the extra `api`, `ask` says so before any model answers."""

from __future__ import annotations

import pytest

from harness.errors import UserError
from harness.plugins.api import asking, requests


def test_ask_says_before_any_model_answers_that_a_package_is_missing(monkeypatch):
    monkeypatch.setattr(requests, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the extra `api`"):
        asking.ask([], as_typed=False, on_event=print, api=["some/model"], judge=None)
