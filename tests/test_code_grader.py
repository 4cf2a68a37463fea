import errno
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, SHARED

from antisd_jax.errors import UserError
from antisd_jax.rewards.cases import free_names
from antisd_jax.rewards.code import count, describe, extract, grade
from antisd_jax.rewards.court import Court, Limits, Standin
from antisd_jax.rewards.isolate import LAYERS
from antisd_jax.rewards.pool import GraderFault, Pool, RewardConfig

LIMITS = Limits(timeout_s=8, memory_mb=1024)
TESTS = "assert double(2) == 4\nassert double([1]) == [1, 1]\nassert double('ab') == 'abab'\nassert double(0) == 0"
# Every one of these wants to pass TESTS without computing anything.
CHEATS = {
    "exits with success": "import sys\nsys.exit(0)",
    "exits in the call": "import os\ndef double(x):\n    os._exit(0)",
    "raises SystemExit in the call": "def double(x):\n    raise SystemExit(0)",
    "prints that it passed": "print('4 passed, 0 failed', flush=True)\ndef double(x):\n    print('passed')",
    "equals everything": "class Yes:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\ndef double(x): return Yes()",
    "an integer that equals everything": "class Yes(int):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef double(x): return Yes(7)",
    "a list that equals everything": "class Yes(list):\n    def __eq__(self, o): return True\ndef double(x): return Yes()",
    "unittest.mock.ANY": "from unittest.mock import ANY\ndef double(x): return ANY",
    "a mock": "from unittest.mock import MagicMock\ndouble = MagicMock()\ndouble.return_value.__eq__ = lambda *a: True",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef double(x): return 4",
    "kills its group": "import os\ndef double(x):\n    os.killpg(0, 9)",
    "kills everything": "import os\ndef double(x):\n    os.kill(-1, 9)",
    "replaces the tests' builtins": "def enumerate(*a): return []\ndef zip(*a): return []\ndef isinstance(*a): return True\ndef double(x): return x",
    "replaces its own builtins": "import builtins\nbuiltins.AssertionError = SystemExit\nbuiltins.all = lambda x: True\ndef double(x): assert False",
    "traces": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\ndef double(x): raise AssertionError('passed')",
    "looks for the expected value in its frames": (
        "import sys, gc\ndef double(x):\n    f = sys._getframe()\n    while f.f_back: f = f.f_back\n"
        "    return [o for o in gc.get_objects() if type(o) is dict and 'results' in o][0]['results'][0]"
    ),
    "reads its parent's memory": "import os\ndef double(x):\n    return open(f'/proc/{os.getppid()}/mem', 'rb').read(10)",
    "reads the tests from the disk": (
        "import glob\ndef double(x):\n    found = [open(p).read() for p in glob.glob('HERE/*.jsonl')]\n    return eval(found[0].split('== ')[1])"
    ),
    "answers ahead of time": (
        "import json, os, struct\nfor answer in ({'ok': True}, {'value': {'remote': 0}}, {'value': 4}):\n"
        "    data = json.dumps(answer | {'nonce': '0' * 16}).encode()\n    for fd in range(3, 16):\n"
        "        try: os.write(fd, struct.pack('!I', len(data)) + data)\n        except OSError: pass\ndef double(x): return None"
    ),
    "patches the player": (
        "import sys\nm = sys.modules['__main__']\nm.Player.do = lambda self, r: {'value': {'remote': 0}}\n"
        "m.encode = lambda *a: {'remote': 0}\ndef double(x): return x"
    ),
    "changes its argument": "def double(x):\n    if isinstance(x, list): x[:] = [1, 1, 1]",
    "an endless answer": "def double(x):\n    while True: yield x",
    "never ends": "def double(x):\n    while True: pass",
    "takes all memory": "def double(x):\n    return [0] * 10**10",
    "nests without end": "def double(x):\n    for _ in range(10**6): x = [x]\n    return x",
    "holds itself": "def double(x):\n    y = []\n    y.append(y)\n    return y",
    "runs another program": "import subprocess, sys\ndef double(x): return subprocess.run([sys.executable, '-c', 'print(4)']).returncode or 4",
    "forks": "import os\ndef double(x):\n    while True: os.fork()",
    "starts threads and dies": "import threading, os\nthreading.Thread(target=lambda: os._exit(0)).start()\ndef double(x): return None",
    "leaves a module to be imported": "open('HERE/sitecustomize.py', 'w').write('x')\ndef double(x): return x",
    "asks the network": "import socket\ndef double(x):\n    s = socket.create_connection(('127.0.0.1', PORT), 1)\n    return eval(s.recv(9))",
    "raises the assertion itself": "def double(x): raise AssertionError",
    "is not there": "def triple(x): return 3 * x",
    "no Python": "double the number: 4",
    "makes a file unreadable": "import os\nos.chmod('HERE/tests.jsonl', 0)\ndef double(x): return x",
    "changes a file's times": "import os\nos.utime('HERE/tests.jsonl', (1, 1))\ndef double(x): return x",
    "sets its parent's limits": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_AS, (1, 1))\ndef double(x): return x",
    "has a signal sent by the kernel": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\ndef double(x): return x"
    ),
    "answers a byte at a time": (
        "import sys, time\nm = sys.modules['__main__']\ndef slow(channel, message):\n    channel.sendall(b'\\0\\0\\1\\0')\n"
        "    while True:\n        channel.sendall(b' ')\n        time.sleep(0.3)\ndef double(x):\n    m.send = slow\n    return 4"
    ),
    "hides memory": (
        "import ctypes, mmap, os\nfd = ctypes.CDLL(None).syscall(447, 0)\nos.ftruncate(fd, 1 << 20)\ndef double(x): return x"
    ),
}  # fmt: skip
HONEST = "def double(x):\n    return x * 2"
SETS = [LAYERS, ("seccomp",), ("landlock", "seccomp"), ("namespaces", "seccomp")]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cheats")
    (folder / "tests.jsonl").write_text(json.dumps({"tests": TESTS}))
    return folder


