"""What the article says in each claim, and how its verdict is to be read.

Quotes are of its summary of findings. The two on learning rates are paraphrases.
"""

from harness.plugins.articles.claims import Meaning

LOSS = "1% of the loss, on both sides: less is within what one more seed changes"
NEAR = "a factor of 3: rates are tried about three times apart, so a closer one is the same choice"

MEANINGS = {
    "rank-capacity": Meaning(
        "For datasets that exceed LoRA capacity, LoRA underperforms FullFT",
        "the validation loss of the smallest adapter over that of full fine-tuning, and the same of the largest. "
        "Capacity is 2 bits for each trainable parameter; the data hold the bits of their first reading",
        LOSS,
        "Where exactly capacity is exceeded: two adapters stand for all ranks",
        quoted=True,
    ),
    "lr-ratio": Meaning(
        "The best learning rate of LoRA is about ten times that of full fine-tuning",
        "the best rate of LoRA, on all layers, over that of full fine-tuning, at the smallest batch",
        f"3 to 30 times: {NEAR}",
        "Longer runs and larger models: the article finds a larger factor in runs of few steps",
    ),
    "lr-rank": Meaning(
        "The best learning rate of LoRA hardly depends on the rank",
        "the best rate of the highest rank over that of the lowest, which are at least 8 times apart, at one "
        "alpha, as the article scales updates by alpha / rank",
        f"{NEAR.capitalize()}",
        "Ranks between, and beyond, those that were run",
    ),
    "layers-rank": Meaning(
        "LoRA performs better when applied to all weight matrices, especially MLP and MoE layers",
        "the validation loss of adapters on attention alone over that of adapters on all layers, at the same rank",
        LOSS,
        "Which of the other layers it is. Models with experts",
        quoted=True,
    ),
    "layers-parameters": Meaning(
        "Attention-only LoRA underperforms even when we match the number of trainable parameters by using higher "
        "rank for attention-only LoRA",
        "the same, of adapters whose trainable parameters differ by at most 10%",
        LOSS,
        "Which of the other layers it is. Models with experts",
        quoted=True,
    ),
    "batch-penalty": Meaning(
        "In some scenarios, LoRA is less tolerant of large batch sizes than full fine-tuning",
        "LoRA's validation loss over that of full fine-tuning at the largest batch, over the same ratio at the "
        "smallest",
        LOSS,
        "“Some scenarios”: one that does not show it refutes nothing but itself",
        quoted=True,
    ),
}
