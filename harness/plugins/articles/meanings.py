"""What articles say in their claims, beside what is measured: the sentence, the quantity, the bound, and the limits.

An article writes a `Meaning` for each of its claims. `harness claims --long` and docs/verdicts.md show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from harness.plugins.articles.claims import Claim, Meaning, needs


def meant(claims: Mapping[str, Claim], meanings: Mapping[str, Meaning]) -> dict[str, Claim]:
    """`claims` with their meanings; ValueError if a claim lacks one, or there is one of no claim."""
    if claims.keys() != meanings.keys():
        raise ValueError(f"Claims and meanings differ in {sorted(claims.keys() ^ meanings.keys())}.")
    return {name: replace(claim, meaning=meanings[name]) for name, claim in claims.items()}


def explanation(claim: Claim) -> Iterator[tuple[str, str]]:
    """What stands behind a claim, as pairs of a heading and a text; empty if its article says nothing."""
    meaning = claim.meaning
    if meaning is None:
        return
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
