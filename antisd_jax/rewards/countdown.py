"""Countdown: does an arithmetic expression use the given numbers, each once, and hit the target? Exact, no eval."""

import re
from collections import Counter
from fractions import Fraction

from antisd_jax.rewards.boxed import last_boxed
from antisd_jax.rewards.grade import Grade

MAX_EXPRESSION = 200  # characters; also bounds the parser's recursion
_TOKEN = re.compile(r"\s*(\d+|[-+*/()])")
_GOLD = re.compile(r"(\d+) from (\d+(?: \d+)*)$")


class NotAnExpression(ValueError):
    """The text is not arithmetic over non-negative integers with + - * / and parentheses."""


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_EXPRESSION:
        raise NotAnExpression("too long")
    out, i = [], 0
    text = text.rstrip()
    while i < len(text):
        match = _TOKEN.match(text, i)
        if not match:
            raise NotAnExpression(f"unexpected {text[i]!r}")
        out.append(match[1])
        i = match.end()
    return out


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the numbers it uses, in order. Raises NotAnExpression, ZeroDivisionError.

    Grammar: sum = product {(+|-) product}; product = atom {(*|/) atom}; atom = number | "(" sum ")".
    """
    tokens, used = _tokens(text), []

    def peek():
        return tokens[0] if tokens else ""

    def atom() -> Fraction:
        token = tokens.pop(0) if tokens else ""
        if token == "(":
            value = summation()
            if not tokens or tokens.pop(0) != ")":
                raise NotAnExpression("missing )")
            return value
        if not token.isdigit():
            raise NotAnExpression(f"wanted a number, got {token!r}")
        used.append(int(token))
        return Fraction(int(token))

    def product() -> Fraction:
        value = atom()
        while peek() in ("*", "/"):
            value = value * atom() if tokens.pop(0) == "*" else value / atom()
        return value

    def summation() -> Fraction:
        value = product()
        while peek() in ("+", "-"):
            value = value + product() if tokens.pop(0) == "+" else value - product()
        return value

    value = summation()
    if tokens:
        raise NotAnExpression(f"unexpected {tokens[0]!r}")
    return value, used


def grade(response: str, gold: str) -> Grade:
    """Judge the last boxed expression against a gold "TARGET from N N N". Raises ValueError for a malformed gold."""
    match = _GOLD.match(gold)
    if not match:
        raise ValueError(f"countdown answer {gold!r}, wanted 'TARGET from N N …'")
    boxed = last_boxed(response)
    if boxed is None:
        return Grade("unparsed")
    answer = boxed[0].strip()
    try:
        value, used = evaluate(answer)
    except (NotAnExpression, ZeroDivisionError):
        return Grade("unparsed", answer[:MAX_EXPRESSION])
    right = value == int(match[1]) and Counter(used) == Counter(int(n) for n in match[2].split())
    return Grade("correct" if right else "wrong", answer)
