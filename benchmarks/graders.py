"""What the graders do with other projects' tests, with answers that mean harm, and how fast they are → benchmarks/RESULTS.md.

python benchmarks/graders.py [--answers=10000] [--run=runs/smoke]    about 20 minutes on 2 cores; needs ../shared/data beside the checkout
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from results_file import write_part  # noqa: E402
from test_math_grader import EVAL, SHARED, SUITES, _another, compare  # noqa: E402
from test_rewards import NASTY  # noqa: E402

from antisd_jax.files import read_jsonl  # noqa: E402
from antisd_jax.results import markdown  # noqa: E402
from antisd_jax.rewards.pool import Pool, RewardConfig  # noqa: E402
from antisd_jax.text.data import DataConfig, load  # noqa: E402


def suites() -> str:
    """Other projects' own tests of their graders."""
    table, reasons = [["suite", "cases", "agree", "by policy", "wrong"]], []
    for suite in SUITES:
        rows, policy, wrong = compare(suite)
        table.append([suite, *map(str, (len(rows), len(rows) - len(policy) - len(wrong), len(policy), len(wrong)))])
        reasons += [f"- {suite}: gold `{gold!r}`, answer `{answer!r}`: {why or 'wrong'}" for gold, answer, why in policy + wrong]
    return "\n".join([markdown(table), "", "Where they disagree, and why:", "", *reasons])


def throughput(rounds: int = 5) -> str:
    """Answers a second of a warm pool of two workers, median of several rounds, by what has to be done for them."""
    golds = [p.answer for name in EVAL for p in load(DataConfig(str(SHARED / "eval" / f"{name}.jsonl")), "data")]
    boxed = "So the answer is $\\boxed{{{}}}$."
    hard = [(row["prediction"], row["gold"]) for suite in SUITES for row in compare(suite)[0]]
    kinds = {
        "golds of the evaluation sets, boxed": [(boxed.format(g), g) for g in golds],
        "the same with a digit changed": [(boxed.format(_another(g)), g) for g in golds if any(c.isdigit() for c in g)],
        "the suites above": hard,
    }
    table = [["answers", "number", "correct", "a second", "least … most"]]
    with Pool(RewardConfig("math", workers=2)) as pool:
        pool.start()
        for kind, pairs in kinds.items():
            rates = []
            for _ in range(rounds):
                start = time.monotonic()
                grades = pool.grade(*map(list, zip(*pairs)))
                rates.append(len(pairs) / (time.monotonic() - start))
            right = sum(g.correct for g in grades)
            table.append([kind, str(len(pairs)), str(right), f"{statistics.median(rates):.0f}", f"{min(rates):.0f} … {max(rates):.0f}"])
    return markdown(table)


def status(pid: int) -> tuple[float, int]:
    """(MiB resident, sockets open) of a process; nothing of one that is gone."""
    try:
        resident = next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS"))
        sockets = sum("socket" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except (OSError, StopIteration):
        return 0.0, 0
    return int(resident.split()[1]) / 1024, sockets


def campaign(answers: int, timeout: float = 2.0) -> str:
    """Answers made to hang, crash or break out, in a pool of two workers with a time limit of two seconds."""
    outcomes, slowest, memory, sockets = Counter(), 0.0, [], 0
    with tempfile.TemporaryDirectory() as folder, Pool(RewardConfig("math", workers=2, timeout_s=timeout)) as pool:
        back = os.getcwd()
        os.chdir(folder)
        pool.start()
        begin = time.monotonic()

        @given(batch=st.lists(NASTY, min_size=16, max_size=16), boxed=st.booleans())
        @settings(max_examples=-(-answers // 16), deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def attack(batch, boxed):
            nonlocal slowest, sockets
            grades = pool.grade([f"\\boxed{{{a}}}" if boxed else a for a in batch], ["3"] * len(batch))
            outcomes.update(g.outcome for g in grades)
            slowest = max(slowest, *(g.seconds for g in grades))
            seen = [status(w.process.pid) for w in pool.workers if w.process]
            memory.append(max((m for m, _ in seen), default=0.0))
            sockets += sum(s for _, s in seen)
            assert pool.grade(["\\boxed{3}"], ["3"])[0].correct

        attack()
        seconds = time.monotonic() - begin
        left = os.listdir(folder)
        os.chdir(back)
    tenth = max(len(memory) // 10, 1)
    found = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common())
    return (
        f"{outcomes.total()} answers in {seconds:.0f} s: {found}. Slowest {slowest:.1f} s with a limit of {timeout:.0f} s a worker"
        f" (a replacement's start included). A worker's memory: median {statistics.median(memory[:tenth]):.0f} MiB in the first tenth,"
        f" {statistics.median(memory[-tenth:]):.0f} MiB in the last, {max(memory):.0f} MiB at most. Files left: {len(left)}. Sockets open: {sockets}."
        " After every sixteen a plain answer was graded correct."
    )


def programs() -> str:
    """The canonical solutions of HumanEval+ and MBPP+."""
    table = [["set", "programs", "pass every case", "cases", "seconds, 2 workers"]]
    with Pool(RewardConfig("code", workers=2, timeout_s=120)) as pool:
        told = pool.start()
        for name in ("humaneval_plus", "mbpp_plus"):
            problems = load(DataConfig(str(SHARED / "code" / f"{name}.jsonl")), "data")
            start = time.monotonic()
            grades = pool.grade([f"```python\n{p.solution}\n```" for p in problems], [p.answer for p in problems])
            seconds = time.monotonic() - start
            counts = len(problems), sum(g.correct for g in grades), sum(g.cases[1] for g in grades)
            table.append([name, *map(str, counts), f"{seconds:.0f}"])
    return f"{markdown(table)}\n\n{told[0].upper() + told[1:]}."


def beside_the_teacher(run: str) -> str:
    """A step's grading beside its teacher's pass, in a run's log."""
    rows = [r for r in read_jsonl(Path(run) / "metrics.jsonl") if r.get("timing_s/teacher", 0) > 0][1:]
    grade, teacher = ([r[f"timing_s/{name}"] for r in rows] for name in ("reward", "teacher"))
    longer = sum(g > t for g, t in zip(grade, teacher))
    return (
        f"{Path(run).name}, {len(rows)} steps of 256 rollouts: grading {statistics.median(grade):.3f} s (at most {max(grade):.3f}),"
        f" teacher's pass {statistics.median(teacher):.3f} s (at least {min(teacher):.3f}); grading took longer in {longer} of them."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--run", default="runs/smoke")
    a = parser.parse_args()
    parts = [
        ("Other projects' suites", suites()),
        ("Gold against gold, and throughput", throughput()),
        ("Programs", programs()),
        ("Grading beside the teacher's pass", beside_the_teacher(a.run)),
        ("Answers that mean harm", campaign(a.answers)),
    ]
    text = "`python benchmarks/graders.py`; 2 CPU cores.\n"
    write_part("Graders", text + "".join(f"\n## {title}\n\n{body}\n" for title, body in parts))


if __name__ == "__main__":
    main()
