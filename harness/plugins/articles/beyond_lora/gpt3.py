"""Weights of GPT-3 175B and of a LoRA adapter on it, counted from the model's shape.

The article's 10,000× is that of the LoRA paper (Hu et al. 2021, arXiv:2106.09685), which took GPT-3 175B and adapted
queries and values. The shape is that of Brown et al. 2020 (arXiv:2005.14165), table 2.1; the vocabulary is GPT-2's.
"""

NAME = "GPT-3 175B"
LAYERS = 96
WIDTH = 12_288  # of the hidden states; the MLP's are four times as wide
VOCABULARY = 50_257
POSITIONS = 2_048


def weights() -> int:
    """All weights of a decoder with learnt positions, biases and layer norms, whose head is its embedding."""
    matrices = 12 * WIDTH**2  # queries, keys, values and outputs; up to four times the width, and down
    biases = 9 * WIDTH
    norms = 2 * 2 * WIDTH
    return LAYERS * (matrices + biases + norms) + (VOCABULARY + POSITIONS + 2) * WIDTH


def adapter(rank: int) -> int:
    """The weights of a LoRA adapter on the queries and values of all layers."""
    return LAYERS * 2 * rank * (WIDTH + WIDTH)
