"""Checkpoints: Orbax behind one module, asynchronous, atomic, the last few kept, and known again by their sums."""

import gc
import hashlib
import json
import logging
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from antisd_jax.arrays import word_sum
from antisd_jax.errors import UserError
from antisd_jax.log import warn
from antisd_jax.processes import by_first, gathered, outlive_silence, several
from antisd_jax.types import TrainState


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a checkpoint is written, and which stay."""

    every: int = 10  # from one checkpoint to the next (the last step always gets one), 0 none [steps; ours]
    keep: int = 2  # how many of the last checkpoints stay [checkpoints; ours]
    best: int = 1  # how many stay besides, of those at whose step eval/average was highest [checkpoints; ours]


class Checkpoints:
    """A folder of checkpoints of (TrainState, JSON record). A save becomes visible only when it is complete."""

    def __init__(self, folder: Path, config: CheckpointConfig, read_only: bool = False):
        """read_only: touch nothing, so that a running trainer's folder can be looked into."""
        for name in ("absl", "asyncio"):  # they would print every array that a full disk refuses
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder, self.every = folder, config.every
        self.writing, self.failed = None, False  # the step of the last save; did one fail?
        best = policies.BestN(get_metric_fn=_score, n=config.best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep), best]),
            best_fn=_score,
            cleanup_tmp_directories=True,
        )
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            by_first(self._drop_unreadable_scores)
        try:
            self.manager = ocp.CheckpointManager(folder.resolve(), options=options, item_names=("state", "record"))
        except (OSError, ValueError) as e:
            raise UserError(f"checkpoint folder {folder} cannot be used: {getattr(e, 'strerror', None) or e}") from None
        # With each save Orbax would ask for a stop under the number of the training step, which is not that of a safe point.
        self.manager.reached_preemption = lambda step: False
        self._agree()

    def _agree(self) -> None:
        if len(set(map(tuple, gathered(self.steps())))) > 1:
            raise UserError(f"the processes see different checkpoints in {self.folder}: is it one shared folder?")

    def _drop_unreadable_scores(self) -> None:
        """Orbax would read no checkpoint beside one whose score is damaged."""
        for file in self.folder.glob("[0-9]*/metrics/metrics"):
            with suppress(ValueError, TypeError, KeyError):
                if float(json.loads(file.read_bytes())["score"]) >= 0:
                    continue
            warn(f"{file} cannot be read: the step does not count among the best")
            file.parent.rename(file.parent.with_name("damaged-metrics"))

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def steps(self) -> list[int]:
        """Those that are complete, in order."""
        return sorted(self.manager.all_steps())

    def choose(self, step: int | None) -> int:
        """That step, or the last. Raises UserError when there is no such checkpoint, naming those that there are."""
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            what = f"no checkpoint {step}" if steps else "no checkpoints"
            raise UserError(f"{self.folder.parent} has {what}; there are: {', '.join(map(str, steps)) or 'none'}")
        return steps[-1] if step is None else step

    def due(self, step: int, last: int) -> bool:
        return step == last or (self.every > 0 and step % self.every == 0)

    def save(self, step: int, state: TrainState, record: dict, score: float | None = None) -> None:
        """Returns when the state may be changed again; writing goes on behind it. A step that is there already stays as it is.

        score: eval/average, where the step was evaluated.
        """
        if step == self.latest():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(_sealed(record, state)))
        self._written(self.writing, self.manager.wait_until_finished)
        by_first(lambda: self._refuse_full(step, sum(x.nbytes for x in jax.tree.leaves(state))))
        self.writing = step
        self._written(step, lambda: self.manager.save(step, args=items, metrics=None if score is None else {"score": score}, force=True))

    def _refuse_full(self, step: int, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise UserError(self._unwritten(step, f"it takes {size / 2**20:,.1f} MiB, and {free / 2**20:,.1f} are free"))

    def _written(self, step: int | None, f: Callable) -> None:
        """f(), in which a write that went on behind the run may turn out to have failed. Raises UserError naming the step that it was of."""
        try:
            f()
        except Exception as e:  # whatever Orbax meets
            self.failed = True
            system = re.search(r"([^:\[\]]+?) \[os_error_code", str(e))
            raise UserError(
                self._unwritten(step, system.group(1).strip() if system else f"{type(e).__name__}: {e}".splitlines()[0])
            ) from None

    def _unwritten(self, step: int | None, reason: str) -> str:
        kept = sorted(int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdigit())
        return f"checkpoint {self.folder / str(step)} cannot be written: {reason}. Complete ones: {', '.join(map(str, kept)) or 'none'}"

    def restore_last(self, abstract: TrainState) -> tuple[TrainState, dict]:
        """`restore` of the last one that can be read. Damaged ones after it are said and set aside, out of the way of new ones.

        Among several processes one alone may meet the damage, while the others wait for it: then the step is marked, all end, and
        started again they pass it over. A process that is gone breaks the others' reading as well, which is no damage: see outlive_silence.
        """
        marked = {step: self._mark(step).read_text() for step in self.steps() if self._mark(step).exists()}
        reasons = {int(step): reason for step, reason in gathered(marked)[0].items()}
        for step in reversed(self.steps()):
            if step in reasons:
                continue
            try:
                found = self.restore(step, abstract)
            except UserError as e:
                reasons[step] = str(e)
                if several():
                    outlive_silence()
                    self._mark(step).write_text(str(e))
                    raise UserError(f"{e}; started again, the run passes it over") from None
                continue
            for bad in [s for s in reasons if s > step]:
                warn(f"{reasons[bad]}; it is set aside as damaged-{bad}, and the run goes on from step {step}")
                by_first(lambda bad=bad: self._set_aside(bad))
            if reasons:
                self.manager.reload()
                self._agree()
            return found
        by_first(lambda: [self._mark(step).unlink(missing_ok=True) for step in reasons])
        raise UserError(reasons[max(reasons)])

    def _mark(self, step: int) -> Path:
        return self.folder / f".unreadable-{step}"

    def _set_aside(self, step: int) -> None:
        paths = (self.folder / f"damaged-{step}", *(self.folder / f"damaged-{step}-{n}" for n in range(2, 10_000)))
        (self.folder / str(step)).rename(next(p for p in paths if not p.exists()))
        self._mark(step).unlink(missing_ok=True)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict]:
        """The state on the shardings of `abstract`, and its record. Raises UserError when they cannot be read, or are not what was saved."""
        return self._restore(step, ocp.args.StandardRestore(abstract))

    def restore_weights(self, step: int, abstract):
        """(the weights alone, without reading the optimizer's state; the record)."""
        wanted = {"weights": abstract}
        places = ocp.checkpoint_utils.construct_restore_args(wanted)
        state, record = self._restore(step, ocp.args.PyTreeRestore(wanted, places, partial_restore=True))
        return state["weights"], record

    def _restore(self, step: int, state):
        reason = ""
        with _quiet():
            try:
                found = self.manager.restore(step, args=ocp.args.Composite(state=state, record=ocp.args.JsonRestore()))
                record, sums = _unsealed(found["record"])
            except Exception as e:  # whatever Orbax meets in a damaged folder
                reason = f"{type(e).__name__}: {e}".splitlines()[0][:200]
        if not reason:  # outside of the try: collectives that break because a process is gone are no damage
            changed = [name for name, value in _sums(found["state"]).items() if sums.get(name, value) != value]
            if not changed:
                return found["state"], record
            reason = f"array {changed[0]} is not the one that was saved"
        raise UserError(f"checkpoint {self.folder / str(step)} cannot be read: {reason}")

    def close(self) -> None:
        """Waits for writes under way. Raises UserError when one fails, if none did before."""
        if not self.failed:
            self._written(self.writing, self.manager.wait_until_finished)
        with suppress(Exception):  # what has failed fails again
            self.manager.close()


