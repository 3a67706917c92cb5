"""A browser for the tests of pages."""

from __future__ import annotations

import chromium
import pytest


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def shown(browser, tmp_path):
    """shown(text, fragment) is the browser with that page open on a desktop's screen."""

    def show(text, fragment=""):
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        browser.call("Emulation.setEmulatedMedia", media="", features=[])
        browser.width(1280)
        browser.open(path, fragment)
        assert browser.fetched() == [path.as_uri()]
        return browser

    return show
