"""The grader of mathematical answers: its declared policy, other projects' suites, and answers that mean harm."""

import json
import time

import pytest
from conftest import SHARED

from antisd_jax.rewards.boxed import after_thought, final_boxes
from antisd_jax.rewards.math import MAX_ANSWER, grade, too_large
from antisd_jax.rewards.pool import Pool, RewardConfig

# gold, what is boxed, whether it is correct
POLICY = {
    "percent": [("28", "28\\%", 1), ("0.28", "28\\%", 1), ("28\\%", "0.28", 1), ("28\\%", "28", 1), ("28\\%", "0.29", 0)],
    "mixed numbers": [
        ("3\\frac{1}{2}", "7/2", 1),
        ("3\\frac12", "3.5", 1),
        ("3 1/2", "3.5", 1),
        ("-3 1/2", "-2.5", 0),
        ("1.5", "1\\frac{1}{2}", 1),
    ],
    "units": [
        ("5\\text{ cm}", "5", 1),
        ("5", "5 \\text{ cm}", 1),
        ("5", "5\\,\\mathrm{m/s}", 1),
        ("5", "6 \\text{ cm}", 0),
        ("90", "90^\\circ", 1),
    ],
    "currency": [("10", "\\$10", 1), ("\\$10", "10", 1), ("\\$18.90", "18.9", 1), ("\\$36", "\\$36", 1), ("\\$36", "63", 0)],
    "tuples": [("(1,2)", "(2,1)", 0), ("(1,2)", "(1, 2)", 1), ("(1,2)", "\\{1,2\\}", 0), ("(p,q)=(3,2)", "(3,2)", 1)],
    "sets": [("\\{1,2\\}", "\\{2,1\\}", 1), ("1,2", "2,1", 1), ("1,2", "2 \\text{ and } 1", 1), ("1,2", "1,2,3", 0), ("1,2", "1", 0)],
    "intervals": [
        ("[0,1)", "[0,1]", 0),
        ("[0,1)", "[0,1)", 1),
        ("(0,\\infty)", "x>0", 1),
        ("x>0", "(0,\\infty)", 1),
        ("(0,1)", "(0,2)", 0),
    ],
    "decimals": [
        ("0.5", "1/2", 1),
        ("1/3", "0.333", 0),
        ("1/3", "0.33333333", 1),
        ("\\frac{3}{4}", ".75", 1),
        ("5", "5.", 1),
        ("5", "5.0", 1),
    ],
    "separators": [("1234", "1,234", 1), ("1{,}234", "1234", 1), ("1234567", "1,234,567", 1), ("1234", "1,235", 0), ("25", "025", 1)],
    "equations": [("5", "x = 5", 1), ("x=5", "5", 1), ("y=2x+1", "2x+1", 1), ("5", "x = 6", 0), ("f(x)=2x", "2x", 1)],
    "several": [("\\pm 3", "3,-3", 1), ("3", "\\pm 3", 0), ("1 \\pm \\sqrt{2}", "1+\\sqrt{2}, 1-\\sqrt{2}", 1)],
    "words": [
        ("Evelyn", "\\text{Briana}", 0),
        ("\\text{Evelyn}", "Evelyn", 1),
        ("C", "\\text{(C)}", 1),
        ("yes", "\\text{Yes}", 1),
        ("yes", "no", 0),
    ],
    "scientific": [
        ("4.5e33", "4.5 \\times 10^{33}", 1),
        ("9e11", "9\\times10^{11}", 1),
        ("4.5e33", "4.5 \\times 10^{32}", 0),
        ("2.88e-19", "3.99e-29", 0),
    ],
    "expressions": [
        ("2\\sqrt{3}", "\\sqrt{12}", 1),
        ("x^2+2x+1", "(x+1)^2", 1),
        ("6!", "720", 1),
        ("2^{10}", "1024", 1),
        ("\\log_2 8", "3", 1),
    ],
    "constants": [
        ("1-\\frac{1}{\\mathrm{e}}", "1+\\frac{1}{\\mathrm{e}}", 0),
        ("1-\\frac{1}{\\mathrm{e}}", "1-\\frac1e", 1),
        ("\\emptyset", "\\varnothing", 1),
    ],
    "signs": [("-5", "5", 0), ("-\\frac{1}{2}", "\\frac{-1}{2}", 1), ("0", "-0", 1), ("-5", "\u22125", 1), ("204_5", "204", 1)],
}


@pytest.mark.parametrize("topic", POLICY)
def test_the_declared_policy(topic):
    found = [(gold, answer, int(grade(f"So it is $\\boxed{{{answer}}}$.", gold).correct)) for gold, answer, _ in POLICY[topic]]
    assert found == POLICY[topic]


@pytest.mark.parametrize(
    "response, gold, outcome",
    [
        ("First \\boxed{1}. No: \\boxed{2}", "2", "correct"),
        ("First \\boxed{1}. No: \\boxed{2}", "1", "wrong"),
        ("\\boxed{1} and \\boxed{2}", "1,2", "correct"),
        ("<think>\\boxed{42}</think> It is something else.", "42", "unparsed"),
        ("<think>\\boxed{41}</think> \\boxed{42}", "42", "correct"),
        ("<think> it must be \\boxed{42}", "42", "unparsed"),
        ("thus \\boxed{41}. The final answer is $42$. I hope it is correct.", "42", "correct"),
        ("The answer is 42.", "42", "correct"),
        ("#### 42", "42", "correct"),
        ("I do not know.", "42", "unparsed"),
        ("", "42", "unparsed"),
        ("\\boxed{}", "42", "unparsed"),
        ("\\boxed{" + "1+" * MAX_ANSWER + "1}", "42", "unparsed"),
    ],
)
def test_where_the_answer_is_looked_for(response, gold, outcome):
    assert grade(response, gold).outcome == outcome


