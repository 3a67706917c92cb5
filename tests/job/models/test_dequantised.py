"""A model that is a GGUF file: where it is looked for, and what is refused before it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.job import machine
from harness.job.models import dequantised, embedded
from harness.settings import ModelSettings, plain

CONTENT = b"GGUF, but no model"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HUB = "owner/name/file.gguf"


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A folder with a copy of the hub's file, which HARNESS_GGUF_DIR names; models are built elsewhere."""
    folder = tmp_path / "copies"
    folder.mkdir()
    (folder / "file.gguf").write_bytes(CONTENT)
    monkeypatch.setenv("HARNESS_GGUF_DIR", str(folder))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_copy_stands_for_the_hubs_file(copies):
    assert dequantised.copy_here(HUB) == copies / "file.gguf"
    assert dequantised.copy_here(str(copies / "file.gguf")) == copies / "file.gguf"
    assert dequantised.copy_here("owner/name/other.gguf") is None


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (HUB, ("owner/name", "file.gguf")),
        ("owner/name/quants/file.gguf", ("owner/name", "quants/file.gguf")),
        ("owner/name", ("owner/name", "")),
        ("name", ("name", "")),
        ("owner/name/folder", None),
        *((path, None) for path in ("/nowhere/file.gguf", "file.gguf", "../some/file.gguf", "./name", "~/name")),
    ],
)
def test_the_hubs_name_is_a_repository_and_a_file_in_it(path, named):
    assert ModelSettings(path=path).on_hub == named


def test_a_file_that_is_not_here_and_no_hubs_is_refused():
    with pytest.raises(UserError, match="There is no file"):
        dequantised.folder(ModelSettings(path="../some/file.gguf"))


def test_a_file_with_another_hash_is_refused(copies):
    with pytest.raises(UserError, match=f"SHA-256 of model.sha256, {'0' * 64}, got {SHA256}"):
        dequantised.folder(ModelSettings(path=HUB, sha256="0" * 64))


def test_a_file_that_is_no_model_is_refused_and_leaves_no_folder(copies):
    with pytest.raises(UserError, match="transformers can't read the GGUF file"):
        dequantised.folder(ModelSettings(path=HUB, sha256=SHA256))
    assert not list(embedded.cache().iterdir())


def test_the_folder_of_an_earlier_layout_is_removed(copies):
    for name in (f"gguf-{SHA256}", f"gguf-{SHA256[:16]}", "gguf-0123456789abcdef"):
        (embedded.cache() / name / "weights").mkdir(parents=True)
    dequantised.folder(ModelSettings(path=HUB, sha256=SHA256))
    assert sorted(path.name for path in embedded.cache().iterdir()) == ["gguf-0123456789abcdef", f"gguf-{SHA256}"]


def test_a_model_that_was_built_needs_its_file_no_more(copies, monkeypatch):
    built = embedded.cache() / f"gguf-{SHA256}"
    built.mkdir(parents=True)
    monkeypatch.delenv("HARNESS_GGUF_DIR")
    model = ModelSettings(path=HUB, sha256=SHA256)
    assert dequantised.folder(model) == built
    facts = machine.examine({"own": plain(model)}, {}, None)
    assert facts["models"]["own"] == ("ready", "file.gguf, dequantised")
    assert Path(HUB).exists() is False
