"""Articles on fine-tuning whose claims are judged on recorded studies: verdicts, their figure, and articles' tables.

`rules.py` and `claims.py` have what the articles share, each of which is a folder here.
"""

from harness.plugin import Plugin

PLUGIN = Plugin(
    name="articles",
    commands="harness.plugins.articles.commands:add",
    figures={"verdicts": "harness.plugins.articles.forest:verdicts"},
    page_blocks=("harness.plugins.articles.page_block:page_block",),
    rules="harness.plugins.articles.rule_version:judging_rules",
    frames={"claims": "harness.plugins.articles.frame:claims"},
    doc_blocks={
        "claims": "harness.plugins.articles.decided:claims",
        "decided": "harness.plugins.articles.decided:table",
        "judged": "harness.plugins.articles.decided:judged_study",
        "headline": "harness.plugins.articles.decided:headline",
        "said": "harness.plugins.articles.decided:said",
        "others": "harness.plugins.articles.decided:others",
        "published": "harness.plugins.articles.decided:published_results",
        "summary": "harness.plugins.articles.decided:summary",
        "article": "harness.plugins.articles.decided:article_table",
    },
    doc_files={
        "docs/figures/published.svg": "harness.plugins.articles.decided:published_picture",
        "docs/figures/verdicts.svg": "harness.plugins.articles.decided:picture",
        "results/reference/smollm2/CLAIMS.md": "harness.plugins.articles.decided:verdicts_of_smollm2",
    },
)
