"""Problems: one schema, read from JSONL, in an order that is a function of the seed and a global cursor."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from antisd_jax.errors import UserError
from antisd_jax.rewards.boxed import last_boxed

# DAPO's request for an answer line, before and after the problem; ours asks for a box.
_WRAPPER = re.compile(
    r"^\s*Solve the following math problem step by step\.\s+The last line of your response should be of the form Answer:.*?\n\s*\n"
    r"|\n\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*$",
    re.DOTALL,
)


@dataclass(frozen=True)
class Problem:
    """One problem. index: its row in the file, which names it in every derived random number. prompt_ids: the student's."""

    index: int
    problem: str
    answer: str
    solution: str | None
    source: str
    id: str
    prompt_ids: tuple[int, ...] = ()
    rewritten: bool = False  # another data set's instruction was taken off


@dataclass(frozen=True)
class DataConfig:
    """path: a JSONL file, one {"problem", "answer", "solution", "source", "id"} a row. limit: first rows only, 0 all.

    overlaps: what becomes of training problems that stand in an evaluation set of the run, drop or keep; listed in any case.
    """

    path: str = "countdown:train"
    limit: int = 0
    overlaps: str = "drop"

    def __post_init__(self):
        if self.overlaps not in ("drop", "keep"):
            raise UserError(f"data.overlaps: got {self.overlaps!r}, wanted drop or keep")


def locate(path: str) -> Path:
    """A file of problems. countdown:train and countdown:eval are the embedded ones."""
    if path.startswith("countdown:"):
        from antisd_jax.tiny import HERE

        return HERE / f"{path.removeprefix('countdown:')}.jsonl"
    return Path(path)


def load(config: DataConfig, key: str, card=None) -> list[Problem]:
    """All problems of a file. `key` names the config section in errors.

    Rows that lack a problem or an answer are left out and counted in `card`; a line that is no JSON object is an error that gives
    its number.
    """
    path = locate(config.path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{key}.path: {config.path} cannot be read: {e.strerror if isinstance(e, OSError) else e}") from None
    problems, lacking = [], Counter()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if config.limit and len(problems) == config.limit:
            break
        found = adapt(parse_row(line, f"{config.path} row {number}"), len(problems) + sum(lacking.values()))
        if isinstance(found, str):
            lacking[found] += 1
        else:
            problems.append(found)
    if not problems:
        why = "".join(f"; {n} rows have {reason}" for reason, n in lacking.items())
        raise UserError(f"{key}.path: {config.path} holds no problems{why}")
    if card is not None:
        card.rows, card.rewritten = len(problems) + sum(lacking.values()), sum(p.rewritten for p in problems)
        card.dropped.update(lacking)
    return problems


def parse_row(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON: {e}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, wanted an object")
    return row


def adapt(row: dict, index: int) -> Problem | str:
    """A row of any of the known data sets → Problem, or what it lacks.

    Read are our own fields; "question" with an answer after "####" (GSM8K); a "solution" that boxes its answer (MATH); "prompt" as
    text or turns and reward_model.ground_truth, inside a request for "Answer:" lines (DAPO).
    """
    turns = row.get("prompt")
    problem = _first(row, "problem", "question") or (turns if isinstance(turns, str) else _last_turn(turns))
    answer, solution = _first(row, "answer", "final_answer"), _first(row, "solution")
    if "problem" not in row and "####" in answer:
        solution, _, answer = answer.rpartition("####")
    if not answer and isinstance(row.get("reward_model"), dict):
        answer = _first(row["reward_model"], "ground_truth")
    if not answer and "answer" not in row and (boxed := last_boxed(solution)):
        answer = boxed[0]
    if not problem.strip() or not answer.strip():
        return f"no {'answer' if problem.strip() else 'problem'}"
    bare = _WRAPPER.sub("", problem).strip() if _WRAPPER.search(problem) else problem
    return Problem(
        index=index,
        problem=bare,
        answer=answer.strip() if bare != problem else answer,
        solution=solution.strip() or None,
        source=_first(row, "source", "data_source"),
        id=_first(row, "id") or str(index),
        rewritten=bare != problem,
    )


def _first(row: dict, *names: str) -> str:
    """The first of the fields that says anything, as text."""
    return next((str(row[n]) for n in names if row.get(n) is not None and str(row[n]).strip()), "")


def _last_turn(turns) -> str:
    turn = turns[-1] if isinstance(turns, list) and turns else {}
    return str(turn.get("content") or "") if isinstance(turn, dict) else ""


class Order:
    """The endless sequence of problems: each epoch a fresh permutation, any place of it at once from a global cursor."""

    def __init__(self, problems: list[Problem], seed: int):
        import grain

        self.problems = problems
        self.sequence = grain.MapDataset.range(len(problems)).shuffle(seed=seed).repeat()

    def take(self, cursor: int, count: int) -> list[Problem]:
        """Problems number cursor … cursor + count − 1."""
        return [self.problems[self.sequence[i]] for i in range(cursor, cursor + count)]
