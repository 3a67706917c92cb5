"""Which published figures decide the article's claims, with the claims' own bounds: docs/published-results.md."""

from __future__ import annotations

from harness.plugins.articles.beyond_lora.dora import BEHIND
from harness.plugins.articles.beyond_lora.lora import SPREADS
from harness.plugins.articles.beyond_lora.methods import TUNED
from harness.plugins.articles.claims import Bounds
from harness.plugins.articles.published_figures import Ability
from harness.plugins.articles.published_rules import Contrast, PublishedRule, Ranks
from harness.plugins.articles.rules import BETTER

FORGOTTEN = Bounds(low=0.02)
LESS = Bounds(0, 1, ratio=True)
ALIKE = Bounds(1 / 1.1, 1.1, ratio=True)


def _alone(contrast: Contrast) -> PublishedRule:
    return PublishedRule({f"{contrast.one}/{contrast.other}": contrast})


def _forgotten(*abilities: Ability) -> PublishedRule:
    """Of QLoRA against the quantised base: what quantising costs is not forgotten."""
    bases = {method: "base_nf4" if method == "qlora" else "base" for method in TUNED}
    return PublishedRule(
        {m: Contrast(base, m, FORGOTTEN, abilities=abilities, trained=False) for m, base in bases.items()}, "any"
    )


def _memory(*pairs: tuple[str, str, Bounds]) -> PublishedRule:
    """DoRA and LoRA are compared at equal ranks."""
    parts = {}
    for one, other, bounds in pairs:
        ranks: Ranks = "equal" if {one, other} == {"dora", "lora"} else "highest"
        parts[f"{one}/{other}"] = Contrast(one, other, bounds, "memory", ranks=ranks)
    return PublishedRule(parts)


PUBLISHED = {
    "lora-memory": _memory(("lora", "full", Bounds(0, 0.5, ratio=True))),
    "lora-numerical": _alone(Contrast("full", "lora", BETTER, abilities=["numerical"])),
    "lora-niche": _alone(Contrast("full", "lora", BETTER, abilities=["knowledge"])),
    "dora-task": _alone(Contrast("dora", "lora", BETTER, ranks="equal")),
    "dora-mmlu": _alone(Contrast("dora", "lora", BETTER, abilities=["mmlu"], trained=None, ranks="equal")),
    "dora-full": _alone(Contrast("dora", "full", Bounds(low=-BEHIND))),
    "dora-training": _alone(Contrast("dora", "lora", Bounds(1, 1.5, ratio=True), "seconds", ranks="equal")),
    "dora-stability": _alone(Contrast("lora", "dora", SPREADS, compared="spread", ranks="equal")),
    "qlora-memory": _memory(*(("qlora", other, LESS) for other in ("full", "lora", "dora", "galore"))),
    "dora-memory": _memory(("dora", "lora", ALIKE)),
    "adapters-galore-memory": _memory(("lora", "galore", LESS), ("dora", "galore", LESS)),
    "galore-memory": _memory(("galore", "full", Bounds(0, 2 / 3, ratio=True))),
    "memory-order": _memory(
        ("qlora", "lora", LESS), ("dora", "lora", ALIKE), ("dora", "galore", LESS), ("galore", "full", LESS)
    ),
    "rank-capacity": _alone(Contrast("lora", "lora", BETTER, abilities=["numerical"], ranks="high and low")),
    "forgetting-mmlu": _forgotten("mmlu"),
    "forgetting-reasoning": _forgotten("reasoning", "numerical"),
    "forgetting-format": _forgotten("instructions"),
}
