"""The last \\boxed{…} of a response."""

MARK = "\\boxed{"


def last_boxed(text: str) -> tuple[str, int] | None:
    """(content, end offset) of the last \\boxed{…} whose braces balance, or None.

    The content is not stripped; the end offset is one past the closing brace.
    """
    start = text.rfind(MARK)
    while start != -1:
        depth, i = 1, start + len(MARK)
        while i < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if depth == 0:
            return text[start + len(MARK) : i - 1], i
        start = text.rfind(MARK, 0, start)
    return None
