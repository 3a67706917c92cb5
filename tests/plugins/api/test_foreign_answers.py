"""Nothing that models and servers send commands a terminal."""

from __future__ import annotations

import io

import pytest
from foreign_text import EVIL, OWN, Screen, assert_harmless, said
from scripted import server


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("stream", [io.StringIO, Screen])
def test_answers_of_models_and_bodies_of_servers_are_text(tmp_path, stream):
    with server(lambda prompt, number: f"Say {EVIL}" if number == 0 else {"text": 400, "error": EVIL}) as there:
        line = ["ask", "Hello?", "--api", "m", "--base-url", there.url]
        for expected, word in ((0, "Say evil"), (2, "refused (HTTP 400")):
            status, text = said(tmp_path, *line, stream=stream)
            assert (status, word in text) == (expected, True), text
            assert_harmless(OWN.sub("", text))
