"""Programs, judged by running them against tests. Two processes: the referee, here, and a player that holds the program.

The player (player.py) is locked up (isolate.py) and knows neither tests nor expected values. The referee runs the test program
with stand-ins for the program's names: each call goes to the player as plain values, and what comes back is plain, too
(values.py). So a program that exits, kills, prints "passed", patches `assert` or returns objects that are equal to everything
has only failed its case: the count (cases.py) is kept where it cannot reach.

The gold answer is one of:
- a test program: `assert f(1) == 2` and whatever else is Python; names that it does not define are the program's;
- {"tests": a test program, "entry_point": name, "prelude": text put before the program}, HumanEval's `check(candidate)` included;
- [{"input": text, "output": text}, …]: the program is run on each input and its output compared, words by words.

The data set's tests run in this process, which is limited and can be killed, but not locked up.
"""

import ast
import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from antisd_jax.rewards.boxed import after_thought
from antisd_jax.rewards.cases import GUARD, Cases, free_names, take_apart
from antisd_jax.rewards.grade import Grade
from antisd_jax.rewards.isolate import LAYERS
from antisd_jax.rewards.player import receive, send
from antisd_jax.rewards.values import allow_long_integers, decode, encode

MAX_PROGRAM = 100_000  # characters
START_S = 20.0
CASE_SHARE = 0.25  # of the time limit, that one case may take
OVERALL_SHARE = 0.8  # of the time limit: then the cases left are only counted, and the grade is given in time
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Limits:
    """Of one answer: seconds in all, memory of the player, layers of isolation to use where the host has them."""

    timeout_s: float = 10.0
    memory_mb: int = 4096
    isolation: tuple[str, ...] = LAYERS


class ProgramError(Exception):
    """The program raised something that is not one of Python's own exceptions, or is gone."""


def describe(limits: Limits, required: bool) -> str:
    """Which isolation is active here, in a sentence, from a player that was started. Raises ValueError where one that is
    `required` is not to be had."""
    with Court("", "", limits, run=False) as court:
        court.ask("len", [])
        held = court.held
    missing = [layer for layer in limits.isolation if layer not in held]
    if missing and required:
        raise ValueError(f"isolation_required, and this host does not offer {', '.join(missing)}")
    out = "programs run isolated by " + ", ".join([*held, "resource limits"])
    if missing:
        out += f"; not offered by this host: {', '.join(missing)}"
    return out


def extract(response: str, entry_point: str = "") -> str | None:
    """The program of a response: the last fenced block that defines `entry_point`, else the last Python block, else the last.

    Without a block, and with something that reads like code, the response itself. None when there is no program.
    """
    text = after_thought(response)
    if text is None:
        return None
    blocks = [(language.lower(), body) for language, body in _FENCE.findall(text)]
    defines = re.compile(
        rf"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+{re.escape(entry_point)}\b|^{re.escape(entry_point)}[ \t]*=", re.MULTILINE
    )
    python = [b for b in blocks if b[0] in ("", "python", "python3", "py")]
    for chosen in ([b for b in python if entry_point and defines.search(b[1])], [b for b in python if b[0]], python):
        if chosen:
            return chosen[-1][1]
    code = re.search(r"^[ \t]*(?:def|class|import|from|return|print|for|while|if|@)\b|^[ \t]*\w+[ \t]*=[^=]", text, re.MULTILINE)
    return text if code and not blocks and "```" not in text else None


def grade(response: str, gold: str, limits: Limits = Limits()) -> Grade:
    """Run the program of a response. Raises ValueError for a gold answer that is no test.

    correct: every case passed. wrong: some failed. unparsed: no program, or one that does not compile. timed out: the limit came.
    """
    allow_long_integers()
    tests, entry_point, prelude = read_gold(gold)
    program = extract(response, entry_point)
    if program is None or len(program) > MAX_PROGRAM or "\x00" in program:
        return Grade("unparsed", cases=(0, count(tests, entry_point)))
    with Court(program, prelude, limits, run=isinstance(tests, list)) as court:
        passed, total = _by_text(court, tests) if isinstance(tests, list) else _by_tests(court, tests, entry_point)
    if total == 0:
        raise ValueError("a test program without a test case")
    if court.unreadable:
        return Grade("unparsed", program, cases=(0, total))
    outcome = "correct" if passed == total else "timed out" if court.late else "wrong"
    return Grade(outcome, program, cases=(passed, total))


