"""docs/keys.md, and what it is made of."""

from dataclasses import dataclass

from conftest import ROOT

from antisd_jax.config import Config, flatten
from antisd_jax.keys import keys, markdown, meanings


def test_every_key_is_told_with_its_default():
    rows = keys()
    assert [row["key"] for row in rows] == list(flatten(Config()))
    assert not [row["key"] for row in rows if len(row["meaning"]) < 5]
    found = {row["key"]: row for row in rows}
    assert found["eval.sampling.temperature"]["default"] == "0.7" and found["sampling.temperature"]["default"] == "1.0"
    assert found["method.gate.down"]["source"] == "antisd_jax/objective/gate.py" and found["prompt.sources"]["type"] == "list of str"


def test_the_page_is_that_of_the_code():
    assert (ROOT / "docs" / "keys.md").read_text() == markdown(), "antisd keys > docs/keys.md"


@dataclass
class Example:
    """size: how large, in m. left, right: which of
    the two: both are sides. free: text; with more."""

    size: int = 1
    left: int = 0
    right: int = 0
    free: str = ""
    other: int = 3  # said behind it: not above


def test_meanings_come_from_docstring_and_comment():
    both = "which of the two: both are sides"
    wanted = {"size": "how large, in m", "left": both, "right": both, "free": "text; with more", "other": "said behind it: not above"}
    assert meanings(Example) == wanted
