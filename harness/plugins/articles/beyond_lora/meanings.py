"""What the article says in each claim, and how its verdict is to be read.

Sentences that are quoted stand in the opening of “Beyond LoRA: Evaluating Advanced LLM Fine-Tuning Techniques”
(https://explore.n1n.ai/blog/beyond-lora-evaluating-advanced-llm-fine-tuning-techniques-2026-06-18), the part of it that
we have. The rest is a paraphrase of what this project's introduction says of the article; words in quotation marks
inside a paraphrase are the introduction's quotes.
"""

from harness.plugins.articles.claims import Meaning

ONE_MODEL = "Other models and data; a study speaks for its own"
ONE_SHAPE = "Other batches, lengths, models and devices: shares of memory change with all of them"
POINT = "1 point, on both sides: one question in a hundred, the least that a reader of a table would act on"
TWICE_THE_SEEDS = (
    "1.4 times (√2), on both sides: from there the mean of as many runs is as unsure as that of half of them, so "
    "that a user needs twice the seeds"
)
TENTH = "10%, on both sides: a tenth rarely decides whether a model fits or which method is taken"
GALORE = (
    "How GaLore does over thousands of steps: of a short run that renews its projection a few times, little of the "
    "space of weights is seen"
)
NEAR_RATE = "A factor of 3: rates are tried about three times apart, so a closer one is the same choice"

