"""The referee's side of a program under test: a player to ask, started again when it is gone, and stand-ins for its objects."""

import builtins
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from antisd_jax.rewards.isolate import LAYERS
from antisd_jax.rewards.player import receive, send
from antisd_jax.rewards.values import decode, encode

START_S = 20.0
CASE_SHARE = 0.25  # of the time limit, that one case may take
OVERALL_SHARE = 0.8  # of the time limit: then the cases left are only counted, and the grade is given in time
LOAD_SHARE = 0.5  # that loading the program may take


@dataclass(frozen=True)
class Limits:
    """Of one answer: seconds in all, memory of the player, layers of isolation to use where the host has them."""

    timeout_s: float = 10.0
    memory_mb: int = 4096
    isolation: tuple[str, ...] = LAYERS


class ProgramError(Exception):
    """The program raised something that is not one of Python's own exceptions, or is gone."""


class Court:
    """Keeps one player for a program, and a fresh one when it is gone. Use as a context manager."""

    def __init__(self, program: str, prelude: str, limits: Limits, run: bool):
        self.request = {"program": program, "prelude": prelude, "run": run}
        self.limits = limits
        self.deadline = time.monotonic() + OVERALL_SHARE * limits.timeout_s
        self.process = self.channel = self.folder = None
        self.life = 0  # numbers the players: an object of an earlier one is gone
        self.broken: str | None = None  # why no player can be had: the program does not load
        self.unreadable = self.late = False
        self.held: list[str] = []
        self.may_put_back = lambda: False  # do arguments changed in place come back?

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def over(self) -> bool:
        """True when nothing more is to be run."""
        self.late |= time.monotonic() > self.deadline
        return self.late or self.broken is not None

    def ask(self, what: str, *args, **named):
        """What the player made of it. Raises what the program raised, ProgramError when it is gone or was late."""
        self._ready()
        life = self.life

        def outward(x):
            if isinstance(x, Standin):
                return {"remote": x.number(life)}
            raise TypeError(f"a test passes a {type(x).__name__}, which cannot be handed to the program")

        answer = self._exchange(
            {"do": what, "args": [encode(a, outward) for a in args], "named": {k: encode(v, outward) for k, v in named.items()}}
        )
        try:
            value = decode(answer.get("value"), lambda n: Standin(self, None, life, int(n)))
        except Exception as e:  # whatever a frame that means harm provokes
            self.stop()
            raise ProgramError(f"an answer that is no value: {type(e).__name__}") from None
        if value is None and self.may_put_back():
            for before, after in zip(args[1:], answer.get("args", ())):
                with suppress(Exception):  # one that holds objects of the program's stays as it was
                    _put_back(before, decode(after))
        return value

    def _ready(self) -> None:
        if self.over():
            raise ProgramError(self.broken or "no time is left")
        if self.process is None:
            self._start()
            try:
                self._exchange(self.request, LOAD_SHARE)
            except Exception as e:
                self.broken = str(e) or type(e).__name__
                self.unreadable = isinstance(e, SyntaxError)
                self.late |= isinstance(e, ProgramError) and "timed out" in self.broken
                raise ProgramError(self.broken) from None

    def _start(self) -> None:
        self.folder, self.life = tempfile.mkdtemp(prefix="player-"), self.life + 1
        mine, theirs = socket.socketpair()
        seconds = max(1.0, self.deadline - time.monotonic())
        order = {"layers": self.limits.isolation, "seconds": seconds, "memory_mb": self.limits.memory_mb}
        command = [sys.executable, "-m", "antisd_jax.rewards.player", str(theirs.fileno()), json.dumps(order)]
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"}
        environment |= {"HOME": self.folder, "TMPDIR": self.folder, "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        # A session of its own: a signal to "my group" would cross namespaces.
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, pass_fds=[theirs.fileno()], start_new_session=True, **streams
        )
        theirs.close()
        self.channel = mine
        try:
            self.held = receive(mine, time.monotonic() + START_S)["held"]
        except OSError:
            self.stop()
            raise RuntimeError("the process that holds a program did not start") from None

    def _exchange(self, request: dict, share: float = CASE_SHARE) -> dict:
        """Ask and wait, no longer than a share of the time limit."""
        nonce = secrets.token_hex(8)
        end = min(time.monotonic() + share * self.limits.timeout_s, self.deadline)
        try:
            self.channel.settimeout(max(0.001, end - time.monotonic()))
            send(self.channel, request | {"nonce": nonce})
            answer = receive(self.channel, end)
            if answer.pop("nonce", None) != nonce:
                raise ValueError("an answer to no question")
        except (OSError, ValueError, RecursionError) as e:
            self.stop()
            raise ProgramError(f"the program is gone: {e}") from None
        if "raised" in answer:
            raise _exception(answer)
        return answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()  # with namespaces: of the process outside, which ends the one inside
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.channel.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.process = None


def _exception(answer: dict) -> BaseException:
    """The nearest of Python's own exceptions, with its arguments where they are plain; else ProgramError.

    StopIteration does not cross: it would end the tests' own loops.
    """
    kind = getattr(builtins, str(answer.get("base")), None)
    with suppress(Exception):
        args = decode(answer["args"])
        if issubclass(kind, Exception) and kind not in (Exception, StopIteration, StopAsyncIteration):
            return kind(*args)
    return ProgramError(f"{answer['raised']}")


def _put_back(before, after) -> None:
    """An argument that the program changed in place."""
    if type(before) is not type(after) or before == after:
        return
    if isinstance(before, list | bytearray):
        before[:] = after
    elif isinstance(before, dict | set):
        before.clear()
        before.update(after)


class Standin:
    """In the referee, one of the program's objects: a name of its, or what a call gave that is not plain."""

    def __init__(self, court: Court, name: str | None, life: int = 0, place: int = 0):
        self._court, self._name, self._life, self._place = court, name, life, place

    def number(self, life: int) -> int:
        """Where the player keeps it."""
        if self._name is not None and self._life != life:
            found = self._court._exchange({"do": "name", "args": [self._name]})
            self._life, self._place = life, int(found["value"]["remote"])
        if self._life != life:
            raise ProgramError("the program's object is gone")
        return self._place

    def __call__(self, *args, **named):
        return self._court.ask("call", self, *args, **named)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return self._court.ask("getattr", self, name)

    def __getitem__(self, key):
        return self._court.ask("getitem", self, key)

    def __bool__(self):
        return self._court.ask("bool", self)

    def __len__(self):
        return self._court.ask("len", self)

    def __iter__(self):
        return self._court.ask("iter", self)

    def __next__(self):
        try:
            return self._court.ask("next", self)
        except ProgramError as e:
            if str(e) == "StopIteration":
                raise StopIteration from None
            raise

    def __setattr__(self, name, value):
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self._court.ask("setattr", self, name, value)

    def __setitem__(self, key, value):
        self._court.ask("setitem", self, key, value)

    def __eq__(self, other):
        """Two objects of the program are compared by it; one of it never equals a value of the tests."""
        return isinstance(other, Standin) and self._court.ask("equal", self, other)

    __hash__ = None

    def __str__(self):
        return str(self._court.ask("str", self))

    def __repr__(self):
        return str(self._court.ask("repr", self))
