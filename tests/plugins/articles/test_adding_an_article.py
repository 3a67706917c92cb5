"""docs/adding/article.md: what it says is done literally, with its own blocks, and then used."""

from __future__ import annotations

import pytest
from added import blocks, copy_of_project, python


@pytest.mark.long
def test_an_article_is_judged_and_published(tmp_path):
    project = copy_of_project(tmp_path)
    rules, article = blocks("article", "python")
    (claims,) = blocks("article", "yaml")
    folder = project / "harness" / "plugins" / "articles" / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text(article, encoding="utf-8")
    (folder / "claims.yaml").write_text(claims, encoding="utf-8")
    (folder / "memory.py").write_text(rules, encoding="utf-8")

    judged = python(project, "-m", "harness", "claims", "--article", "mine", "--study", "reference/memory")
    assert "lora-memory" in judged
    assert "The title" in judged
    publish = (
        "import published; from harness.plugins.articles import decided; "
        "assert decided.picture(); print(published.rendered('decided', 'mine'))"
    )
    assert "No study that decides a claim of “The title” has run yet." in python(project, "-c", publish)
