"""Where a response's final answer stands."""

import re

MARK = "\\boxed{"
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning|reasoning_end)>", re.IGNORECASE)
_THOUGHT_START = re.compile(r"<(?:think|thinking|reasoning)>", re.IGNORECASE)
# Between two boxes of one answer stand a comma, "or", or a few words with "and" among them, and no end of a sentence.
_LIST_GAP = re.compile(r"(?:[^.!?\n]|\n(?!\n)){0,48}")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def _joins(gap: str) -> bool:
    words = re.findall(r"[a-z]+", _COMMAND.sub(" ", gap).lower())
    return bool(_LIST_GAP.fullmatch(gap)) and ("and" in words or words == ["or"] or (not words and ("," in gap or ";" in gap)))


def last_boxed(text: str) -> tuple[str, int] | None:
    """(content, end offset) of the last \\boxed{…} whose braces balance, or None.

    The content is not stripped; the end offset is one past the closing brace.
    """
    found = _boxed_before(text, len(text))
    return found and found[:2]


def _boxed_before(text: str, limit: int) -> tuple[str, int, int] | None:
    """(content, end, start) of the last balanced box that begins before `limit`."""
    start = text.rfind(MARK, 0, limit)
    while start != -1:
        depth, i = 1, start + len(MARK)
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if depth == 0:
            return text[start + len(MARK) : i - 1], i, start
        start = text.rfind(MARK, 0, start)
    return None


def final_boxes(text: str, most: int = 32) -> list[str]:
    """The contents of the last box and of those before it that belong to the same list, in order; empty without a box.

    "\\boxed{2}, \\boxed{3}" and "\\boxed{a} and \\boxed{b}" are one answer, "\\boxed{1}. No: \\boxed{2}" is not.
    """
    found, limit, next_start = [], len(text), None
    while len(found) < most and (box := _boxed_before(text, limit)):
        content, end, start = box
        if next_start is not None and not _joins(text[end:next_start]):
            break
        found.append(content)
        limit, next_start = start, start
    return found[::-1]


def after_thought(text: str) -> str | None:
    """What follows the last thought; None when a thought was opened and never closed."""
    ends = list(_THOUGHT_END.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return None if _THOUGHT_START.search(rest) else rest
