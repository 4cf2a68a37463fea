"""One schema for problems, and the forms in which data sets come."""

import json
import re
from dataclasses import dataclass

from antisd_jax.rewards.boxed import last_boxed

# DAPO's request for an answer line, before and after the problem; ours asks for a box.
_WRAPPER = re.compile(
    r"^\s*Solve the following math problem step by step\.\s+The last line of your response should be of the form Answer:.*?\n\s*\n"
    r"|\n\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*$",
    re.DOTALL,
)


# HumanEval/32 as published unpacks the answer where it means the input, so that no program passes it.
_BROKEN, _MENDED = "assert _poly(*candidate(*inp), inp) <= 0.0001", "assert abs(_poly(*inp, candidate(*inp))) <= 0.0001"


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

    @property
    def gold(self) -> str:
        """The answer as it is logged: a test program can be half a megabyte, and would stand in every row."""
        return self.answer if len(self.answer) <= 500 else self.answer[:500] + "…"


def adapt(row: dict, index: int) -> Problem | str:
    """A row of any of the known data sets → Problem, or what it lacks.

    Read are our own fields; "question" with an answer after "####" (GSM8K); a "solution" that boxes its answer (MATH); "prompt" as
    text or turns and reward_model.ground_truth, inside a request for "Answer:" lines (DAPO); programming problems (`_program`).
    """
    if "entry_point" in row or "test" in row or "tests" in row:
        row = _program(row)
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
        id=_first(row, "id", "unique_id", "problem_idx") or str(index),
        rewritten=bare != problem,
    )


def _first(row: dict, *names: str) -> str:
    """The first of the fields that says anything, as text."""
    found = next((row[n] for n in names if row.get(n) is not None and str(row[n]).strip()), "")
    return json.dumps(found) if isinstance(found, list | dict) else str(found)


def _program(row: dict) -> dict:
    """A programming problem in our own fields: its answer is what rewards/code.py takes for gold.

    Read are "test", "tests" or "answer" as the test program, "entry_point", "prompt" or "problem", "canonical_solution", "code" or
    "solution" (HumanEval, MBPP, with and without the plus). A problem that is itself the head of the program stands before it; one
    that does not name its function is shown its first test.
    """
    problem, name = _first(row, "problem", "prompt"), _first(row, "entry_point")
    tests = _first(row, "answer", "tests", "test").replace(_BROKEN, _MENDED)
    solution = _first(row, "solution", "canonical_solution", "code")
    head = bool(name) and re.search(rf"^def {re.escape(name)}\b", problem, re.MULTILINE) is not None
    if head and solution and not re.search(rf"^def {re.escape(name)}\b", solution, re.MULTILINE):
        solution = problem + solution
    shown = row.get("test_list")
    if isinstance(shown, list) and shown and name not in problem:
        problem += f"\n\nYour program should pass this test:\n{shown[0]}"
    gold = {"tests": tests, "entry_point": name, "prelude": problem if head else ""} if tests.strip() else ""
    fixed = {"problem": problem, "answer": gold, "solution": solution, "id": _first(row, "id", "task_id")}
    return {"source": _first(row, "source")} | fixed


def _last_turn(turns) -> str:
    turn = turns[-1] if isinstance(turns, list) and turns else {}
    return str(turn.get("content") or "") if isinstance(turn, dict) else ""
