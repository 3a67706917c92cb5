"""What the rule of thumb says in each claim, and how its verdict is to be read."""

from harness.plugins.articles.claims import Meaning

TENTH = (
    "10% of the loss: ranks differ by 3 to 10% from seed to seed in our records, so a few seeds tell no less. Where "
    "scores were recorded, 10% went with 1 to 4 points"
)
LIMITS = "Larger models, longer rows, more than 6,400 rows, and other numbers of passes over them"

MEANINGS = {
    "needed-rank-grows": Meaning(
        "Below 1,000 samples rank 8, below 10,000 rank 16, below 100,000 rank 32, else 64",
        "the needed rank at the most rows over that at the fewest, at least 16 times as many. A rank is needed if it "
        "is the smallest of which no larger rank has a validation loss lower by 10%. Each rank is at its own rate",
        f"a factor of 2, on both sides: ranks are tried no closer. The needed rank itself: {TENTH}",
        LIMITS,
    ),
    "small-ranks-suffice": Meaning(
        "However few the samples are, the rank is at least 8",
        "the validation loss of rank 4 over that of the largest rank, at each number of rows up to 1,600",
        TENTH,
        LIMITS,
    ),
    "rank-16-suffices": Meaning(
        "rank 16 works for most tasks under 10K samples",
        "the validation loss of rank 16 over that of the largest rank, at each number of rows below 10,000",
        TENTH,
        LIMITS,
        quoted=True,
    ),
}
