"""The graders of training, usable alone.

`antisd grade --input=FILE.jsonl --output=FILE.jsonl [--kind=math] [--workers=2] [--timeout_s=10]`
Rows hold "gold" and "prediction" as text. The same rows come out, in order, with "outcome" (correct, wrong, unparsed, timed
out), "correct", "extracted" and "seconds", of a program also "passed" and "cases". What counts as equal is written at the head
of rewards/math.py, what a gold of a program is at that of rewards/code.py.

`antisd check --data=NAME,NAME,… [--kind=math]` asks whether data sets are fit for their grader before a run finds out: it prints
their cards and grades their own answers (of programs, their own solutions), which all should be correct.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from antisd_jax.errors import UserError
from antisd_jax.files import check_output, read_rows, write_atomically
from antisd_jax.log import say
from antisd_jax.rewards.grade import Grade
from antisd_jax.rewards.pool import Pool, RewardConfig
from antisd_jax.text.card import Card, answer_kind, without_duplicates
from antisd_jax.text.data import DataConfig, load


@dataclass(frozen=True)
class GradeConfig(RewardConfig):
    kind: str = "math"
    input: str = ""
    output: str = ""

    def __post_init__(self):
        super().__post_init__()
        if not self.input or not self.output:
            raise UserError("antisd grade needs --input and --output")
        check_output(self.output)


@dataclass(frozen=True)
class CheckConfig(RewardConfig):
    kind: str = "math"
    data: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.data:
            raise UserError("antisd check needs --data=NAME,NAME,…")


def grade_all(pool: Pool, predictions: list[str], golds: list[str], name: str) -> list[Grade]:
    """Grades in order, behind a progress bar."""
    return list(tqdm(pool.each(predictions, golds), desc=name, total=len(golds), unit=" answers", smoothing=0.1))


def grade_file(config: GradeConfig) -> None:
    """Read, grade, write. Raises UserError for what the user can mend, naming the row."""
    rows = [row for _, row in read_rows(Path(config.input))]
    for i, row in enumerate(rows, 1):
        for name in ("gold", "prediction"):
            if not isinstance(row.get(name), str):
                raise UserError(f"{config.input}, row {i}: wanted {name!r} as text, got {str(row.get(name))[:80]}")
    with Pool(config) as pool:
        if told := pool.start():
            say(told)
        start = time.monotonic()
        grades = grade_all(pool, [r["prediction"] for r in rows], [r["gold"] for r in rows], Path(config.input).name)
        rate = len(rows) / max(time.monotonic() - start, 1e-9)
    write_atomically(Path(config.output), "".join(json.dumps(row | _verdict(g)) + "\n" for row, g in zip(rows, grades, strict=True)))
    counts = Counter(g.outcome for g in grades)
    found = ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common())
    say(f"{config.output}: {len(rows)} rows at {rate:.0f} a second, {found}")


def _verdict(g: Grade) -> dict:
    out = {"outcome": g.outcome, "correct": g.correct, "extracted": g.extracted, "seconds": round(g.seconds, 4)}
    return out | ({"passed": g.cases[0], "cases": g.cases[1]} if g.cases else {})


def check(config: CheckConfig) -> None:
    """Cards, and the data sets' own answers graded. Raises UserError when one of them is not correct."""
    failed = 0
    with Pool(config) as pool:
        if told := pool.start():
            say(told)
        for name in config.data:
            card = Card(name)
            problems = without_duplicates(load(DataConfig(name), "data", card), card)
            card.kept, card.answers = len(problems), Counter(answer_kind(p.answer) for p in problems)
            say("\n".join(card.lines()))
            own = [
                f"```python\n{p.solution}\n```" if config.kind == "code" else f"So the answer is \\boxed{{{p.answer}}}." for p in problems
            ]
            grades = grade_all(pool, own, [p.answer for p in problems], Path(name).stem)
            wrong = [
                f"  {p.id}: {g.outcome}{f', {g.cases[0]} of {g.cases[1]} cases' if g.cases else ''}"
                for p, g in zip(problems, grades)
                if not g.correct
            ]
            say("\n".join([f"  own answers  {len(problems) - len(wrong)} of {len(problems)} correct", *wrong]))
            failed += len(wrong)
    if failed:
        raise UserError(f"{failed} of the data sets' own answers are not graded correct")