def _score(metrics: dict) -> float:
    return metrics["score"]


@contextmanager
def _quiet():
    """Where reading fails, each array's own reader, left in the middle of its work, would print a traceback as it is thrown away."""
    hooks = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = sys.excepthook = lambda *_: None
    try:
        yield
    finally:
        with warnings.catch_warnings(action="ignore"):
            gc.collect()
        sys.unraisablehook, sys.excepthook = hooks


def _sealed(record: dict, state) -> dict:
    """The record with a sum of each array, and a hash of itself: files do not tell when a bit of them has changed."""
    record = record | {"sums": _sums(state)}
    return record | {"sha256": _hash(record)}


def _unsealed(record: dict) -> tuple[dict, dict[str, int]]:
    """(the record as it was given, the sums of the arrays). Raises ValueError where it is not what was saved."""
    if record.pop("sha256", None) != _hash(record):
        raise ValueError("its record is not the one that was saved")
    return record, record.pop("sums")


def _hash(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sums(state) -> dict[str, int]:
    """By name and type of the array (read as another type it has no sum); the same on every mesh. One after another: see sharding.one_by_one."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {f"{jax.tree_util.keystr(path, simple=True, separator='/')} {x.dtype}": int(jax.device_get(word_sum(x))) for path, x in leaves}
