"""What stays of a training set, and the data card that says so: duplicates, and overlaps with the run's evaluation sets.

Two problems are the same when their words and signs are, in whatever case and spacing; nearly the same when their 5-grams of
words have a Jaccard index of at least NEAR. A Chinese or Japanese character is a word of its own.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from antisd_jax.text.rows import Problem

NEAR = 0.6
GRAM = 5
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+|[^\w\s$\\{},.;:?!~]")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|text|textbf|mathrm|quad|,|;|!|:)(?![A-Za-z])|\\[dt](?=frac)")


@dataclass
class Card:
    """What happened to one set of problems."""

    name: str
    revision: str = ""  # the commit on the hub
    rows: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason → rows
    overlaps: list[dict] = field(default_factory=list)  # what stands in an evaluation set, too
    rewritten: int = 0  # problems whose own instruction was taken off
    conflicts: int = 0  # duplicates whose answer is another
    answers: Counter = field(default_factory=Counter)  # kind → rows
    lengths: list[int] = field(default_factory=list)  # of the prompts, in tokens

    def lines(self) -> list[str]:
        """As it is printed."""
        out = [f"{self.name}{'@' + self.revision[:12] if self.revision else ''}: {self.rows} rows, {self.kept} problems"]
        notes = {"duplicates": f" ({self.conflicts} of them with another answer)" if self.conflicts else ""}
        if self.dropped:
            out.append("  dropped  " + ", ".join(f"{n} {reason}{notes.get(reason, '')}" for reason, n in self.dropped.most_common()))
        if self.overlaps:
            where = Counter(f"{o['eval']} ({o['kind']})" for o in self.overlaps)
            out.append("  overlaps " + ", ".join(f"{n} with {name}" for name, n in where.most_common()) + ", listed in overlaps.jsonl")
        if self.rewritten:
            out.append(f"  prompts  {self.rewritten} instructions of the data set's own replaced")
        out.append("  answers  " + ", ".join(f"{n} {kind}" for kind, n in self.answers.most_common()))
        if self.lengths:
            ordered = sorted(self.lengths)
            at = {q: ordered[min(len(ordered) - 1, int(q * len(ordered) / 100))] for q in (50, 90, 99)}
            out.append("  prompts  " + ", ".join(f"{q} % up to {n}" for q, n in at.items()) + f", longest {ordered[-1]} tokens")
        return out


def words(text: str) -> tuple[str, ...]:
    """The words and signs of a problem, without what only lays it out."""
    return tuple(_WORD.findall(_LAYOUT.sub(" ", text).casefold()))


def grams(tokens: tuple[str, ...]) -> frozenset:
    """All runs of GRAM words; of a shorter text, itself."""
    return frozenset(tokens[i : i + GRAM] for i in range(max(1, len(tokens) - GRAM + 1)))


def answer_kind(answer: str) -> str:
    """integer, decimal, fraction, list, words, expression, or tests of a program."""
    if answer.startswith(('{"tests"', '[{"input"')):
        return "tests"
    text = answer.strip().strip("$").replace("{,}", "").replace("\\!", "")
    if re.fullmatch(r"[-+]?\d[\d,]*", text):
        return "integer"
    if re.fullmatch(r"[-+]?[\d,]*\.\d+", text):
        return "decimal"
    if re.fullmatch(r"[-+]?\\[dt]?frac\{?\d+\}?\{?\d+\}?|[-+]?\d+/\d+", text):
        return "fraction"
    if re.fullmatch(r"(?:\\text\{)?[A-Za-z][A-Za-z ]+\}?", text):
        return "words"
    return "list" if "," in text else "expression"


def without_duplicates(problems: list[Problem], card: Card) -> list[Problem]:
    """The first of each group of equal problems."""
    first: dict = {}
    seen: dict[str, tuple] = {}  # DAPO's file repeats its problems a hundred times, letter for letter
    kept = []
    for p in problems:
        key = seen.get(p.problem) or seen.setdefault(p.problem, words(p.problem))
        if key in first:
            card.dropped["duplicates"] += 1
            card.conflicts += first[key] != p.answer.strip()
        else:
            first[key] = p.answer.strip()
            kept.append(p)
    return kept


def without_overlaps(problems: list[Problem], evaluation: dict[str, list[Problem]], card: Card, drop: bool = True) -> list[Problem]:
    """The problems that stand in none of the evaluation sets (all of them without `drop`); the others are listed in the card."""
    held = [(name, p, words(p.problem)) for name, ps in evaluation.items() for p in ps]
    exact = {w: i for i, (_, _, w) in reversed(list(enumerate(held)))}
    held_grams = [grams(w) for _, _, w in held]
    postings: dict = {}
    for i, found in enumerate(held_grams):
        for gram in found:
            postings.setdefault(gram, []).append(i)
    kept = []
    for p in problems:
        match = _match(words(p.problem), exact, held_grams, postings)
        if match is None:
            kept.append(p)
            continue
        i, kind, jaccard = match
        name, other, _ = held[i]
        if drop:
            card.dropped["overlaps with evaluation"] += 1
        else:
            kept.append(p)
        same = other.answer.strip() == p.answer.strip()
        entry = {"train": card.name, "id": p.id, "eval": name, "eval_id": other.id, "kind": kind, "jaccard": jaccard, "same_answer": same}
        card.overlaps.append(entry)
    return kept


def _match(tokens, exact, held_grams, postings):
    """(index of the evaluation problem, kind, Jaccard index) or None."""
    if tokens in exact:
        return exact[tokens], "exact", 1.0
    mine = grams(tokens)
    shared = Counter(i for gram in mine for i in postings.get(gram, ()))
    best = max(shared, key=lambda i: shared[i] / (len(mine) + len(held_grams[i]) - shared[i]), default=None)
    if best is None:
        return None
    jaccard = shared[best] / (len(mine) + len(held_grams[best]) - shared[best])
    return (best, "near", round(jaccard, 3)) if jaccard >= NEAR else None
