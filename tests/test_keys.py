"""docs/keys.md, and what it is made of."""

import re
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


def test_the_guide_names_keys_that_exist():
    """What stands in code marks and looks like one of our keys, in the first column of a table or among what to do."""
    known, text = flatten(Config()), (ROOT / "docs" / "guide.md").read_text()
    tables, symptoms = text.split("## Symptom")
    cells = [line.split("|")[1] for line in tables.splitlines() if line.startswith("|")]
    cells += [line.split("|")[3] for line in symptoms.splitlines() if line.startswith("|")]
    found = [key for cell in cells for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)(?:=[^`]*)?`", cell)]
    assert not [key for key in found if key not in known] and len(found) > 40