MEANINGS = {
    "lora-parameters": Meaning(
        "reduce the number of trainable parameters by factors of 10,000x",
        "all weights of GPT-3 175B over those of an adapter of rank 1 on its queries and values, counted from its "
        "shape. The number is that of the LoRA paper, which took this model; a study's own model stands in the "
        "remark",
        "10,000×, the article's number",
        "That this adapter learns anything, or that a smaller model is cut as much: the factor grows with the width",
        quoted=True,
    ),
    "lora-memory": Meaning(
        "This approach drastically reduces the VRAM requirement",
        "LoRA's peak of memory in a training step over that of full fine-tuning, at equal batches",
        "half: with that a card of half the size is enough, which is how cards differ",
        ONE_SHAPE,
        quoted=True,
    ),
    "low-rank-spread": Meaning(
        "This coupling can lead to optimization instability, especially when the rank (r) is very low",
        "the standard deviation of the last validation loss over seeds, at ranks up to 4 over that at ranks from "
        "16, each rank at its best rate",
        TWICE_THE_SEEDS,
        "Instability inside a run, such as spikes of the loss that it recovers from",
        quoted=True,
    ),
    "low-rank-divergence": Meaning(
        "This coupling can lead to optimization instability, especially when the rank (r) is very low",
        "the share of runs that diverge or end a tenth above their first loss, at ranks up to 4 minus that at "
        "ranks from 16, at the same rates, of which none is more than 10 times the best rate of its rank or less "
        "than a tenth of it",
        "10 points, on both sides: one run in ten is what a user of ten runs notices. Rates further off are left "
        "out, since nobody who tunes a rate stays there, and any method diverges at some rate",
        "Why a run diverges. Runs of one setting end alike, so many settings are needed",
        quoted=True,
    ),
    "lora-numerical": Meaning(
        "LoRA often struggles to match the learning capacity of full-parameter fine-tuning in tasks requiring "
        "high-precision numerical reasoning",
        "the score of full fine-tuning minus that of LoRA, on a task of the training data whose answers are "
        "numbers that have to be worked out, each method at its best setting",
        POINT,
        "Harder tasks: sums and word problems of a small model are no competition mathematics. A tie may be of a "
        "task that is too easy, or of too few steps",
        quoted=True,
    ),
    "lora-niche": Meaning(
        "LoRA often struggles to match the learning capacity of full-parameter fine-tuning in tasks requiring (…) "
        "niche domain knowledge",
        "the score of full fine-tuning minus that of LoRA, on questions about an invented world that the training "
        "data describe",
        POINT,
        "Whether knowledge of a real domain, of which a model knows a part, is learned likewise",
        quoted=True,
    ),
    "dora-task": Meaning(
        "DoRA beats LoRA at the same rank, on GSM8K and MMLU",
        "DoRA's score minus LoRA's on the task of the training data, the mean over the ranks that both have, each "
        "rank at its best rate",
        POINT,
        "GSM8K, unless it is the training data: on another task the claim is a wider one than the article's",
    ),
    "dora-mmlu": Meaning(
        "DoRA beats LoRA at the same rank, on GSM8K and MMLU",
        "DoRA's score minus LoRA's on MMLU, the mean over the ranks that both have, each rank at its best rate",
        POINT,
        "A model below 1B parameters answers MMLU about as often as chance does, so it can't win or lose there",
    ),
    "dora-full": Meaning(
        "DoRA often matches full fine-tuning",
        "DoRA's score minus that of full fine-tuning on the task of the training data, each at its best setting",
        "2 points behind: twice the least difference that matters. A claim that two match needs a margin, and this "
        "one can be shown with a thousand items",
        f"“Often”. {ONE_MODEL}",
    ),
    "dora-parameters": Meaning(
        "DoRA learns the direction by LoRA and the magnitude apart",
        "the trainable weights of DoRA over those of LoRA, at the same rank and layers, counted",
        "10% more: a tenth is little. The magnitude is one number for each row of a matrix, in a square one 1/(2r) "
        "of LoRA's: 3% at rank 16, more than 10% below rank 5",
        "That magnitude and direction are learned apart: no record holds how weights changed",
    ),
    "dora-training": Meaning(
        "DoRA trains a bit slower than LoRA",
        "the median time of a training step of DoRA over that of LoRA, at equal batches on one machine",
        "1 to 1.5 times: slower at all, and by at most half, beyond which nobody calls it a bit",
        "Other devices and implementations: kernels that fuse DoRA's norms change the factor",
    ),
    "dora-serving": Meaning(
        "Once merged, DoRA serves as fast as LoRA",
        "the bytes of the merged weights of DoRA over those of LoRA: equal ones are the same matrices of the same "
        "base, so the rate is the same by construction. The measured ratio of decoding rates is a check",
        "equal bytes; the measured rates within 10%, less than which hardly anybody notices",
        "The speed of an adapter that is not merged, which differs",
    ),
    "dora-stability": Meaning(
        "DoRA trains more stably than LoRA",
        "the standard deviation of LoRA's last validation loss over seeds over that of DoRA's, at the ranks that "
        "both have, each at its best rate",
        TWICE_THE_SEEDS,
        "Instability inside a run, and at rates that are not the best",
    ),
    "dora-convergence": Meaning(
        "In the row of the table on convergence: DoRA often matches full fine-tuning",
        "the raw tokens that DoRA takes to the lowest validation loss that all runs of both reach, over those of "
        "full fine-tuning",
        "0.8 to 1.25 times: the range within which regulators of medicines call two products equivalent, and a "
        "quarter more or fewer steps changes no plan",
        "The other words of that row, which we do not have. What happens after the common loss",
    ),
    "qlora-memory": Meaning(
        "QLoRA needs the least memory",
        "QLoRA's peak of memory in a training step over that of each other method, at equal batches",
        "1×: least means less than each",
        ONE_SHAPE,
    ),
    "dora-memory": Meaning(
        "LoRA and DoRA need about the same memory",
        "DoRA's peak of memory in a training step over LoRA's, at equal batches",
        TENTH,
        ONE_SHAPE,
    ),
    "adapters-galore-memory": Meaning(
        "In the order of memory, LoRA and DoRA stand below GaLore",
        "the peaks of memory of LoRA and of DoRA in a training step over GaLore's, at equal batches",
        "1×: below means less than",
        f"{ONE_SHAPE}. galore-torch keeps all singular vectors of a matrix, which the paper's formula does not count",
    ),
    "galore-memory": Meaning(
        "GaLore needs far less memory than AdamW",
        "GaLore's peak of memory in a training step over that of full fine-tuning with AdamW, at equal batches",
        "two thirds: full fine-tuning in one precision holds weights, gradients and two states, and without the "
        "states about half of it is left, so two thirds is most of what could be saved",
        f"{ONE_SHAPE}. Updates of one layer at a time, which the article may mean, save more",
    ),
    "galore-states": Meaning(
        "GaLore shrinks the optimizer's states by low-rank gradients",
        "the bytes of the optimizer's states of GaLore over those of AdamW on all weights",
        "half: the GaLore paper saves up to 65.5% of them, and embeddings, which it leaves whole, weigh more in a "
        "small model",
        "Larger models, where embeddings weigh less",
    ),
    "memory-order": Meaning(
        "QLoRA < LoRA ≈ DoRA < GaLore < full",
        "the ratios of neighbours' peaks of memory in a training step, at equal batches",
        "1× for each <; 10% for ≈: a tenth rarely decides whether a model fits",
        ONE_SHAPE,
    ),
    "galore-weights": Meaning(
        "GaLore trains all weights through low-rank gradients",
        "the trainable weights of GaLore over those of full fine-tuning, counted",
        "1×, exactly: all means all",
        "By how much each weight moves: within one projection the update of a matrix has a low rank",
    ),
    "galore-facts": Meaning(
        "For wholly new knowledge GaLore is better than “low-rank methods”",
        "GaLore's score minus those of LoRA, QLoRA and DoRA on questions about an invented world that the training "
        "data describe. Runs of no more steps than update_proj_gap never renew the projection. They stay in one "
        "low-rank space, which GaLore is there to leave, and decide nothing",
        f"{POINT}. It must be better than each of the three",
        f"{GALORE}. Whether it beats full fine-tuning, which is no low-rank method",
    ),
    "rank-capacity": Meaning(
        "Complex tasks need a rank of 64 or 128",
        "the mean score of ranks 64 and 128 minus that of ranks 8 and 16, on problems of several steps, each rank "
        "at its best rate",
        POINT,
        "Whether more data or harder problems would need the rank: what fits into rank 8 does not show it",
    ),
    "alpha-r": Meaning(
        "alpha = 2r keeps the scaling of the update “consistent with the original weights”",
        "the score of alpha = 2r minus that of alpha = r at one learning rate, the one at which both together have "
        "the lowest validation loss, interpolated between the two rates around it. It must lie inside the rates "
        "that both were run with, so that neither is favoured by the choice of rates",
        POINT,
        "That 2r is best where each alpha has a rate of its own: an alpha and a rate nearly make up for each "
        "other. The article speaks of the scaling, not of a score",
    ),
    "alpha-4r": Meaning(
        "alpha = 2r keeps the scaling of the update “consistent with the original weights”",
        "the score of alpha = 2r minus that of alpha = 4r, as for alpha-r",
        POINT,
        "As for alpha-r",
    ),
    "alpha-rank": Meaning(
        "alpha = 2r keeps the scaling of the update “consistent with the original weights”",
        "by what factor the best rate of LoRA moves from the lowest rank to one of at least 8 times it with one "
        "alpha for both, over that factor with alpha = 2r. What is consistent over ranks needs no other rate",
        "1.5, on both sides: rates are tried about 2 to 3 times apart, so half a step of a grid more or less is no "
        "other choice",
        "What “consistent with the original weights” means besides: no record holds how large an update is",
    ),
    "lr-adapters": Meaning(
        "PEFT takes a “higher” learning rate than full fine-tuning, such as 2e-4",
        "the learning rate of the least validation loss, of each of LoRA, QLoRA and DoRA, from a curve through the "
        "losses of at least five rates, at each batch size",
        "a third of 2e-4: rates are tried about three times apart, so a closer one is the same choice. There is no "
        "upper bound, since the article says “higher”",
        "That 2e-4 itself is best: a rate several times higher supports the claim, too. Other batch sizes, numbers "
        "of steps and models, with which a best rate moves",
    ),
    "lr-full": Meaning(
        "2e-5 is the learning rate for full fine-tuning",
        "the learning rate of the least validation loss of full fine-tuning, as for lr-adapters",
        NEAR_RATE,
        "Other batch sizes, numbers of steps and models, with which a best rate moves",
    ),
    "lr-ratio": Meaning(
        "PEFT takes a “higher” learning rate than full fine-tuning: 2e-4 against 2e-5",
        "the best rate of each of LoRA, QLoRA and DoRA over that of full fine-tuning, at each batch size",
        "3 times, on both sides: rates are tried about three times apart, so a closer one is the same choice. The "
        "ten times of the article's two rates are an example, not a bound",
        "That it is ten times. Other batch sizes, numbers of steps and models, with which best rates move",
    ),
    "forgetting-mmlu": Meaning(
        "Tuning may forget catastrophically what the model knew, its general reasoning among it",
        "MMLU of the untuned model minus that of the method that loses most. QLoRA is held against the quantised "
        "base: what quantising costs is not forgotten",
        "2 points: twice the least difference that matters, as the worst of several methods is looked at",
        "A model below 1B parameters answers MMLU about as often as chance does, and has nothing to lose",
    ),
    "forgetting-reasoning": Meaning(
        "Tuning may forget catastrophically what the model knew, its general reasoning among it",
        "the score of a reasoning task that was not trained (GSM8K, else the generated word problems) of the "
        "untuned model minus that of the method that loses most, as for forgetting-mmlu",
        "2 points, as for forgetting-mmlu",
        "A model that can't solve the task has nothing to lose. Other kinds of reasoning",
    ),
    "forgetting-format": Meaning(
        "Tuning may forget catastrophically what the model could do, following instructions among it",
        "the share of IFEval's prompts whose instructions are all followed strictly, of the untuned model minus "
        "that of the method that loses most, as for forgetting-mmlu",
        "2 points, as for forgetting-mmlu",
        "Whether answers are any good: IFEval checks their form alone. A model that was never taught to follow "
        "instructions has nothing to lose",
    ),
    "forgetting-text": Meaning(
        "Tuning may forget catastrophically what the model knew",
        "bits per byte of paragraphs of Python's language reference (`plain_text`) of the method that loses most "
        "minus those of the untuned model, as for forgetting-mmlu",
        "0.05 bits per byte: about 5% of what a small model needs for this text",
        "Other English: the text is technical prose of one document. Reasoning and knowledge: a model may lose them "
        "and still predict plain text well",
    ),
}
