"""Checkpoints: Orbax behind one module, asynchronous, atomic, the last few kept."""

import logging
from dataclasses import dataclass
from pathlib import Path

import orbax.checkpoint as ocp

from antisd_jax.errors import UserError
from antisd_jax.types import TrainState


@dataclass(frozen=True)
class CheckpointConfig:
    """every: steps between checkpoints (the last step always gets one). keep: how many stay."""

    every: int = 10
    keep: int = 2


class Checkpoints:
    """A folder of checkpoints of (TrainState, JSON record). A save becomes visible only when it is complete."""

    def __init__(self, folder: Path, config: CheckpointConfig, read_only: bool = False):
        """read_only: touch nothing, so that a running trainer's folder can be looked into."""
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder, self.every = folder, config.every
        options = ocp.CheckpointManagerOptions(max_to_keep=config.keep, cleanup_tmp_directories=True)
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        try:
            self.manager = ocp.CheckpointManager(folder.resolve(), options=options, item_names=("state", "record"))
        except OSError as e:
            raise UserError(f"checkpoint folder {folder} cannot be used: {e.strerror}") from None

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

    def save(self, step: int, state: TrainState, record: dict) -> None:
        """Returns when the state may be changed again; writing goes on behind it."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        self.manager.save(step, args=items, force=True)

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
