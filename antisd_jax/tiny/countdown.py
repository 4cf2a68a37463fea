"""The embedded task: problems, the search that answers them in writing, and the texts the policy is pre-trained on.

A response tries expressions from left to right, writes every intermediate result and a verdict, and goes on or answers:

    Let me try 3+5=8*2=16 no
    Wait, 3*5=15+2=17 yes
    So \\boxed{(3*5)+2}

Giving up looks the same as having found it: "no", "So" and a guess. That is the shortcut a privileged reader takes too.
"""

import zlib
from dataclasses import dataclass
from itertools import combinations_with_replacement, permutations, product

import numpy as np

LARGEST = 12  # of the numbers given
LIMIT = 39  # of targets and intermediate results; beyond it a trial says "out"
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


@dataclass(frozen=True)
class Trial:
    """((a first b) second c), written from left to right."""

    numbers: tuple[int, int, int]
    operations: tuple[str, str]

    def results(self) -> list[int | None]:
        """The intermediate and the final result; None, and nothing after it, once one leaves 0 … LIMIT."""
        out, value = [], self.numbers[0]
        for op, n in zip(self.operations, self.numbers[1:]):
            value = OPERATIONS[op](value, n)
            if not 0 <= value <= LIMIT:
                return [*out, None]
            out.append(value)
        return out

    def written(self) -> str:
        text = str(self.numbers[0])
        for op, n, result in zip(self.operations, self.numbers[1:], self.results()):
            text += f"{op}{n}={'out' if result is None else result}"
        return text

    def boxed(self) -> str:
        (a, b, c), (first, second) = self.numbers, self.operations
        return f"\\boxed{{({a}{first}{b}){second}{c}}}"


@dataclass(frozen=True)
class Puzzle:
    numbers: tuple[int, int, int]
    target: int
    hits: tuple[Trial, ...]
    misses: tuple[Trial, ...]

    @property
    def statement(self) -> str:
        return f"Use {', '.join(map(str, self.numbers))} to make {self.target}."

    @property
    def held_out(self) -> bool:
        """One puzzle in eight, by a hash of its sorted numbers and target, is never trained on."""
        return zlib.crc32(f"{sorted(self.numbers)} {self.target}".encode()) % 8 == 0

    def row(self, split: str, index: int) -> dict:
        """The puzzle in the schema of every data file."""
        trial = self.hits[0]
        return {
            "problem": self.statement,
            "answer": f"{self.target} from {' '.join(map(str, self.numbers))}",
            "solution": direct(trial),
            "source": "countdown",
            "id": f"countdown-{split}-{index:05d}",
        }


def puzzles(seed: int) -> list[Puzzle]:
    """Every solvable puzzle, once, in an order and with a spelling of its numbers that the seed decides."""
    rng = np.random.default_rng(seed)
    out = []
    for numbers in combinations_with_replacement(range(1, LARGEST + 1), 3):
        trials = {Trial(p, ops) for p in set(permutations(numbers)) for ops in product(OPERATIONS, repeat=2)}
        trials = sorted(trials, key=lambda t: (t.numbers, t.operations))
        finals = {t: t.results()[-1] for t in trials}
        for target in sorted({v for v in finals.values() if v is not None}):
            hits = [t for t in trials if finals[t] == target]
            misses = [t for t in trials if finals[t] != target]
            hits = tuple(hits[i] for i in rng.permutation(len(hits)))
            out.append(Puzzle(tuple(int(n) for n in rng.permutation(numbers)), target, hits, tuple(misses)))
    return [out[i] for i in rng.permutation(len(out))]


def direct(trial: Trial) -> str:
    """The answer of someone who knows it."""
    return f"Let me try {trial.written()} yes\nSo {trial.boxed()}"


def search(puzzle: Puzzle, rng: np.random.Generator, give_up: float, most: int) -> tuple[str, bool]:
    """A noisy search: random trials without repeats, giving up with a guess after a failure with probability `give_up`.

    Returns the text and whether it ends in a right answer. `most` bounds the number of trials; the last failure gives up.
    """
    trials = [*puzzle.hits, *puzzle.misses]
    order = [trials[i] for i in rng.permutation(len(trials))]
    lines, hits = [], set(puzzle.hits)
    for n, trial in enumerate(order[:-1]):
        lines.append(f"{trial.written()} {'yes' if trial in hits else 'no'}")
        if trial in hits:
            return _join(lines, trial), True
        if n + 1 == most or rng.random() < give_up:
            break
    guess = order[len(lines)]
    return _join(lines, guess), guess in hits


def informed(puzzle: Puzzle, shown: Trial, rng: np.random.Generator, stray: float) -> str:
    """The response of a reader who has been shown a solution: it, at once; with probability `stray` after failed trials.

    After a failure the reader mostly stops searching and answers.
    """
    lines = []
    while puzzle.misses and rng.random() < stray:
        lines.append(f"{puzzle.misses[rng.integers(len(puzzle.misses))].written()} no")
        if rng.random() < 0.6:
            return _join(lines, shown)
    lines.append(f"{shown.written()} yes")
    return _join(lines, shown)


def _join(lines: list[str], answer: Trial) -> str:
    return "Let me try " + "\nWait, ".join(lines) + f"\nSo {answer.boxed()}"
