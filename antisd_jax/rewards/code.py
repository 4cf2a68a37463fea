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
from contextlib import contextmanager, suppress

from antisd_jax.rewards.boxed import after_thought
from antisd_jax.rewards.cases import GUARD, Cases, free_names, take_apart
from antisd_jax.rewards.court import Court, Limits, Standin
from antisd_jax.rewards.grade import Grade
from antisd_jax.rewards.values import allow_long_integers

MAX_PROGRAM = 100_000  # characters


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
    blocks = _blocks(text)
    defines = re.compile(
        rf"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+{re.escape(entry_point)}\b|^{re.escape(entry_point)}[ \t]*=", re.MULTILINE
    )
    python = [b for b in blocks if b[0] in ("", "python", "python3", "py")]
    for chosen in ([b for b in python if entry_point and defines.search(b[1])], [b for b in python if b[0]], python):
        if chosen:
            return chosen[-1][1]
    code = re.search(r"^[ \t]*(?:def|class|import|from|return|print|for|while|if|@)\b|^[ \t]*\w+[ \t]*=[^=]", text, re.MULTILINE)
    return text if code and not blocks and "```" not in text else None


def _blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block that is closed."""
    blocks, language, body = [], None, []
    for line in text.splitlines(keepends=True):
        mark = line.strip()
        if language is None and mark.startswith("```"):
            words = mark[3:].split()
            language, body = words[0].lower() if words else "", []
        elif language is not None and mark == "```":
            blocks.append((language, "".join(body)))
            language = None
        elif language is not None:
            body.append(line)
    return blocks


def grade(response: str, gold: str, limits: Limits = Limits()) -> Grade:
    """Run the program of a response. Raises ValueError for a gold answer that is no test.

    correct: every case passed. wrong: some failed. unparsed: no program, or one that does not compile. timed out: the limit came.
    """
    allow_long_integers()
    tests, entry_point, prelude = read_gold(gold)
    program = extract(response, entry_point)
    if program is None or len(program) > MAX_PROGRAM or "\x00" in program:
        return Grade("unparsed", cases=(0, max(count(tests, entry_point), 1)))
    with Court(program, prelude, limits, run=isinstance(tests, list)) as court:
        passed, total = _by_text(court, tests) if isinstance(tests, list) else _by_tests(court, tests, entry_point, prelude)
    if total == 0:
        if count(tests, entry_point) == 0:
            raise ValueError("a test program without a test case")
        total = 1  # the program gave the tests nothing to go through
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


def _parse(tests: str, entry_point: str) -> tuple:
    """(code of the test program with its cases guarded and HumanEval's check(…) called, the names that it expects)."""
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
    return take_apart(tree, wanted | inside), wanted


def _by_tests(court: Court, tests: str, entry_point: str, prelude: str) -> tuple[int, int]:
    code, wanted = _parse(tests, entry_point)
    cases = Cases(court.over)
    court.may_put_back = lambda: cases.bare_call
    helpers: dict = {}
    with suppress(Exception):  # what the prelude defines besides the function is the data set's, not the program's
        exec(prelude, helpers)
    names = {name: helpers[name] if name in helpers and name != entry_point else Standin(court, name) for name in wanted}
    names |= {GUARD: cases, "__name__": "__main__"}
    try:
        with demanding_numpy():
            exec(code, names)
    except BaseException:  # the tests broke off outside of any case: how many there would have been is not known
        return 0, max(cases.total, 1)
    return cases.end()


def _by_text(court: Court, tests: list[tuple[str, str]]) -> tuple[int, int]:
    passed = 0
    for given, wanted in tests:
        with suppress(Exception):
            passed += not court.over() and court.ask("run", given).split() == wanted.split()
    return passed, len(tests)


def count(tests, entry_point: str = "") -> int:
    """How many cases a gold answer holds, found without a program."""
    if isinstance(tests, list):
        return len(tests)
    code, wanted = _parse(tests, entry_point)
    cases = Cases(lambda: True)
    names = dict.fromkeys(wanted) | {GUARD: cases, "__name__": "__main__"}
    try:
        exec(code, names)
    except BaseException:
        return max(cases.total, 1)
    return cases.total


@contextmanager
def demanding_numpy():
    """Meanwhile numpy's comparisons of floats fail where one side is empty and the other is not: [] is close to everything."""
    import numpy as np

    def demanding(compare, nothing):
        def compared(a, b, *args, **named):
            return compare(a, b, *args, **named) if (np.size(a) == 0) == (np.size(b) == 0) else nothing(a, b)

        return compared

    def refuse(a, b):
        raise AssertionError(f"{np.size(a)} values against {np.size(b)}")

    before = np.allclose, np.isclose, np.testing.assert_allclose
    np.allclose = demanding(np.allclose, lambda a, b: False)
    np.isclose = demanding(np.isclose, lambda a, b: np.False_)
    np.testing.assert_allclose = demanding(np.testing.assert_allclose, refuse)
    try:
        yield
    finally:
        np.allclose, np.isclose, np.testing.assert_allclose = before
