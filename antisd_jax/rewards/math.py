"""Mathematical answers: the last boxed expression, compared by math-verify over sympy.

Runs inside a worker of the pool only: sympy can hang and math-verify's own timeouts rely on signals.
"""

from antisd_jax.rewards.boxed import last_boxed
from antisd_jax.rewards.grade import Grade

MAX_ANSWER = 1000  # characters


def grade(response: str, gold: str) -> Grade:
    """Judge the last \\boxed{…} of a response against the gold answer (LaTeX or plain).

    unparsed: nothing boxed, too long, or not readable as mathematics and not equal to the gold as text. A gold that is
    not mathematics (a word, a name) is compared as text alone.
    """
    from math_verify import parse, verify

    boxed = last_boxed(response)
    if boxed is None:
        return Grade("unparsed")
    answer = boxed[0].strip()
    if len(answer) > MAX_ANSWER:
        return Grade("unparsed", answer[:MAX_ANSWER])
    if answer == gold.strip():
        return Grade("correct", answer)
    wanted = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
    if not wanted:
        return Grade("wrong", answer)
    got = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    if not got:
        return Grade("unparsed", answer)
    return Grade("correct" if verify(wanted, got, timeout_seconds=None) else "wrong", answer)
