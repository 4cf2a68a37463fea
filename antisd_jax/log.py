"""What a run writes and prints: metrics.jsonl, rollouts.jsonl, TensorBoard events, progress. And its stopwatch."""

import fcntl
import json
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl, write_atomically
from antisd_jax.processes import first, gathered

CLOCKED = ("timing_s/", "perf/")  # metrics that a clock decides: all others repeat exactly when a run is repeated


class Log:
    """The run folder's files, written by process 0; all know the metrics so far. Lines past the last checkpoint's step, left by a process
    that died after it, are dropped; and where that step was not finished, all of its lines but the rollouts'."""

    FILES = ("metrics.jsonl", "rollouts.jsonl", "evaluations.jsonl")

    def __init__(self, folder: Path, step: int, finished: bool = True):
        self.files, self.board = {}, None
        if first():
            self._open(folder, step, step if finished else step - 1)
        self.history = gathered(read_jsonl(folder / "metrics.jsonl") if first() else None)[0]

    def _open(self, folder: Path, step: int, finished: int) -> None:
        from tensorboardX import SummaryWriter

        for name in self.FILES:
            last = step if name == "rollouts.jsonl" else finished
            kept = [row for row in read_jsonl(folder / name) if row["step"] <= last]
            write_atomically(folder / name, "".join(_line(row) for row in kept))
        self.files = {name: open(folder / name, "a", encoding="utf-8") for name in self.FILES}
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=finished + 1)

    def metrics(self, step: int, values: dict) -> None:
        row = {"step": step} | values
        self.history.append(row)
        self._append("metrics.jsonl", [row])
        if not self.board:
            return
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.board.add_scalar(name, value, step)
        self.board.flush()

    def rollouts(self, rows: list[dict]) -> None:
        self._append("rollouts.jsonl", rows)

    def generations(self, step: int, rows: list[dict]) -> None:
        self._append("evaluations.jsonl", [{"step": step} | row for row in rows])

    def _append(self, name: str, rows: list[dict]) -> None:
        if not self.files:
            return
        try:
            self.files[name].write("".join(_line(row) for row in rows))
            self.files[name].flush()
        except OSError as e:
            raise UserError(f"{self.files[name].name} cannot be written: {e.strerror}") from None

    def close(self) -> None:
        for file in self.files.values():
            with suppress(OSError):  # of lines that could not be written, and were said
                file.close()
        if self.board:
            self.board.close()


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def say(text: str) -> None:
    if first():
        print(text, flush=True)


def warn(text: str) -> None:
    if first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Stopwatch:
    """Seconds spent in named phases of a step, and in compiling within them."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.compiling: dict[str, float] = {}
        self.phase: str | None = None
        self.begun = time.monotonic()
        self.laps = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_) -> None:
        if self.phase and event.endswith("backend_compile_duration"):
            self.compiling[self.phase] = self.compiling.get(self.phase, 0.0) + seconds

    @contextmanager
    def time(self, phase: str):
        outer, self.phase = self.phase, phase
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - start
            self.phase = outer

    def left(self, step: int, last: int) -> float:
        """Seconds to the last step at the mean pace of the steps so far, compilation included."""
        return (time.monotonic() - self.begun) / max(self.laps, 1) * (last - step)

    def lap(self) -> tuple[dict[str, float], dict[str, float]]:
        """(seconds, compile seconds) by phase since the last lap."""
        out = self.seconds, self.compiling
        self.laps += 1
        self.seconds, self.compiling = {}, {}
        return out


def speed(seconds: dict[str, float], tokens: int) -> dict:
    """timing_s/… of each phase and of the step, and perf/throughput: response tokens a second of the step."""
    total = sum(seconds.values())
    return {f"timing_s/{k}": v for k, v in seconds.items()} | {"timing_s/step": total, "perf/throughput": tokens / max(total, 1e-9)}


def duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{s:02d}s"


def progress(step: int, last: int, m: dict, seconds_left: float) -> str:
    """The one line a step is followed by."""
    parts = [f"step {step}/{last}"]
    if "critic/rewards/mean" in m:
        parts.append(f"reward {m['critic/rewards/mean']:.3f}")
    if "antisd/gate/statistic" in m:
        state = ("open" if m["antisd/gate/open"] else "closed") if "antisd/gate/level" in m else "warm-up"
        parts.append(f"gate {state} λ {m['antisd/lambda']:.2f}")
    if "response_length/mean" in m:
        parts += [f"length {m['response_length/mean']:.0f}", f"{m['perf/throughput']:.0f} tok/s", f"{duration(seconds_left)} left"]
    if "eval/average" in m:
        parts.append(f"eval {m['eval/average']:.3f} [{m['eval/average_low']:.3f}, {m['eval/average_high']:.3f}]")
    return "  ".join(parts)


def lock_folder(folder: Path):
    """A lock on the run folder that ends with this process, however it ends. Raises UserError when another holds it."""
    lock = open(folder / ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"output: another process is running in {folder}") from None
    return lock


def make_folder(path: str) -> Path:
    """The run folder, writable. Raises UserError saying why not."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise UserError(f"output: {path} cannot be written: {e.strerror}") from None
    return folder
