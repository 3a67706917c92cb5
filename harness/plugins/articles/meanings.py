"""What articles say in their claims, beside what is measured: the sentence, the quantity, the bound, and the limits.

Each claim has a `Meaning`. `harness claims --long` and docs/verdicts.md show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.plugins.articles.claims import Claim, needs


def explanation(claim: Claim) -> Iterator[tuple[str, str]]:
    """What stands behind a claim, as pairs of a heading and a text."""
    meaning = claim.meaning
    yield "The article", f"“{meaning.sentence}”" if meaning.quoted else f"{meaning.sentence} (a paraphrase)"
    for heading, text in (("Measured", meaning.measured), ("Bound", meaning.bound), ("Can't show", meaning.limits)):
        yield heading, text[0].upper() + text[1:]
    if claim.least_model:
        yield "Model", needs(claim.least_model)


def line(claim: Claim) -> str:
    """A claim in words with its explanation, in one line."""
    return " ".join([f"{claim.name}: {claim.text}.", *(f"{heading}: {text}." for heading, text in explanation(claim))])


def said(claims: Mapping[str, Claim]) -> str:
    """All claims with their explanations, as a list in Markdown."""
    lines = []
    for name, claim in claims.items():
        lines.append(f"- **{name}**: {claim.text}.")
        lines += [f"    - {heading}: {text}." for heading, text in explanation(claim)]
    return "\n".join(lines) + "\n"
