"""A browser for the tests of pages."""

from chromium import browser, shown  # noqa: F401