@pytest.mark.parametrize("layers", SETS[:2], ids="+".join)
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_passes_no_case_that_it_does_not_compute(here, name, layers):
    held = held_of(layers)
    if "seccomp" not in held:
        pytest.skip(f"this host offers {held or 'no isolation'}")
    if name == "reads the tests from the disk" and "landlock" not in held:
        pytest.skip("without landlock a program can read this user's files, and the module says so")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = CHEATS[name].replace("HERE", str(here)).replace("PORT", str(server.getsockname()[1]))
        start = time.monotonic()
        result = grade(f"```python\n{program}\n```", TESTS, Limits(4, 1024, layers))
        assert time.monotonic() - start < 8
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not result.correct and result.cases[1] == 4
    assert result.cases[0] <= program.endswith("def double(x): return x")  # double(0) == 0 holds for the identity
    assert sorted(os.listdir(here)) == ["tests.jsonl"]
    assert (here / "tests.jsonl").stat().st_mode & 0o777 == 0o644 and (here / "tests.jsonl").stat().st_mtime > 1e9
    assert grade(HONEST, TESTS, Limits(8, 1024, layers)).correct


def held_of(layers):
    with Court("", "", Limits(8, 1024, layers), run=False) as court:
        court.ask("len", [])
        return court.held


def test_the_cheats_are_many():
    assert len(CHEATS) >= 20


PROBE = """
import os, socket, pathlib
def double(what):
    try:
        if what == "read": return open("/etc/passwd").read(1)
        if what == "write": return pathlib.Path("HERE/made").write_text("x")
        if what == "scratch": pathlib.Path("note").write_text("x" * 10); return pathlib.Path("note").read_text()
        if what == "network": return str(socket.socket())
        if what == "fork": return os.fork()
        if what == "see": return sorted(p for p in os.listdir("/proc") if p.isdigit())
        if what == "environment": return dict(os.environ)
        if what == "young":  # fchmodat2, with a folder that is none: a kernel that is asked says EBADF
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            return [libc.syscall(452, -5, b"x", 0, 0), ctypes.get_errno()]
        if what == "prctl":
            import ctypes
            return ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    except OSError as e:
        return type(e).__name__
"""


