"""A rule of thumb for the rank of LoRA by the number of rows, which users ask for and give each other."""

from __future__ import annotations

from pathlib import Path

from harness.plugins.articles.article import Article
from harness.plugins.articles.claims import read_claims
from harness.plugins.articles.rank_for_rows import claims_on_rank
from harness.record import Record

RULES = {
    "needed-rank-grows": claims_on_rank.needed_rank_grows,
    "small-ranks-suffice": claims_on_rank.small_ranks_suffice,
    "rank-16-suffices": claims_on_rank.rank_16_suffices,
}


def without_limit(record: Record) -> str:
    """The data of a record whatever number of their rows it was trained on, as claims compare such numbers."""
    limit = record.cell.settings.data.limit
    return record.cell.data.replace(f" limit={limit:g}", "") if limit else record.cell.data


ARTICLE = Article(
    name="rank_for_rows",
    title="Rank by rows",
    source="axolotl's pull request 3691 and issue 3626, 2026, https://github.com/axolotl-ai-cloud/axolotl/pull/3691",
    claims=read_claims(Path(__file__).parent / "claims.yaml", RULES),
    caption=[
        "Brackets in a claim say how its words are measured. A claim is supported or refuted if the whole 95% interval "
        "of its effect is on one side. Each interval is for one claim: of twenty true claims, one may be missed.",
        "Rows are the different ones that training read. Adapters are on all layers, each rank at its best learning "
        "rate. Effects are ratios, of needed ranks or of validation losses; losses below 0.05 nats per token count as "
        "0.05, as what is trained is known then. n is the number of seeds of the smaller side.",
    ],
    data=without_limit,
)
