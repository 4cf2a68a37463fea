"""Several processes that run the same program, each on its own devices: how they meet, what they tell each other, how they end.

Arrays travel by the collectives of compiled programs. Texts (grades, what process 0 decided) go through one gather of bytes. Beside
both, each process says every second to the coordinator, process 0, that it is alive; one that is silent for too long, or that gave up,
is named by all others, which end.

A process that is asked to stop (SIGTERM) stops at a safe point: a place which all reach equally often, and where the last complete step
is whole. All stop at the same one.
"""

import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax
import numpy as np

from antisd_jax.errors import UserError

AGAIN = 75  # exit status of a run that was asked to stop: the same command goes on
BEAT = 1.0  # seconds between two signs of life


class Preempted(Exception):
    """Asked to stop, at a safe point."""


@dataclass(frozen=True)
class ProcessConfig:
    """The processes of a run on several hosts."""

    coordinator: str = ""  # HOST:PORT of process 0, the same in all; "auto": as a TPU pod, SLURM or Kubernetes say; "": one process [–; –]
    count: int = 1  # how many there are, where a coordinator is named by HOST:PORT [processes; –]
    number: int = 0  # which of them this one is, counted from 0 [–; –]
    patience: int = 60  # time without a sign of life after which the others give a process up; at least 5 [seconds; ours]

    def __post_init__(self):
        if self.patience < 5:
            raise UserError(f"processes.patience: got {self.patience}, wanted at least 5 seconds")
        if self.coordinator not in ("", "auto"):
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdigit():
                raise UserError(f"processes.coordinator: got {self.coordinator!r}, wanted HOST:PORT, auto or nothing")
        if not 0 <= self.number < self.count:
            raise UserError(f"processes.number: got {self.number}, wanted 0 … processes.count − 1 = {self.count - 1}")


@dataclass
class _State:
    """Of this process. points: safe points passed so far. aborted: what C calls when this process is."""

    number: int = 0
    count: int = 1
    points: int = 0
    asked: bool = False
    watch: "Watch | None" = None
    aborted: object = None


_here = _State()


def join(config: ProcessConfig) -> None:
    """Meet the others; before anything is computed. Raises UserError when they cannot be met."""
    if not config.coordinator:
        return
    from jax._src.distributed import global_state  # the coordinator's store of short texts has no public name

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    named = dict(coordinator_address=config.coordinator, num_processes=config.count, process_id=config.number)
    named = named if config.coordinator != "auto" else {}
    if named:
        _say_before_aborting(config.coordinator)
    try:
        jax.distributed.initialize(
            **named,
            initialization_timeout=max(config.patience, 300),  # hosts start one after another
            heartbeat_timeout_seconds=10**8,  # jax's go by the wall clock, which may jump; ours do not, and name the host
            shutdown_timeout_seconds=config.patience,
        )
        _here.number, _here.count = jax.process_index(), jax.process_count()
    except (RuntimeError, ValueError) as e:
        raise UserError(f"processes.coordinator: {config.coordinator} cannot be met: {str(e).splitlines()[0]}") from None
    if _here.count > 1:
        _here.watch = Watch(global_state.client, _here.number, config.patience)
        if not named:
            _say_before_aborting(global_state.coordinator_address)


def _on_abort(handler) -> None:
    """C calls it, or nothing (None). Python's own handlers would wait for its main thread, which does not come any more."""
    c_signal = ctypes.CDLL(None).signal
    c_signal.argtypes, _here.aborted = (ctypes.c_int, ctypes.c_void_p), handler  # kept, as long as it may be called
    c_signal(signal.SIGABRT, handler)


def _say_before_aborting(coordinator: str) -> None:
    """jax aborts a process as soon as the connection to the coordinator breaks, before the watch can name it: so the abort does.

    An abort for another reason, while the coordinator can be reached, stays what it is.
    """
    host, _, port = coordinator.rpartition(":")

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def heard(number):
        ctypes.CDLL(None).signal(number, None)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as e:
            why = f"process 0 at {coordinator}, the coordinator, is gone ({e})"
            os.write(2, f"error: {why}; this process ends, too. The same command continues from the last checkpoint\n".encode())
            os._exit(1)
        os.kill(os.getpid(), number)

    _on_abort(heard)


def first() -> bool:
    """Is this process 0, which logs and prints?"""
    return _here.number == 0


def several() -> bool:
    return _here.count > 1


def gathered(value) -> list:
    """What every process says, in their order; anything that JSON can hold. All must call it."""
    if _here.count == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(text)])).reshape(-1)
    room = 1 << int(sizes.max() - 1).bit_length()  # few sizes, few programs
    rows = multihost_utils.process_allgather(np.pad(text, (0, room - len(text)))).reshape(_here.count, -1)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes)]


def mine(values: list) -> list:
    """This process's part of a list that all have: together with the others', in their order, the whole."""
    ends = np.linspace(0, len(values), _here.count + 1).astype(int)
    return values[ends[_here.number] : ends[_here.number + 1]]


