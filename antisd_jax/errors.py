"""The one exception that means "the input is at fault, not the program"."""


class UserError(Exception):
    """What was got, what was wanted, and where: the command line prints it as one line and exits with status 2."""


def nearest(name: str, known) -> str:
    """ " (did you mean …?)" for a misspelt name, or "" when nothing known is close."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