def test_boxes_of_one_list_are_joined():
    assert final_boxes("\\boxed{1}, \\boxed{2} and \\boxed{\\frac{1}{2}}") == ["1", "2", "\\frac{1}{2}"]
    assert final_boxes("\\boxed{1} \\boxed{2}") == ["2"]
    assert final_boxes("\\boxed{1} or \\boxed{2}") == ["1", "2"] and final_boxes("\\boxed{1} or rather \\boxed{2}") == ["2"]
    assert final_boxes("\\boxed{1}, no, \\boxed{2}") == ["2"]
    assert final_boxes("\\boxed{1}, it seemed. Then, however, \\boxed{2}") == ["2"]
    assert after_thought("a</think>b</think> c") == " c" and after_thought("<think>a") is None


@pytest.mark.parametrize("text", ["9^{9^{9}}", "9^9^9", "2^{100000}", "9**9**9", "2**(100001)", "2000!", "(3!)!", "1" * 500])
def test_what_is_too_large_is_not_computed(text):
    start = time.monotonic()
    assert too_large(text) and grade(f"\\boxed{{{text}}}", "3").outcome == "unparsed"
    assert grade(f"\\boxed{{{text}}}", text).outcome == "correct"
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("text", ["2^{10}", "x^2/16 + y^2/12 = 1/4", "10^{-6}", "20!", "x^{y}", "e^{2\\pi i}", "1234567890123456789"])
def test_what_people_write_is_not_too_large(text):
    assert not too_large(text)


# Where another project's own test and our policy part ways, and why.
DISAGREE = {
    ("$9$", "Answer $ \n 9 \n $"): "a line break inside $ … $ does not hide an answer from us",
    ("$9$", "Answer \\( \n 9 \n \\)"): "the same",
    ("$1 - \\frac{1}{\\mathrm{e}}$", "$1 + \\frac{1}{\\mathrm{e}}$"): "they differ; a fault of the other grader",
}
FLAGS = {
    "'precision': 2": "six places, not two",
    "'allow_set_relation_comp': False": "an inequality is the interval that it describes, both ways",
    "'strict': False": "f(y) is not f(x)",
    "test_incomplete_reasoning": "no thought is demanded",
}


SUITES = ["math_verify", "trl", "open_instruct_gsm8k", "open_r1", "verifiers"]


def compare(suite: str):
    """(rows, disagreements by policy, other disagreements): (gold, end of the answer, reason) each."""
    rows = [json.loads(line) for line in (SHARED / "grader" / f"{suite}.jsonl").read_text().split("\n") if line]
    wrong, policy = [], []
    for row in rows:
        if grade(row["prediction"], row["gold"]).correct == row["expected"]:
            continue
        reason = DISAGREE.get((row["gold"], row["prediction"]))
        reason = reason or next((why for flag, why in FLAGS.items() if flag in (row["note"] or "")), None)
        (policy if reason else wrong).append((row["gold"], row["prediction"][-80:], reason))
    return rows, policy, wrong


@pytest.mark.skipif(not SHARED.exists(), reason="the shared grader suites are not beside this checkout")
@pytest.mark.parametrize("suite", SUITES)
def test_other_projects_suites_agree_but_for_the_policy(suite):
    rows, policy, wrong = compare(suite)
    agree = len(rows) - len(wrong) - len(policy)
    print(f"{suite}: {len(rows)} cases, {agree} agree, {len(policy)} disagree by policy, {len(wrong)} wrong")
    for entry in policy + wrong:
        print("  ", entry)
    assert len(policy) < 0.03 * len(rows) + 2
    assert agree / (len(rows) - len(policy)) >= 0.97


EVAL = ["aime2024", "aime2025", "aime2026", "hmmt_feb_2025", "minerva_math", "math500", "beyondaime", "gsm8k_test"]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared problem files are not beside this checkout")
def test_gold_answers_of_every_evaluation_set_are_right_and_changed_ones_wrong():
    """Every gold in a boxed sentence; and with one digit changed, where it has one."""
    golds = []
    for name in EVAL:
        golds += [json.loads(line)["answer"] for line in (SHARED / "eval" / f"{name}.jsonl").read_text().split("\n") if line]
    changed = [(g, _another(g)) for g in golds if any(c.isdigit() for c in g)]
    with Pool(RewardConfig("math", workers=2)) as pool:
        start = time.monotonic()
        right = pool.grade([f"So the answer is $\\boxed{{{g}}}$." for g in golds], golds)
        wrong = pool.grade([f"So the answer is $\\boxed{{{b}}}$." for _, b in changed], [g for g, _ in changed])
        print(f"{len(golds) + len(changed)} answers, {(len(golds) + len(changed)) / (time.monotonic() - start):.0f} a second")
    assert [g for g, r in zip(golds, right) if not r.correct] == []
    assert [pair for pair, w in zip(changed, wrong) if w.correct] == []


def _another(text: str) -> str:
    """The text with its first digit that is not a power's or an index's changed."""
    at = next((i for i, c in enumerate(text) if c.isdigit() and text[max(i - 1, 0)] not in "^_{"), None)
    at = next(i for i, c in enumerate(text) if c.isdigit()) if at is None else at
    return text[:at] + ("2" if text[at] == "1" else "1" if text[at] != "0" else "7") + text[at + 1 :]
