"""Problems by file or hub name, in an order that is a function of the seed and a global cursor."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from antisd_jax.errors import UserError
from antisd_jax.files import read_rows
from antisd_jax.text import hub
from antisd_jax.text.rows import Problem, adapt


@dataclass(frozen=True)
class DataConfig:
    """Where the training problems come from, and which of them count.

    path: a JSONL file (rows in any of the forms of text/rows.py), a short name of text/hub.py, or a hub name owner/name [–; –].
    overlaps: what becomes of training problems that stand in an evaluation set of the run, drop or keep; listed in any case [–; ours].
    """

    path: str = "countdown:train"
    subset: str = ""  # subset of a hub data set; empty: the short name's own, or the only one [–; –]
    split: str = ""  # split of a hub data set, such as train; empty: the short name's own, or the only one [–; –]
    revision: str = "main"  # branch, tag or commit of a hub data set [–; –]
    limit: int = 0  # only the first problems of the data, 0 all [problems; ours]
    overlaps: str = "drop"

    def __post_init__(self):
        if self.overlaps not in ("drop", "keep"):
            raise UserError(f"data.overlaps: got {self.overlaps!r}, wanted drop or keep")


@dataclass(frozen=True)
class Benchmark:
    """An evaluation set, what it is called in metrics and tables, and the samples that it gets for each problem."""

    name: str
    data: DataConfig
    samples: int


def benchmark(spec: str, samples: int, limit: int = 0) -> Benchmark:
    """ "NAME" or "NAME@k" → Benchmark: a file, a short name of text/hub.py, or owner/name, owner/name:split, owner/name:subset:split."""
    name, at, k = spec.rpartition("@")
    if not (at and k.isdigit()):
        name, k = spec, samples
    if int(k) < 1:
        raise UserError(f"eval.data: {spec!r} asks for no samples")
    on_hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))??(?::([\w.-]+))?", name)
    if on_hub and not Path(name).exists() and hub.knows(on_hub[1]):
        path, subset, split = (part or "" for part in on_hub.groups())
        return Benchmark(
            "_".join(filter(None, (path.rpartition("/")[2], subset, split))), DataConfig(path, subset, split, limit=limit), int(k)
        )
    short = "countdown" if name == "countdown:eval" else Path(name.replace(":", "_")).stem
    return Benchmark(short, DataConfig(name, limit=limit), int(k))


def read(config: DataConfig, key: str) -> tuple[Iterable[dict], str]:
    """(rows as they come, the revision that they have on the hub, "" for a file). countdown:train and countdown:eval are embedded."""
    if config.path.startswith("countdown:"):
        from antisd_jax.tiny import HERE

        path = HERE / f"{config.path.removeprefix('countdown:')}.jsonl"
    else:
        path = Path(config.path)
        if not path.exists() and hub.knows(config.path):
            return hub.fetch(config.path, config.subset, config.split, config.revision, key)
    return (row for _, row in read_rows(path, key)), ""


def load(config: DataConfig, key: str, card=None) -> list[Problem]:
    """All problems of a data set. `key` is the configuration's, for errors.

    Rows that lack a problem or an answer are left out and counted in `card`.
    """
    rows, revision = read(config, key)
    problems, lacking = [], Counter()
    for index, row in enumerate(rows):
        if config.limit and len(problems) == config.limit:
            break
        found = adapt(row, index)
        if isinstance(found, str):
            lacking[found] += 1
        else:
            problems.append(found)
    if not problems:
        why = "".join(f"; {n} rows have {reason}" for reason, n in lacking.items())
        raise UserError(f"{key}: {config.path} holds no problems{why}")
    if card is not None:
        card.rows, card.rewritten = len(problems) + sum(lacking.values()), sum(p.rewritten for p in problems)
        card.dropped.update(lacking)
        card.revision = revision
    return problems


class Order:
    """The endless sequence of problems: each epoch a fresh permutation, any place of it at once from a global cursor."""

    def __init__(self, problems: list[Problem], seed: int):
        import grain

        self.problems = problems
        self.sequence = grain.MapDataset.range(len(problems)).shuffle(seed=seed).repeat()

    def take(self, cursor: int, count: int, part: int = 0, parts: int = 1) -> list[Problem]:
        """Problems number cursor … cursor + count − 1, or of them the share of one of several processes (`parts` divides `count`).

        The cursor is the run's, not a process's: another number of processes goes on where it stands.
        """
        size = count // parts
        begin = cursor + part * size
        return [self.problems[self.sequence[i]] for i in range(begin, begin + size)]
