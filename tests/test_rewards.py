import os
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antisd_jax.errors import UserError
from antisd_jax.rewards import countdown
from antisd_jax.rewards.boxed import last_boxed
from antisd_jax.rewards.pool import GraderFault, Pool, RewardConfig


@pytest.mark.parametrize(
    "text, expected",
    [
        ("no box", None),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{unfinished", "1"),
        ("\\boxed{}", ""),
    ],
)
def test_last_boxed(text, expected):
    found = last_boxed(text)
    assert (found and found[0]) == expected


@pytest.mark.parametrize(
    "text, value",
    [("1+2*3", 7), ("(1+2)*3", 9), ("8/3/2", Fraction(4, 3)), ("2-3-4", -5), (" ( 7 ) ", 7), ("1/3+1/6", Fraction(1, 2))],
)
def test_exact_evaluation_by_hand(text, value):
    assert countdown.evaluate(text)[0] == value


@pytest.mark.parametrize("text", ["", "1+", "(1", "1)", "2**3", "__import__('os')", "1 2", "-1", "x", "1.5", "(" * 150 + "1" + ")" * 150])
def test_what_is_not_arithmetic_is_not_evaluated(text):
    with pytest.raises(countdown.NotAnExpression):
        countdown.evaluate(text)


@pytest.mark.parametrize(
    "response, outcome",
    [
        ("so \\boxed{(3*5)+2}", "correct"),
        ("\\boxed{2+5*3}", "correct"),
        ("\\boxed{17}", "wrong"),
        ("\\boxed{(3*5)+2+2-2}", "wrong"),
        ("\\boxed{3*5}", "wrong"),
        ("\\boxed{5/(3-3)}", "unparsed"),
        ("(3*5)+2", "unparsed"),
    ],
)
def test_countdown_grades(response, outcome):
    assert countdown.grade(response, "17 from 3 5 2").outcome == outcome


def test_importing_a_grader_does_not_load_jax():
    code = "import sys, antisd_jax.rewards.math, antisd_jax.rewards.pool; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.fixture(scope="module")
def math_pool():
    with Pool(RewardConfig("math", workers=2, timeout_s=4)) as pool:
        yield pool


def test_math_answers(math_pool):
    cases = [
        ("\\boxed{\\frac{1}{2}}", "0.5", "correct"),
        ("\\boxed{\\dfrac12}", "\\frac{1}{2}", "correct"),
        ("\\boxed{x^2+2x+1}", "(x+1)^2", "correct"),
        ("\\boxed{7} or rather \\boxed{8}", "8", "correct"),
        ("\\boxed{8}", "7", "wrong"),
        ("the answer is 7", "7", "correct"),
        ("\\boxed{Monday}", "Monday", "correct"),
    ]
    grades = math_pool.grade([c[0] for c in cases], [c[1] for c in cases])
    assert [g.outcome for g in grades] == [c[2] for c in cases]


def test_a_hanging_answer_times_out_and_its_worker_is_replaced(math_pool):
    start = time.monotonic()
    grades = math_pool.grade(["\\boxed{\\binom{99999999}{4999999}}", "\\boxed{3}"] * 2, ["3"] * 4)
    assert [g.outcome for g in grades] == ["timed out", "correct"] * 2
    assert time.monotonic() - start < 30
    assert [g.outcome for g in math_pool.grade(["\\boxed{3}"] * 4, ["3"] * 4)] == ["correct"] * 4


def test_a_worker_killed_from_outside_is_replaced():
    with Pool(RewardConfig("countdown", workers=1)) as pool:
        assert pool.grade(["\\boxed{1+2}"], ["3 from 1 2"])[0].correct
        for pause in (0, 0.05) * 3:  # asked while it dies, and after
            pool.workers[0].process.kill()
            time.sleep(pause)
            assert pool.grade(["\\boxed{1+2}"], ["3 from 1 2"])[0].correct


@pytest.mark.parametrize("kills", [2, 99])
def test_a_worker_killed_while_it_starts_is_started_again(monkeypatch, kills):
    real, started = subprocess.Popen, []

    def popen(*args, **options):
        started.append(real(*args, **options))
        if len(started) <= kills:
            started[-1].kill()
        return started[-1]

    monkeypatch.setattr("antisd_jax.rewards.pool.subprocess.Popen", popen)
    with Pool(RewardConfig(workers=1)) as pool:
        if kills > 2:
            with pytest.raises(GraderFault, match="a worker did not start in 3 tries"):
                pool.start()
        else:
            assert [g.outcome for g in pool.grade(["\\boxed{1+2}"], ["3 from 1 2"])] == ["correct"]
    assert len(started) == 3 and all(p.poll() is not None for p in started)


@pytest.mark.skipif(sys.platform != "linux", reason="children die with their parent on Linux only")
def test_a_busy_worker_dies_with_a_killed_trainer():
    code = (
        "from antisd_jax.rewards.pool import *\n"
        "pool = Pool(RewardConfig('math', workers=1, timeout_s=60)); pool.grade(['\\\\boxed{2}'], ['1'])\n"
        "print(pool.workers[0].process.pid, flush=True); pool.grade(['\\\\boxed{\\\\binom{99999999}{4999999}}'], ['1'])"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(trainer.stdout.readline())
    time.sleep(1)
    assert os.path.exists(f"/proc/{pid}")
    trainer.kill()
    trainer.wait()
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or open(f"/proc/{pid}/stat").read().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    raise AssertionError("the worker outlived its trainer")


def test_a_gold_of_another_task_is_a_users_error():
    with Pool(RewardConfig("countdown", workers=1)) as pool, pytest.raises(UserError, match="countdown answer '42'"):
        pool.grade(["\\boxed{42}"], ["42"])


def test_grades_come_back_in_order():
    responses = [f"\\boxed{{{i % 3}+1}}" for i in range(50)]
    with Pool(RewardConfig("countdown", workers=2)) as pool:
        assert [g.extracted for g in pool.grade(responses, ["1 from 0 1"] * 50)] == [f"{i % 3}+1" for i in range(50)]


NASTY = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="{}\\^_$()[]!|<>=+-*/%&,.0123456789xye\x00\ud800", max_size=200),
    st.sampled_from(["9^{9^{9^9}}", "99999999!", "(" * 5000, "\\frac{" * 300, "\\sqrt[3]{" * 40 + "2" + "}" * 40, "1" * 1_000_000]),
    st.sampled_from(["\\sum_{k=1}^{10^9} k", "(x+y+z)^{999}", "\\begin{pmatrix}" * 50, "\\text{" * 200, "\x00" * 100, "\u2028\u202e" * 50]),
    st.sampled_from(["__import__('os').system('touch HERE')", "open('HERE','w').write('x')", "exec(\"open('HERE','w')\")"]),
)


@given(answers=st.lists(NASTY, min_size=1, max_size=4), boxed=st.booleans())
@settings(max_examples=int(os.environ.get("NASTY_EXAMPLES", "25")), deadline=None, suppress_health_check=list(HealthCheck))
def test_no_answer_hangs_or_breaks_the_pool(nasty_pool, answers, boxed):
    """Every answer comes back within twice its limit, and the pool grades on. NASTY_EXAMPLES=4000 is the long campaign."""
    start = time.monotonic()
    grades = nasty_pool.grade([f"\\boxed{{{a}}}" if boxed else a for a in answers], ["3"] * len(answers))
    assert time.monotonic() - start < 2 * nasty_pool.workers[0].config.timeout_s * len(answers) + 5
    assert all(g.outcome in ("wrong", "unparsed", "timed out") or "3" in a for g, a in zip(grades, answers))
    assert nasty_pool.grade(["\\boxed{3}"], ["3"])[0].correct


@pytest.fixture(scope="module")
def nasty_pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nasty")
    back = os.getcwd()
    os.chdir(folder)
    with Pool(RewardConfig("math", workers=2, timeout_s=2)) as pool:
        yield pool
    os.chdir(back)
    assert list(folder.iterdir()) == []