def read_gold(gold: str):
    """(test program or list of (input, output), entry point, prelude)."""
    try:
        stored = json.loads(gold)
    except ValueError:
        stored = gold
    if isinstance(stored, list) and stored and all(isinstance(c, dict) and {"input", "output"} <= set(c) for c in stored):
        return [(str(c["input"]), str(c["output"])) for c in stored], "", ""
    if isinstance(stored, dict) and isinstance(stored.get("tests"), str):
        return stored["tests"], stored.get("entry_point", ""), stored.get("prelude", "")
    if isinstance(stored, str) and stored.strip():
        return stored, "", ""
    raise ValueError(f"code answer {gold[:80]!r}, wanted a test program, {{'tests': …}} or [{{'input': …, 'output': …}}]")


def _parse(tests: str, entry_point: str) -> tuple[ast.Module, set[str]]:
    """The test program, HumanEval's check(…) called, and the names that stand for the program under test."""
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError) as e:
        raise ValueError(f"the test program is not Python: {e}") from None
    wanted = free_names(tests, entry_point)
    checks = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    inside = set()
    if entry_point and "check" in checks:
        inside = {a.arg for a in checks["check"].args.args[:1]}
        if "check" not in called:
            tree.body += ast.parse(f"check({entry_point})").body
    return tree, wanted | inside


def _by_tests(court: "Court", tests: str, entry_point: str) -> tuple[int, int]:
    tree, under_test = _parse(tests, entry_point)
    cases = Cases(court.over)
    names = {name: Standin(court, name) for name in free_names(tests, entry_point)}
    names |= {GUARD: cases, "__name__": "__main__"}
    code = take_apart(tree, under_test)
    try:
        exec(code, names)
    except BaseException:  # the tests broke off outside of any case: how many there would have been is not known
        return 0, max(cases.total, 1)
    return cases.passed, cases.total


def _by_text(court: "Court", tests: list[tuple[str, str]]) -> tuple[int, int]:
    passed = 0
    for given, wanted in tests:
        with suppress(Exception):
            passed += not court.over() and court.ask("run", given).split() == wanted.split()
    return passed, len(tests)


def count(tests, entry_point: str = "") -> int:
    """How many cases a gold answer holds, found without a program."""
    if isinstance(tests, list):
        return len(tests)
    tree, under_test = _parse(tests, entry_point)
    cases = Cases(lambda: True)
    names = {name: None for name in free_names(tests, entry_point)} | {GUARD: cases, "__name__": "__main__"}
    with suppress(BaseException):
        exec(take_apart(tree, under_test), names)
    return max(cases.total, 1)


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
        with self._distrust():
            value = decode(answer.get("value"), lambda n: Standin(self, None, life, int(n)))
            changed = [decode(a, lambda n: None) for a in answer.get("args", ())]
        if value is None:
            for before, after in zip(args[1:], changed):
                _put_back(before, after)
        return value

    def _ready(self) -> None:
        if self.over():
            raise ProgramError(self.broken or "no time is left")
        if self.process is None:
            self._start()
            try:
                self._exchange(self.request)
            except Exception as e:
                self.broken = str(e) or type(e).__name__
                self.unreadable = isinstance(e, SyntaxError | ValueError)
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
        mine.settimeout(START_S)
        self.held = receive(mine)["held"]

    def _exchange(self, request: dict) -> dict:
        nonce = secrets.token_hex(8)
        left = min(CASE_SHARE * self.limits.timeout_s, self.deadline - time.monotonic())
        try:
            self.channel.settimeout(max(0.01, left))
            send(self.channel, request | {"nonce": nonce})
            answer = receive(self.channel)
            if answer.pop("nonce", None) != nonce:
                raise ValueError("an answer to no question")
        except (OSError, ValueError, RecursionError) as e:
            self.stop()
            raise ProgramError(f"the program is gone: {e}") from None
        if "raised" in answer:
            raise _exception(answer)
        return answer

    def _distrust(self):
        return _Distrust(self)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.channel.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.process = None


class _Distrust:
    """What goes wrong in here is an answer that was not well formed."""

    def __init__(self, court: Court):
        self.court = court

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if error is not None:
            self.court.stop()
            raise ProgramError(f"an answer that is no value: {type(error).__name__}") from None


def _exception(answer: dict) -> BaseException:
    """Python's own exception of that name, else ProgramError."""
    name, text = str(answer["raised"]), str(answer.get("text", ""))
    kind = getattr(__import__("builtins"), name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with suppress(Exception):
            return kind(text)
    return ProgramError(f"{name}: {text}")


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
        return self._court.ask("next", self)

    def __str__(self):
        return str(self._court.ask("str", self))
