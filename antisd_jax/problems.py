"""The problems of a run: read, chosen, given their prompts, and said in a data card."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from antisd_jax.errors import UserError
from antisd_jax.files import write_atomically
from antisd_jax.log import warn
from antisd_jax.processes import first
from antisd_jax.steps import Policy, prompted
from antisd_jax.text.card import Card, answer_kind, without_duplicates, without_overlaps
from antisd_jax.text.data import Benchmark, DataConfig, load
from antisd_jax.text.rows import Problem


def read_data(policy: Policy, config, folder: Path) -> tuple[list[tuple[Benchmark, list[Problem]]], list[Problem], list[Card]]:
    """(benchmarks with their problems, training problems, all cards). Of a hub name the commit is the one first read here."""
    pins = Pins(folder / "revisions.json")
    held_out, cards, whole = [], [], {}
    if config.eval.every:
        held_out, cards, whole = read_benchmarks(policy, config.eval, pins)
    card = Card(config.data.path)
    rows = load(pins.of(config.data), "data.path", card)
    problems = choose(policy, rows, "data.path", card, whole, config.data.overlaps == "drop")
    pins.add(config.data, card)
    return held_out, problems, [card, *cards]


def read_benchmarks(policy: Policy, config, pins: "Pins"):
    """(benchmarks with the problems that are used, their cards, name → all of their problems)."""
    held_out, cards, whole = [], [], {}
    for b in config.benchmarks():
        card = Card(b.data.path)
        rows = load(replace(pins.of(b.data), limit=0), "eval.data", card)
        held_out.append((b, choose(policy, rows[: b.data.limit or None], "eval.data", card)))
        whole[b.data.path] = rows  # all of it is held out, whatever part is used
        pins.add(b.data, card)
        cards.append(card)
    return held_out, cards, whole


class Pins:
    """The commits that a folder's data sets had on the hub when they were first read."""

    def __init__(self, path: Path):
        self.path = path
        self.commits = json.loads(path.read_text()) if path.exists() else {}

    def of(self, data: DataConfig) -> DataConfig:
        """The same data set, of the commit that was read first."""
        return replace(data, revision=self.commits.get(f"{data.path}@{data.revision}", data.revision))

    def add(self, data: DataConfig, card: Card) -> None:
        if card.revision and first():
            self.commits[f"{data.path}@{data.revision}"] = card.revision
            write_atomically(self.path, json.dumps(self.commits) + "\n")


def choose(policy: Policy, rows: list[Problem], key: str, card: Card, evaluation=None, drop: bool = True) -> list[Problem]:
    """The problems to use, with their prompts. Left out and counted in the card are duplicates, problems of an evaluation set
    (name → problems), and prompts beyond their budget."""
    everything = without_duplicates(rows, card)
    if evaluation and not card.name.startswith("countdown:"):  # the embedded sets are apart by construction, and all alike
        everything = without_overlaps(everything, evaluation, card, drop)
    if not everything:
        why = ", ".join(f"{n} {reason}" for reason, n in card.dropped.items())
        raise UserError(f"{key}: nothing of {card.name} is left: {why}; --data.overlaps=keep keeps what stands in evaluation sets")
    kept, longest = prompted(policy, everything)
    card.kept, card.answers = len(kept), Counter(answer_kind(p.answer) for p in kept)
    card.lengths = [len(p.prompt_ids) for p in kept]
    if longest:
        card.dropped["longer prompts than lengths.prompt"] += len(everything) - len(kept)
        warn(
            f"{key}: {len(everything) - len(kept)} of {len(everything)} problems skipped, their prompts are longer than"
            f" lengths.prompt = {policy.prompt_budget} tokens (longest {longest})"
        )
    if not kept:
        raise UserError(f"{key}: no prompt fits lengths.prompt = {policy.prompt_budget} tokens (longest {longest})")
    return kept
