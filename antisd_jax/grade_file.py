"""`antisd grade`: the graders of training, usable alone.

`antisd grade --input=FILE.jsonl --output=FILE.jsonl [--kind=math] [--workers=2] [--timeout_s=10]`
Rows hold "gold" and "prediction" as text. The same rows come out, in order, with "outcome" (correct, wrong, unparsed, timed
out), "correct", "extracted" and "seconds". What counts as equal is written at the head of rewards/math.py.
"""

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from antisd_jax.errors import UserError
from antisd_jax.log import check_output, read_rows, say, write_atomically
from antisd_jax.rewards.pool import Pool, RewardConfig

BATCH = 2000  # rows between two progress lines


@dataclass(frozen=True)
class GradeConfig:
    input: str = ""
    output: str = ""
    kind: str = "math"
    workers: int = 2
    timeout_s: float = 10.0
    memory_mb: int = 4096

    def __post_init__(self):
        if not self.input or not self.output:
            raise UserError("antisd grade needs --input and --output")
        if self.workers < 1 or self.timeout_s <= 0:
            raise UserError(f"workers and timeout_s: got {self.workers} and {self.timeout_s}, wanted at least 1 and above 0")
        check_output(self.output)


def grade_file(config: GradeConfig) -> None:
    """Read, grade, write. Raises UserError for what the user can mend, naming the row."""
    rewards = RewardConfig(config.kind, config.workers, config.timeout_s, config.memory_mb)
    rows = read_rows(Path(config.input))
    for i, row in enumerate(rows, 1):
        for name in ("gold", "prediction"):
            if not isinstance(row.get(name), str):
                raise UserError(f"{config.input}, row {i}: wanted {name!r} as text, got {str(row.get(name))[:80]}")
    grades = []
    with Pool(rewards) as pool:
        pool.grade([r["prediction"] for r in rows[:1]], [r["gold"] for r in rows[:1]])  # workers are warm before the clock starts
        start = time.monotonic()
        for done in range(0, len(rows), BATCH):
            part = rows[done : done + BATCH]
            grades += pool.grade([r["prediction"] for r in part], [r["gold"] for r in part])
            say(f"graded {len(grades)} of {len(rows)} rows, {len(grades) / (time.monotonic() - start):.0f} a second")
    out = [
        row | {"outcome": g.outcome, "correct": g.correct, "extracted": g.extracted, "seconds": round(g.seconds, 4)}
        for row, g in zip(rows, grades, strict=True)
    ]
    write_atomically(Path(config.output), "".join(json.dumps(row) + "\n" for row in out))
    counts = Counter(g.outcome for g in grades)
    say(f"{config.output}: {len(rows)} rows, " + ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common()))
