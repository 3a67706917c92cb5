"""Which data sets teach what the article speaks of."""

from harness.plugins.articles.evidence import Evidence

FACTS = ("facts", "facts_short")
"""On invented worlds, which no model can know from pretraining."""

COMPLEX = ("gsm8k", "gsm_symbolic", "metamath", "wordmath")
"""Of problems with several steps."""

NUMERICAL = (
    *COMPLEX,
    *("wordmath_short", "basic_arithmetic", "chain_sum", "decimal_arithmetic", "decimal_chain_sum", "products"),
    *("fraction_simplification", "gcd", "lcm", "leg_counting", "power_function", "prime_factorization"),
)
"""Whose answers are numbers that have to be worked out. Those from the second line on are of reasoning-gym."""


def trained_on(at: Evidence, data_sets: tuple[str, ...]) -> bool:
    """Whether the records of one place trained on one of `data_sets`; a place may add its settings to the name."""
    return at.data.partition(" ")[0] in data_sets
