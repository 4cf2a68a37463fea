"""docs/keys.md, and what it is made of."""

import re
from dataclasses import dataclass

from conftest import ROOT

from antisd_jax.config import Config, flatten
from antisd_jax.keys import ORIGINS, UNITS, comments, keys, markdown, split


def test_every_key_is_told_with_its_default():
    rows = keys()
    assert [row["key"] for row in rows] == list(flatten(Config()))
    assert not [row["key"] for row in rows if len(row["meaning"]) < 5]
    found = {row["key"]: row for row in rows}
    assert found["eval.sampling.temperature"]["default"] == "0.7" and found["sampling.temperature"]["default"] == "1.0"
    assert found["method.gate.down"]["source"] == "antisd_jax/objective/gate.py" and found["prompt.sources"]["type"] == "list of str"


def test_the_page_is_that_of_the_code():
    assert (ROOT / "docs" / "keys.md").read_text() == markdown(), "antisd keys > docs/keys.md"


def test_every_key_has_a_unit_and_its_default_an_origin():
    rows = keys()
    assert not [(row["key"], row["unit"]) for row in rows if row["unit"] not in UNITS]
    assert not [(row["key"], row["origin"]) for row in rows if row["origin"] not in ORIGINS]
    found = {row["key"]: (row["unit"], row["origin"]) for row in rows}
    assert found["steps"] == ("steps", "paper") and found["method.gate.floor"] == ("nats", "ours")
    assert found["optim.beta2"] == ("–", "verl") and found["output"] == ("–", "–")


def test_keys_of_a_section_have_meanings_of_their_own():
    told = [(row["key"].rpartition(".")[0], row["meaning"]) for row in keys()]
    assert len(set(told)) == len(told)


def test_unit_and_origin_are_told_apart_from_the_meaning_or_missed():
    assert split("of a step [problems; released code]") == ("of a step", "problems", "released code")
    assert split("in [0, 1]: a part [share; ours]") == ("in [0, 1]: a part", "share", "ours")
    for broken in ("of a step", "of a step [problems]", "of a step [problems, ours]", "of [problems; ours] a step", "[problems; ours]"):
        assert split(broken) == (broken, "", "")


@dataclass
class Example:
    """size: how large, in m [–; ours]. left, right: which of
    the two: both are sides. free: text; with more [steps;
    paper]."""

    size: int = 1
    left: int = 0
    right: int = 0
    free: str = ""
    other: int = 3  # said behind it: not above [tokens; –]


def test_meanings_come_from_docstring_and_comment():
    both = "which of the two: both are sides"
    wanted = {"size": "how large, in m", "left": both, "right": both, "free": "text; with more", "other": "said behind it: not above"}
    assert {name: split(said)[0] for name, said in comments(Example).items()} == wanted


def test_the_guide_names_keys_that_exist():
    """What stands in code marks and looks like one of our keys, in the first column of a table or among what to do."""
    known, text = flatten(Config()), (ROOT / "docs" / "guide.md").read_text()
    tables, symptoms = text.split("## Symptom")
    cells = [line.split("|")[1] for line in tables.splitlines() if line.startswith("|")]
    cells += [line.split("|")[3] for line in symptoms.splitlines() if line.startswith("|")]
    found = [key for cell in cells for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)(?:=[^`]*)?`", cell)]
    assert not [key for key in found if key not in known] and len(found) > 40
