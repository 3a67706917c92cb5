"""Recomputes the arithmetic of worked answers: GSM8K's annotations, `<<3*4=12>>`, and steps in text, `3 * 4 = 12`."""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass
from fractions import Fraction

OPERAND = r"\$?(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?: ?%)?"
TERM = rf"[( ]*-?{OPERAND}(?: *\))*"
MORE = rf" *(?:[-+*/×÷−–]|x(?! *-)){TERM}"
BEFORE = r"[-+*/×÷−–^(%\d]"  # what an expression does not begin after
# A lookahead, so that 1+1=2+3=5 is two steps. Neither side may be a part of something else: of 2.5Y, or 1 1/2.
STEP = re.compile(
    rf"(?=(?<![\w.,%)$])(?<!{BEFORE})(?<!{BEFORE} )(?<!\bx)(?<!\bx )(?! )({TERM}(?:{MORE})+) *= *"
    rf"((?>{TERM}(?:{MORE})*))(?!\w|[.,]\d| *(?:and )?\(?\d+ */))"
)
ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
FINAL = re.compile(r"^#### *\$?(-?[\d.,]+)\s*$", re.MULTILINE)
SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/", "−": "-", "–": "-", "$": "", ",": "", " ": "", "\n": ""})
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
NUMBER = re.compile(r"\d*\.?\d*", re.ASCII)  # Fraction would take 1e10000000 for one, and seconds for it
LONGEST = 200  # characters of an expression
LONGEST_ANSWER = 6000  # and of an answer: more than one of synthesis.TOKENS has
NEAR = 50  # and before an expression, of what is looked at


@dataclass(frozen=True)
class Step:
    """A calculation: its text, the result it states, and the correct result."""

    text: str
    said: Fraction
    found: Fraction
    right: bool


def steps(answer: str) -> list[Step]:
    """The calculations in `answer`, except those with letters or units."""
    if len(answer) > LONGEST_ANSWER:
        answer = answer[:LONGEST_ANSWER].rsplit(maxsplit=1)[0]  # half a number would be a wrong step
    written = [found.groups() for found in ANNOTATION.finditer(answer)]
    plain = ANNOTATION.sub("", answer)
    begins = ((match, match.start(1)) for match in STEP.finditer(plain))
    written += [match.groups() for match, at in begins if _begins(plain[max(0, at - NEAR) : at])]
    return [step for left, right in written if (step := _step(left, right))]


def final(answer: str) -> Fraction | None:
    """The number after `####`, as GSM8K's answers end; None without one."""
    found = FINAL.findall(answer)
    return _value(found[-1]) if found else None


def _begins(before: str) -> bool:
    """Whether an expression begins after `before`, and is not the rest of an unreadable one (`2a + 1`)."""
    return not re.search(rf"({BEFORE}|\bx) *$", before)


def _step(left: str, right: str) -> Step | None:
    found, said = _value(left), _value(right)
    if found is None or said is None:
        return None
    # A result with decimals may be rounded to them; whole numbers must be exact.
    decimals = len(right.strip().rstrip("%").partition(".")[2])
    slack = Fraction(1, 2 * 10**decimals) if decimals else 0
    # 75% may mean 0.75 or 75; in 2 + 3 = 5 + 1 = 6 the stated result is 5.
    alike = [found, *([found / 100, found * 100] if "%" in right else [])]
    first = re.match(OPERAND, right.strip())
    chained = first is not None and found == _value(first[0])
    return Step(
        f"{left.strip()}={right.strip()}", said, found, chained or any(abs(value - said) <= slack for value in alike)
    )


def _value(text: str) -> Fraction | None:
    """The value of an expression of numbers, + - * / and brackets; None for any other text."""
    plain = re.sub(r"([\d.]+)%", r"(\1/100)", text.translate(SIGNS))
    plain = re.sub(r"(?<![\d.])0+(?=\d)", "", plain)  # Python refuses 007
    if len(plain) > LONGEST:
        return None
    try:
        return _worked_out(ast.parse(plain, mode="eval").body, plain)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _worked_out(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant) and NUMBER.fullmatch(number := text[node.col_offset : node.end_col_offset]):
        return Fraction(number)  # as written: 0.1 has no exact float
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_worked_out(node.operand, text)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_worked_out(node.left, text), _worked_out(node.right, text))
    raise ValueError("not arithmetic")
