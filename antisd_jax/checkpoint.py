"""Checkpoints: Orbax behind one module, asynchronous, atomic, the last few kept."""

import logging
from dataclasses import dataclass
from pathlib import Path

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from antisd_jax.errors import UserError
from antisd_jax.log import warn
from antisd_jax.processes import by_first, gathered, several
from antisd_jax.types import TrainState


@dataclass(frozen=True)
class CheckpointConfig:
    """every: steps between checkpoints (the last step always gets one). keep: how many of the last stay. best: how many stay besides, of
    those at whose step eval/average was highest."""

    every: int = 10
    keep: int = 2
    best: int = 1


class Checkpoints:
    """A folder of checkpoints of (TrainState, JSON record). A save becomes visible only when it is complete."""

    def __init__(self, folder: Path, config: CheckpointConfig, read_only: bool = False):
        """read_only: touch nothing, so that a running trainer's folder can be looked into."""
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder, self.every = folder, config.every
        best = policies.BestN(get_metric_fn=_score, n=config.best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(config.keep), best]),
            best_fn=_score,
            cleanup_tmp_directories=True,
        )
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        try:
            self.manager = ocp.CheckpointManager(folder.resolve(), options=options, item_names=("state", "record"))
        except OSError as e:
            raise UserError(f"checkpoint folder {folder} cannot be used: {e.strerror}") from None
        # With each save Orbax would ask for a stop under the number of the training step, which is not that of a safe point.
        self.manager.reached_preemption = lambda step: False
        self._agree()

    def _agree(self) -> None:
        if len(set(map(tuple, gathered(self.steps())))) > 1:
            raise UserError(f"the processes see different checkpoints in {self.folder}: is it one shared folder?")

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
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        self.manager.save(step, args=items, metrics=None if score is None else {"score": score}, force=True)

    def restore_last(self, abstract: TrainState) -> tuple[TrainState, dict]:
        """`restore` of the last one that can be read. Damaged ones after it are said and set aside, out of the way of new ones.

        Among several processes one alone may meet the damage, while the others wait for it: then the step is marked, all end, and
        started again they pass it over.
        """
        marked = gathered([step for step in self.steps() if self._mark(step).exists()])[0]
        reasons = {step: f"checkpoint {self.folder / str(step)} could not be read" for step in marked}
        for step in reversed(self.steps()):
            if step in reasons:
                continue
            try:
                found = self.restore(step, abstract)
            except UserError as e:
                reasons[step] = str(e)
                if several():
                    self._mark(step).touch()
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
        """The state on the shardings of `abstract`, and its record. Raises UserError when the files cannot be read."""
        found = self._restore(step, state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        return found["state"], found["record"]

    def restore_weights(self, step: int, abstract):
        """The weights alone, without reading the optimizer's state."""
        wanted = {"weights": abstract}
        places = ocp.checkpoint_utils.construct_restore_args(wanted)
        return self._restore(step, state=ocp.args.PyTreeRestore(wanted, places, partial_restore=True))["state"]["weights"]

    def _restore(self, step: int, **items):
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as e:  # whatever Orbax meets in a damaged folder
            reason = str(e).splitlines()[0] if str(e) else ""
            raise UserError(f"checkpoint {self.folder / str(step)} cannot be read: {type(e).__name__}: {reason}") from None

    def close(self) -> None:
        """Waits for writes under way."""
        self.manager.wait_until_finished()
        self.manager.close()


def _score(metrics: dict) -> float:
    return metrics["score"]
