"""The package has the version of the last tag, and one also where there is none."""

from __future__ import annotations

import importlib.util
import subprocess

import pytest

from harness.config import ROOT


def _setup():
    spec = importlib.util.spec_from_file_location("setup_of_the_package", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """git(*arguments) runs git in a checkout with one commit."""

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "--message", "one")
    git.folder = tmp_path
    return git


def test_the_version_is_the_tag_s_and_then_that_of_the_next_one(checkout):
    setup = _setup()
    assert setup.version(checkout.folder) == setup.FALLBACK  # a clone without tags
    checkout("tag", "v1.2.3")
    checkout("tag", "first-draft")
    assert setup.version(checkout.folder) == "1.2.3"
    for message in ("two", "three"):
        checkout("commit", "--allow-empty", "--message", message)
    assert setup.version(checkout.folder) == "1.2.4.dev2"


def test_an_archive_without_history_has_the_fallback_also_within_another_checkout(checkout):
    checkout("tag", "v7.0.0")
    archive = checkout.folder / "archive"
    archive.mkdir()
    setup = _setup()
    assert setup.version(archive) == setup.FALLBACK
    (archive / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: finetune-harness\nVersion: 3.1.4\n")
    assert setup.version(archive) == "3.1.4"  # of a source distribution
