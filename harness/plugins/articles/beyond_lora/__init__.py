"""The article “Beyond LoRA”: its claims on LoRA, QLoRA, DoRA and GaLore, and its table filled with measurements.

Three of its statements are not claims here, since no record can judge them: that LoRA mixes magnitude and direction,
that models behind an API are worth a comparison, and that these can write training data.
"""

from pathlib import Path

from harness.plugins.articles.article import Article
from harness.plugins.articles.beyond_lora import alpha, dora, forgetting, galore, hyperparameters, lora, memory
from harness.plugins.articles.beyond_lora.published import PUBLISHED
from harness.plugins.articles.beyond_lora.table import table
from harness.plugins.articles.claims import read_claims

RULES = {
    "lora-parameters": lora.lora_parameters,
    "lora-memory": lora.lora_memory,
    "low-rank-spread": lora.low_rank_spread,
    "low-rank-divergence": lora.low_rank_divergence,
    "lora-numerical": lora.lora_numerical,
    "lora-niche": lora.lora_niche,
    "dora-task": dora.dora_task,
    "dora-mmlu": dora.dora_mmlu,
    "dora-full": dora.dora_full,
    "dora-parameters": dora.dora_parameters,
    "dora-training": dora.dora_training,
    "dora-serving": dora.dora_serving,
    "dora-stability": dora.dora_stability,
    "dora-convergence": dora.dora_convergence,
    "qlora-memory": memory.qlora_memory,
    "dora-memory": memory.dora_memory,
    "adapters-galore-memory": memory.adapters_galore_memory,
    "galore-memory": memory.galore_memory,
    "galore-states": memory.galore_states,
    "memory-order": memory.memory_order,
    "galore-weights": galore.galore_weights,
    "galore-facts": galore.galore_facts,
    "rank-capacity": hyperparameters.rank_capacity,
    "lr-adapters": hyperparameters.lr_adapters,
    "lr-full": hyperparameters.lr_full,
    "lr-ratio": hyperparameters.lr_ratio,
    "alpha-r": alpha.alpha_r,
    "alpha-4r": alpha.alpha_4r,
    "alpha-rank": alpha.alpha_rank,
    "forgetting-mmlu": forgetting.forgetting_mmlu,
    "forgetting-reasoning": forgetting.forgetting_reasoning,
    "forgetting-format": forgetting.forgetting_format,
    "forgetting-text": forgetting.forgetting_text,
}

ARTICLE = Article(
    name="beyond_lora",
    title="Beyond LoRA",
    source="“Beyond LoRA”, as this project's introduction summarises it",
    claims=read_claims(Path(__file__).parent / "claims.yaml", RULES),
    caption=[
        "Brackets in a claim say how its words are measured. A claim is supported or refuted if the whole 95% interval "
        "of its effect is on one side. Each interval is for one claim: of twenty true claims, one may be missed.",
        "Each method (for equal ranks: each rank) is judged in its setting with the least validation loss, on the "
        "same items. A difference in a score that is surely below 1 point, in either direction, is too small to "
        "matter. n is the number of independent seeds (for speed: runs) of the smaller side. Parameter counts are "
        "exact; memory holds for its batch, model and device, and runs of it count as varying by at least 1.5%.",
    ],
    table=table,
    published=PUBLISHED,
)
