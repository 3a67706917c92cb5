"""Plain English that is on every machine: passages of the Python language reference, as the interpreter carries it.

What a model loses of it is what tuning took from the language it knew. Other versions of Python word some passages in
another way, so compare models under the same one; a record names it.
"""

from __future__ import annotations

import re
from pydoc_data.topics import topics

SHORTEST, LONGEST = 300, 1500
OPENING = 12
"""Words that are given; the loss is of those after them."""


def load() -> dict[str, list[dict[str, str]]]:
    """The split `test`: passages as {"opening": str, "rest": str}, in alphabetical order of their topics.

    A passage is a paragraph of prose: of 300 to 1,500 characters, beginning like a sentence and ending as one, without
    code or grammar in it.
    """
    paragraphs = (" ".join(p.split()) for topic in sorted(topics) for p in topics[topic].split("\n\n"))
    prose = [p for p in paragraphs if SHORTEST <= len(p) <= LONGEST and re.match(r"[A-Z].*\w{2}\.$", p)]
    prose = [p for p in prose if not re.search(r">>>|::|-----|\*\*|\+--|=.*=.*=", p)]
    return {"test": [_passage(p) for p in dict.fromkeys(prose)]}  # some stand under several topics


def _passage(text: str) -> dict[str, str]:
    words = text.split(" ")
    return {"opening": " ".join(words[:OPENING]), "rest": " ".join(words[OPENING:])}
