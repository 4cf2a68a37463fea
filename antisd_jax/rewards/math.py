"""Mathematical answers, judged by math-verify over sympy under a declared policy.

Runs inside a worker of the pool only: sympy can hang and math-verify's own timeouts rely on signals.

The answer is what stands after the last thought, there in the last \\boxed{…} (several boxes joined by commas or "and" are one
list); without a box, or where "the final answer is" follows it, what math-verify finds as the final answer of the text. Then:

- equal text, spaces, case and \\text{} aside, is correct; words are compared in no other way;
- a percent sign may be there or not, and 28 % is also 0.28; currency, degree signs and units after a number do not count;
- 3\\frac{1}{2} and "3 1/2" are mixed numbers; 1,234 and 1{,}234 are 1234; 4.5e33 is 4.5·10³³;
- a decimal equals a fraction where they agree to six places; two decimals where they agree to a millionth of their size;
- (1, 2) is ordered, {1, 2} and a bare list 1, 2 are not; (1, 2) is no set; intervals are open and closed as written;
- "x = 5" is 5; an inequality is the interval that it describes; ±3 is both values, and 3 is not ±3;
- a base written as an index may be left out: 204_5 is 204;
- numbers too large to be written out are not computed: such an answer is unparsed.
"""

import re
from contextlib import suppress
from fractions import Fraction

from antisd_jax.rewards.boxed import after_thought, final_boxes, last_boxed
from antisd_jax.rewards.grade import Grade

MAX_ANSWER = 1000  # characters
MAX_TEXT = 20_000  # characters from the end of a response that are searched when nothing is boxed
MAX_EXPONENT, MAX_FACTORIAL, MAX_DIGITS = 10_000, 1_000, 400

_SPACE = re.compile(r"\\[ ,;:!]|\\q?quad|~|\s+")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textnormal|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\\(?:mathrm|text|operatorname)\s*\{([eid])\}")
_SCIENTIFIC = re.compile(r"^([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)$")
_MIXED = re.compile(r"^([-+]?)(\d+)\s+(\d+)\s*/\s*(\d+)$")
_EXPONENT = re.compile(r"\^\s*\{?\s*[-+]?\s*(\d+)|\*\*\s*[-+(]*\s*(\d+)")
_TOWER = re.compile(r"\^\s*\{[^{}]*\^|\^\s*\w\s*\^|\*\*\s*\(*\s*\w+\s*(?:\*\*|\^)")
_FACTORIAL = re.compile(r"(\d+|[)}])\s*!")
_DIGITS = re.compile(rf"\d(?:[\d,]|\{{,\}}){{{MAX_DIGITS},}}")
_GAMMA = re.compile(r"\\gamma(?![A-Za-z])")  # a letter, which the parser takes for a function
_DECIMAL = re.compile(r"([-+]?(?:\d[\d,]*\.?\d*|\.\d+))(?:[eE]([-+]?\d+)|\\(?:times|cdot)10\^\{?([-+]?\d+)\}?)?\.?")
_FINAL = re.compile(r"final answer is\W", re.IGNORECASE)
_PLUS = re.compile(r"(\s)\+(?=\d+\W*$)")  # of a signed number that ends a sentence
_DOLLAR = re.compile(r"^\\?\$\s*([-+]?[\d.,{}\\! ]+)$|^([-+]?[\d.,]+)\s*\\\$$")


def grade(response: str, gold: str) -> Grade:
    """Judge a response against the gold answer (LaTeX or plain).

    unparsed: no answer was found, it is too long or too large, or it is neither readable as mathematics nor equal as text.
    """
    text = after_thought(response)
    if text is None:
        return Grade("unparsed")
    box = last_boxed(text)
    if box is None or _FINAL.search(text, box[1]):
        text = text[-MAX_TEXT:]
        if too_large(text, prose=True):
            return Grade("unparsed")
        return _judge(gold, None, _parsed(_PLUS.sub(r"\1", _LETTER.sub(r"\1", text))))
    boxes = final_boxes(text)
    answer = ", ".join(b.strip() for b in boxes)
    if len(answer) > MAX_ANSWER:
        return Grade("unparsed", answer[:MAX_ANSWER])
    if same_text(answer, gold):
        return Grade("correct", answer)
    if too_large(answer):
        return Grade("unparsed", answer)
    return _judge(gold, answer, _parsed(", ".join(f"\\boxed{{{normalise(b)}}}" for b in boxes)))


def _judge(gold: str, answer: str | None, got: list) -> Grade:
    """got: math-verify's readings of the answer; its text is the last of them where the answer is not known otherwise."""
    if not got:
        return Grade("unparsed", answer)
    answer = str(got[-1])[:MAX_ANSWER] if answer is None else answer
    if same_text(answer, gold):
        return Grade("correct", answer)
    numbers = _number(gold), _number(answer)
    if None not in numbers:
        return Grade("correct" if abs(numbers[0] - numbers[1]) <= abs(numbers[0]) / 10**6 else "wrong", answer)
    return Grade("correct" if _equal(gold, answer, got) else "wrong", answer)


