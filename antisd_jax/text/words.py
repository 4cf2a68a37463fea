"""Which word a token is."""

import re


def first_word(token: str) -> str:
    """The first run of letters or digits in a token's text, whatever stands around it: " Wait," is Wait; "" where there is none."""
    found = re.search(r"\w+", token)
    return found.group() if found else ""
