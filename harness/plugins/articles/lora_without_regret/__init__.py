"""The article “LoRA Without Regret”: when LoRA matches full fine-tuning, and how to set it up.

Its statements on reinforcement learning are not claims here, since the harness has no such training.
"""

from pathlib import Path

from harness.plugins.articles.article import Article
from harness.plugins.articles.claims import read_claims
from harness.plugins.articles.lora_without_regret import capacity, learning_rate, setup

RULES = {
    "rank-capacity": capacity.rank_capacity,
    "lr-ratio": learning_rate.lr_ratio,
    "lr-rank": learning_rate.lr_rank,
    "layers-rank": setup.layers_rank,
    "layers-parameters": setup.layers_parameters,
    "batch-penalty": setup.batch_penalty,
}

ARTICLE = Article(
    name="lora_without_regret",
    title="LoRA Without Regret",
    source="John Schulman and Thinking Machines Lab, “LoRA Without Regret”, 2025, "
    "https://thinkingmachines.ai/blog/lora/",
    claims=read_claims(Path(__file__).parent / "claims.yaml", RULES),
    caption=[
        "Brackets in a claim say how its words are measured. A claim is supported or refuted if the whole 95% interval "
        "of its effect is on one side. Each interval is for one claim: of twenty true claims, one may be missed.",
        "Runs are compared by validation loss, each at its best learning rate. Effects on loss are ratios of losses; a "
        "difference that is surely below 1%, in either direction, is too small to matter. n is the number of seeds of "
        "the smaller side.",
    ],
)