def by_first(f: Callable):
    """f() in process 0 alone, which gets what it gives; the others get None. A UserError or OSError there is raised in all."""
    out = error = None
    if first():
        try:
            out = f()
        except (UserError, OSError) as e:
            error = _reason(e)
    error = gathered(error)[0]
    if error is not None:
        raise UserError(error)
    return out


def _reason(e: UserError | OSError) -> str:
    return str(e) if isinstance(e, UserError) else f"{e.filename or 'a file'}: {e.strerror or e}"


def first_ahead(f: Callable):
    """f() in process 0, and then in the others, which find the files that it left."""
    out = by_first(f)
    return out if first() else f()


@contextmanager
def stoppable():
    """SIGTERM is heard, and heeded at the next safe point."""

    def hear(*_):
        _here.asked = True

    if _here.count > 1 or threading.current_thread() is not threading.main_thread():
        yield  # among several processes jax hears it
        return
    before, _here.asked = signal.signal(signal.SIGTERM, hear), False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def safe_point() -> None:
    """Raises Preempted, in all processes at the same of these, some time after one of them was asked to stop."""
    _here.points += 1
    if _here.count > 1:
        from jax.experimental import multihost_utils

        _here.asked = _here.asked or multihost_utils.reached_preemption_sync_point(_here.points)
    if _here.asked:
        raise Preempted


def outlive_silence() -> None:
    """Returns after the time in which the watch finds out that another process is gone, and ends this one: what broke has another reason."""
    if _here.watch:
        time.sleep(_here.watch.patience + 15)  # its beats, its look at the clock, and its farewell


@contextmanager
def together():
    """Run what all of several processes do: when it fails in one, the others are told why, and end. By itself a process is left alone."""
    try:
        yield
        if _here.watch:
            gathered("done")
            _here.watch.over = True
            jax.distributed.shutdown()
            _on_abort(None)
    except BaseException as e:
        if not _here.watch:
            raise
        if re.match("[A-Z_]+: ", str(e)):  # a collective broke off, it may be
            outlive_silence()
        foreseen = isinstance(e, (UserError, OSError))
        if not foreseen:
            traceback.print_exc()
        reason = _reason(e) if foreseen else f"{type(e).__name__}: {e}"
        print(f"error: {reason}", file=sys.stderr, flush=True)
        _here.watch.tell(reason)
        _here.watch.exit(2 if foreseen else 1)


@dataclass
class Watch:
    """Two threads: one exchanges signs of life through the coordinator, which may hang; the other looks at the clock and never does."""

    client: object
    number: int
    patience: float
    beats: dict[str, tuple[str, float]] = field(default_factory=dict)  # process → what it last said, and when that was new
    answered: float = field(default_factory=time.monotonic)  # when the coordinator last did
    over: bool = False

    def __post_init__(self):
        for work in (self.exchange, self.judge):
            threading.Thread(target=work, daemon=True).start()

    def exchange(self) -> None:
        host, beat = socket.gethostname(), 0
        while not self.over:
            beat += 1
            try:
                self.client.key_value_set(f"antisd/alive/{self.number}", f"{host} {beat}", allow_overwrite=True)
                said = self.client.key_value_dir_get("antisd/alive/")
                gone = self.client.key_value_dir_get("antisd/gone/")
            except Exception:  # whatever the connection meets: the clock judges
                time.sleep(BEAT)
                continue
            self.answered = time.monotonic()
            for key, text in said:
                who = key.rpartition("/")[2]
                if self.beats.get(who, ("", 0.0))[0] != text:
                    self.beats[who] = text, self.answered
            for key, reason in gone:
                self.end(f"{self.name(key.rpartition('/')[2])} has ended: {reason}")
            time.sleep(BEAT)

    def judge(self) -> None:
        while not self.over:
            time.sleep(BEAT)
            now = time.monotonic()
            if now - self.answered > self.patience:
                self.end(f"{self.name('0')}, the coordinator, has not answered for {self.patience} s")
            for who, (_, when) in list(self.beats.items()):
                if self.answered - when > self.patience:
                    self.end(f"{self.name(who)} has given no sign of life for {self.patience} s")

    def name(self, who: str) -> str:
        host = self.beats.get(who, ("unknown ", 0.0))[0].partition(" ")[0]
        return f"process {who} on {host}"

    def end(self, reason: str) -> None:
        if not self.over:
            print(
                f"error: {reason}; this process ends, too. The same command continues from the last checkpoint", file=sys.stderr, flush=True
            )
            self.exit(1)

    def exit(self, status: int) -> None:
        sys.stdout.flush()
        if not self.number:
            time.sleep(3 * BEAT)  # without the coordinator the others would not learn why
        os._exit(status)

    def tell(self, reason: str) -> None:
        self.over = True
        try:
            self.client.key_value_set(f"antisd/gone/{self.number}", reason, allow_overwrite=True)
        except Exception:  # the coordinator is gone: it will be missed by its silence
            pass
