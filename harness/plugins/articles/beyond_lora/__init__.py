"""The article “Beyond LoRA”: its claims on LoRA, QLoRA, DoRA and GaLore, and its table filled with measurements.

Three of its statements are not claims here, since no record can judge them: that LoRA mixes magnitude and direction,
that models behind an API are worth a comparison, and that these can write training data.
"""

from harness.plugins.articles.article import Article
from harness.plugins.articles.beyond_lora import alpha, dora, forgetting, galore, hyperparameters, lora, memory
from harness.plugins.articles.beyond_lora.claims import CLAIMS
from harness.plugins.articles.beyond_lora.published import PUBLISHED
from harness.plugins.articles.beyond_lora.table import table

RULES = (lora, dora, memory, galore, hyperparameters, alpha, forgetting)  # importing them gives the claims their rules

ARTICLE = Article(
    name="beyond_lora",
    title="Beyond LoRA",
    source="“Beyond LoRA”, as this project's introduction summarises it",
    claims=CLAIMS.all(),
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