@pytest.mark.parametrize("layers", SETS, ids="+".join)
def test_what_a_program_may_do(tmp_path, layers):
    """The layers that hold on this host are asked; those of the list that it lacks are not."""
    held = held_of(layers)
    with Court(PROBE.replace("HERE", str(tmp_path)), "", Limits(8, 1024, layers), run=False) as court:

        def probe(what):
            return Standin(court, "double")(what)

        if "seccomp" in held:
            assert (probe("network"), probe("fork"), probe("prctl")) == ("PermissionError", "PermissionError", -1)
            assert probe("young") == [-1, errno.ENOSYS]
        if "landlock" in held:
            assert (probe("read"), probe("see")) == ("PermissionError", "PermissionError")
        if {"landlock", "namespaces"} <= set(held):
            assert probe("scratch") == "xxxxxxxxxx"
        if set(held) & {"landlock", "seccomp"}:
            assert probe("write") == "PermissionError" and not list(tmp_path.iterdir())
        assert not {"HF_TOKEN", "USER", "SSH_AUTH_SOCK"} & set(probe("environment"))


@pytest.mark.skipif(sys.platform != "linux", reason="isolation layers are Linux's")
def test_linux_offers_seccomp_at_least():
    assert "seccomp" in held_of(LAYERS)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_no_process_and_no_folder_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    grade("import os\nos.fork()\ndef double(x):\n    while True: pass", TESTS, Limits(2, 1024))
    wait_for(lambda: not players(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_killed_worker_takes_its_program_and_its_files_along(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Pool(RewardConfig("code", workers=1, timeout_s=30)) as pool, ThreadPoolExecutor(1) as beside:
        pool.start()
        grade = beside.submit(
            pool.grade, ["def double(x):\n    while x == 2: pass\n    return 2 * x"], ["assert double(1) == 2\nassert double(2) == 4"]
        )
        wait_for(lambda: players(tmp_path))
        pool.workers[0].process.kill()
        wait_for(lambda: grade.running() and pool.workers[0].process and pool.workers[0].process.poll() is None)
        assert grade.result().pop().cases == (1, 2)
    wait_for(lambda: not players(tmp_path))
    assert list(tmp_path.iterdir()) == []


def players(folder):
    """Processes that hold a program and stand in a scratch directory below the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            standing = os.readlink(process / "cwd").startswith(str(folder))
            found += [process.name] if standing and b"rewards.player" in (process / "cmdline").read_bytes() else []
    return found


def wait_for(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_fraction_is_the_reward_and_the_feedback_says_it():
    result = grade("def double(x):\n    return x + x if x else None", TESTS, LIMITS)
    assert (result.outcome, result.cases, result.reward) == ("wrong", (3, 4), 0.75)
    assert result.feedback == "Your code passes 3 of 4 test cases."
    assert grade(HONEST, TESTS, LIMITS).reward == 1.0


@pytest.mark.parametrize(
    "program, tests, cases",
    [
        ("def f(x): return x", "for i in range(5):\n    assert f(i) == min(i, 2)", (3, 5)),
        ("def f(x): return 1 // x", "def check(candidate):\n    for i in (1, 0, 1):\n        out = candidate(i)\n        assert out == 1", (2, 3)),
        ("def f(x): return 1 // x", "out = f(0)\nassert isinstance(out, float)\nassert not isinstance(out, str)", (0, 2)),
        ("def f(x): return 1 // x", "def same(a, b):\n    assert a == b\n    assert a == b\nsame(f(1), 1)\nsame(f(0), 1)", (1, 2)),
        ("def f(x): return 1 // x", "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError:\n    pass\nassert f(1) == 2", (1, 2)),
        ("def f(xs): xs.sort()", "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]", (1, 1)),
        ("def f(xs): pass", "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]", (0, 1)),
        ("def f(xs): raise OSError", "xs = [2, 1]\nf(xs)\nassert xs == [2, 1]\nassert f", (1, 2)),
        ("def f(x): raise OSError", "import pytest\nwith pytest.raises(OSError):\n    f(1)", (1, 1)),
        ("def f(x): return x", "import pytest\nwith pytest.raises(OSError):\n    f(1)", (0, 1)),
        ("def f(x): raise OSError", "assert 1\nf(1)", (1, 2)),
        ("def f(x): raise OSError", "out = f(1)\nassert out is not None", (0, 1)),
        ("def f(x): return x", "try:\n    assert f(1) == 2\nexcept AssertionError:\n    pass", (0, 1)),
        ("def f(x):\n    if x < 0: raise ValueError\n    return x", "for x in (-1, -2):\n    try:\n        f(x)\n    except ValueError:\n        continue\n    assert False\nassert f(3) == 3", (3, 3)),
        ("def f(x): return []", "for y in f(3):\n    assert y", (0, 1)),
        ("def f(x): raise StopIteration", "assert all(map(lambda c: f(c) == 1, [1, 2]))", (0, 1)),
        ("def f(*a): return []", "import numpy as np\nassert np.allclose(f(1), 5.0)\nassert np.isclose(f(1), [5.0]).all()", (0, 2)),
        ("import numpy as np\ndef f(x): return np.array(np.inf, np.float16)", "assert f(1) == 123456.5", (0, 1)),
        ("import numpy as np\ndef f(x): return np.full((2, 2), np.inf, np.float16)", "assert (f(1) == 123456.5).all()", (0, 1)),
        ("def f(xs): xs.clear()", "def ref(xs): return None if not xs else 3\nxs = [1]\nassert f(xs) == ref(xs)", (0, 1)),
        ("class E(ValueError): pass\ndef f(x): raise E('why')", "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert e.args == ('why',)", (1, 1)),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass f:\n    x: int", "assert f(1) == f(1)\nassert f(1).x == 1\nassert f(1) != f(2)\nassert f(1) != 1", (4, 4)),
        ("import asyncio\nasync def g(x): return x\ndef f(x): return asyncio.run(g(x))", "assert f(1) == 1", (1, 1)),
        ("def f(x): return range(10**12)", "assert sum(f(1)) == 1", (0, 1)),
        ("class S:\n    def f(self, x): return x", "s = S()\nassert s.f(3) == 3\nassert S().f([1]) == [2]", (1, 2)),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert next(f(1)) == 0", (2, 2)),
        ("f = lambda x: x", "import math\nassert f({(1, 2): {3}, 'k': [None, 1.5, b'x', 10**5000, 2j, math.inf]}) == 0", (0, 1)),
        ("f = lambda x: x", "v = {(1, 2): {3}, 'k': [None, 1.5, b'x', 10**30000, 2j]}\nassert f(v) == v and f(v) is not v", (1, 1)),
        ("import numpy as np\nf = lambda x: np.array(x)", "import numpy as np\nassert np.allclose(f([1.5, 2]), [1.5, 2])", (1, 1)),
        ("f = sum", "def sum(x): return 0\nassert f([1, 2]) == 3", (1, 1)),
        ("def f(x): return x", "assert f(1) == 1\nfor x in f(None):\n    assert f(2) == 2", (0, 1)),
    ],
)  # fmt: skip
def test_cases_by_hand(program, tests, cases):
    """Worked out by hand; the last breaks off outside of a case, so that nobody knows how many there would have been."""
    gold = json.dumps({"tests": tests, "entry_point": "f"}) if "candidate" in tests else tests
    assert grade(program, gold, LIMITS).cases == cases


def test_cases_are_the_same_with_and_without_a_program():
    tests = "def check(candidate):\n    for x, y in zip([1, 2, 3], [1, 2, 3]):\n        assert candidate(x) == y"
    gold = json.dumps({"tests": tests, "entry_point": "f"})
    assert count(tests, "f") == 3
    assert grade("no program here", gold, LIMITS).cases == (0, 3) == grade("```python\ndef f(x:\n```", gold, LIMITS).cases
    assert grade("def f(x):\n    while x > 1: pass\n    return x", gold, Limits(2, 1024)).cases == (1, 3)


def test_a_slow_case_costs_itself_and_a_slow_program_the_rest():
    tests = "for i in range(6):\n    assert f(i) == i"
    slow_once = grade("import time\ndef f(x):\n    if x == 1: time.sleep(60)\n    return x", tests, Limits(4, 1024))
    assert (slow_once.outcome, slow_once.cases) == ("wrong", (5, 6))
    start = time.monotonic()
    slow = grade("import time\ndef f(x):\n    time.sleep(0.9)\n    return x", tests, Limits(4, 1024))
    assert slow.outcome == "timed out" and 1 <= slow.cases[0] < 6 and slow.cases[1] == 6
    assert time.monotonic() - start < 4


def test_names_that_the_tests_expect():
    tests = "import math\ndef ref(a):\n    f = sum(a)\n    return f\nfor i in range(3):\n    assert f(i) == g(math.pi, ref([i])), zip"
    assert free_names(tests) == {"g"} | {"f"} and free_names("x = 1\nassert sum(x)", "sum") == {"sum"}


@pytest.mark.parametrize(
    "response, entry, expected",
    [
        ("```python\ndef f(): return 1\n```\nUse it:\n```python\nprint(f())\n```", "f", "def f(): return 1\n"),
        ("```\nx\n```\n```py\ny = 1\n```\n```bash\nls\n```", "", "y = 1\n"),
        ("<think>```python\nwrong\n```</think>\n```python\nright = 1\n```", "", "right = 1\n"),
        ("<think>never ends ```python\nx = 1\n```", "", None),
        ("def f(x):\n    return x\n", "f", "def f(x):\n    return x\n"),
        ("I cannot do that.", "f", None),
        ("```python\nunfinished", "f", None),
        ("1. Like this:\n   ```python\n   def f(): pass\n   ```", "f", "   def f(): pass\n"),
    ],
)
def test_the_program_of_a_response(response, entry, expected):
    assert extract(response, entry) == expected


def test_programs_that_read_and_print():
    gold = json.dumps([{"input": "1 2\n", "output": "3"}, {"input": "5 5", "output": "10\n"}, {"input": "0 1", "output": "2"}])
    for program in ("print(sum(map(int, input().split())))", "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit()",
                    "print(sum(map(int, open(0).read().split())), flush=True)"):  # fmt: skip
        assert grade(f"```python\n{program}\n```", gold, LIMITS).cases == (2, 3)
    assert grade("```python\nif __name__ == '__main__':\n    print(3)\n```", gold, LIMITS).cases == (1, 3)


@pytest.mark.parametrize("gold", ["", "x = 1", "assert f(1) ==", '{"tests": 3}', "[1, 2]"])
def test_a_gold_that_is_no_test_is_a_users_error(gold):
    with Pool(RewardConfig("code", workers=1)) as pool, pytest.raises(GraderFault, match="code grader: ValueError"):
        pool.grade([HONEST], [gold])


def test_isolation_is_said_and_can_be_demanded():
    missing = Limits(8, 1024, (*LAYERS, "vault"))
    assert describe(missing, required=False).endswith("vault")
    with pytest.raises(ValueError, match="isolation_required, and this host does not offer .*vault"):
        describe(missing, required=True)
    with Pool(RewardConfig("code", workers=1)) as pool:
        assert pool.start().startswith("programs run isolated by ")
    with pytest.raises(UserError, match="'nowhere' is none of namespaces, landlock, seccomp"):
        RewardConfig("code", isolation=("nowhere",))


def test_a_few_programs_of_the_data_sets_pass():
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent")
    from antisd_jax.text.data import DataConfig, load

    for name in ("humaneval_plus", "mbpp_plus"):
        rows = load(DataConfig(str(SHARED / "code" / f"{name}.jsonl")), "data")
        special = {"HumanEval/32", "HumanEval/38", "Mbpp/88", "Mbpp/126"}
        if sys.version_info >= (3, 12):  # there sum() of floats is more exact, and 7 of its 886 cases are what 3.11 gives
            special.remove("HumanEval/32")
        chosen = rows[:3] + [r for r in rows if r.id in special]
        for row in chosen:
            assert grade(f"```python\n{row.solution}\n```", row.answer, Limits(20)).correct, row.id
            assert not grade(f"```python\ndef {json.loads(row.answer)['entry_point']}(*a): pass\n```", row.answer, Limits(20)).correct


def test_a_run_on_programs_is_rewarded_by_cases(tmp_path):
    """A small random model, whose programs are none: 0 of the cases, said so to the teacher; the tests are shown to nobody."""
    from antisd_jax import config
    from antisd_jax.files import read_jsonl
    from antisd_jax.tiny.random_folder import make
    from antisd_jax.train import train

    problems = [
        {"problem": f"Write a function add{i} that adds {i}.", "answer": f"assert add{i}(1) == {i + 1}\nassert add{i}(0) == {i}"}
        for i in range(24)
    ]
    data, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps(p | {"entry_point": f"add{i}"}) + "\n" for i, p in enumerate(problems[:16])))
    held_out.write_text(
        "".join(json.dumps(p | {"problem": p["problem"] + " Use no loop at all, and no recursion."}) + "\n" for p in problems[16:])
    )
    make(str(data), tmp_path / "model", vocab=400, width=32)
    options = [f"output={tmp_path / 'run'}", f"model.path={tmp_path / 'model'}", f"data.path={data}", f"eval.data={held_out}", "steps=1"]
    options += [
        "problems=8",
        "samples=2",
        "lengths.prompt=200",
        "lengths.context=400",
        "lengths.response=16",
        "mesh.fsdp=2",
        "eval.limit=4",
    ]
    train(config.load([str(ROOT / "configs" / "code.yaml")], options))
    row = read_jsonl(tmp_path / "run" / "metrics.jsonl")[1]
    assert row["critic/rewards/mean"] == 0.0 and row["eval/held_out/cases"] == 0.0 and row["antisd/context/feedback"] == 1.0
    with pytest.raises(UserError, match="no 'answer' with reward.kind=code"):
        config.load([str(ROOT / "configs" / "code.yaml")], ["prompt.sources=[answer]"])


def test_check_grades_a_data_sets_own_solutions(tmp_path, capsys):
    from antisd_jax.cli import main

    rows = [
        {"problem": f"{i}", "tests": f"assert f() == {i}", "entry_point": "f", "solution": f"def f(): return {min(i, 2)}"} for i in range(4)
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["check", f"--data={tmp_path / 'set.jsonl'}", "--kind=code"]) == 2
    said = capsys.readouterr()
    assert "own answers  3 of 4 correct\n  3: wrong, 0 of 1 cases" in said.out
    assert "1 of the data sets' own answers are not graded correct" in said.err


def test_grade_reports_cases(tmp_path):
    from antisd_jax.cli import main

    (tmp_path / "in.jsonl").write_text(json.dumps({"gold": TESTS, "prediction": "def double(x):\n    return x + x if x else 1"}) + "\n")
    assert main(["grade", f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out.jsonl'}", "--kind=code"]) == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["outcome"], row["correct"], row["passed"], row["cases"]) == ("wrong", False, 3, 4)