def _number(text: str) -> Fraction | None:
    """The value of a plain decimal or of one times a power of ten, exactly; None for anything else."""
    text = _SPACE.sub("", text).strip("$").replace("{,}", "").replace("\u2212", "-")
    m = _DECIMAL.fullmatch(text)
    if not m or abs(int(m[2] or m[3] or 0)) > MAX_EXPONENT:
        return None
    digits = m[1] if not re.search(r"\d,\d{1,2}(?!\d)|\d{4},|,\d{4}|,.*,\d{1,2}$", m[1]) else ""
    return Fraction(digits.replace(",", "")) * Fraction(10) ** int(m[2] or m[3] or 0) if digits else None


def normalise(text: str) -> str:
    """The same answer in the spelling that math-verify reads."""
    text = text.strip().strip("$").strip()
    text = (
        _GAMMA.sub(r"\\varsigma ", _LETTER.sub(r"\1", text))
        .replace("\\varnothing", "\\emptyset")
        .replace("\u2212", "-")
        .replace("\u00d7", "\\times ")
    )
    text = text.rstrip(".") if re.search(r"\d\.$", text) else text
    if m := _SCIENTIFIC.match(text):
        return f"{m[1]} \\times 10^{{{int(m[2])}}}"
    if m := _MIXED.match(text):
        return f"{m[1]}\\left({m[2]}+\\frac{{{m[3]}}}{{{m[4]}}}\\right)"
    if m := _DOLLAR.match(text):
        return (m[1] or m[2]).strip()
    return text


def same_text(a: str, b: str) -> bool:
    """Equal but for spaces, case, enclosing dollar signs, \\text{} and a final full stop."""
    return plain(a) == plain(b) != ""


def plain(text: str) -> str:
    """The text without its layout."""
    text = re.sub(r"^\s*\\boxed\{(.*)\}\s*$", r"\1", text, flags=re.DOTALL)
    text = _WORDS.sub(r"\1", text).replace("\\left", "").replace("\\right", "").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _SPACE.sub("", text).strip("$").rstrip(".").casefold()
    return text[1:-1] if re.fullmatch(r"\([a-z]\)", text) else text  # an option: (C) is C


def too_large(text: str, prose: bool = False) -> bool:
    """Whether computing what is written could take longer than anybody would wait. In prose, (…)! is an exclamation."""
    exponents = (m[1] or m[2] for m in _EXPONENT.finditer(text))
    if any(len(e) > 6 or int(e) > MAX_EXPONENT for e in exponents) or _TOWER.search(text) or _DIGITS.search(text):
        return True
    factorials = (m[1] for m in _FACTORIAL.finditer(text))
    return any(int(n[:7]) > MAX_FACTORIAL if n.isdigit() else not prose for n in factorials)


def _parsed(text: str) -> list:
    from math_verify import parse

    try:
        found = parse(text, parsing_timeout=None)
        if not _faithful(found, text):
            found = [f for f in found if isinstance(f, str)]
        return found
    except Exception:  # whatever odd text provokes in a parser; hanging and dying are the pool's to deal with
        return []


def _faithful(found: list, text: str) -> bool:
    """False where the parser divided by zero, as in 12:00, or kept but a number of an expression with indexed letters."""
    values = [f for f in found if not isinstance(f, str)]
    if any("zoo" in str(v) or "nan" in str(v) for v in values):
        return False
    indexed = re.search(r"[A-Za-z]\s*_", re.sub(r"\\[A-Za-z]+", " ", _WORDS.sub("", text)))
    return not (indexed and any(not getattr(v, "free_symbols", True) and getattr(v, "is_number", False) for v in values))


def _equal(gold: str, answer: str, got: list) -> bool:
    """Whether any reading of the gold equals the answer."""
    from math_verify import verify

    if _is_tuple(gold) and _is_set(answer):
        return False
    written = [gold] if "$" in gold or "\\boxed" in gold or "\\(" in gold else []
    readings = [*written, f"\\boxed{{{normalise(gold)}}}"] if "\\boxed" not in gold else written
    if not written and not re.search(r"[A-Za-z=\\]", gold):
        readings.append(normalise(gold))  # a bare number, in the spellings of many languages
    for reading in readings:
        wanted = _parsed(reading)
        with suppress(Exception):  # as above, in sympy
            if wanted and verify(wanted, got, timeout_seconds=None, allow_set_relation_comp=True):
                return True
    return False


def _is_tuple(text: str) -> bool:
    text = _SPACE.sub("", text).strip("$").replace("\\left", "").replace("\\right", "")
    return text.startswith("(") and text.endswith(")") and "," in text and text.count("(") == 1


def _is_set(text: str) -> bool:
    return _SPACE.sub("", text).strip("$").replace("\\left", "").replace("\\right", "").startswith("\\{")
