import json

import pytest
from conftest import SHARED

from antisd_jax.errors import UserError
from antisd_jax.text.card import Card, answer_kind, without_duplicates, without_overlaps
from antisd_jax.text.data import DataConfig, Order, load
from antisd_jax.text.rows import Problem, adapt

ROW = '{"problem": "p", "answer": "1", "solution": null, "source": "s", "id": "a"}'


def file(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    return DataConfig(str(path))


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"problem": "p"}\n' * 2, "holds no problems; 2 rows have no answer"),
        ('{"answer": "1"}', "holds no problems; 1 rows have no problem"),
        (ROW + "\n\n{", "line 3: not JSON"),
        ("[]", "line 1: wanted an object, got list"),
        ("", "holds no problems"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load(file(tmp_path, text), "data")


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match="eval.data: .*nothing.jsonl cannot be read: No such file"):
        load(DataConfig(str(tmp_path / "nothing.jsonl")), "eval.data")


def test_a_zero_answer_is_an_answer_and_line_separators_do_not_split_rows(tmp_path):
    problems = load(file(tmp_path, '{"problem": "a\u2028b", "answer": 0}\n'), "data")
    assert problems == [Problem(0, "a\u2028b", "0", None, "", "0")]


def test_limit_takes_the_first_rows(tmp_path):
    config = DataConfig(file(tmp_path, "\n".join([ROW] * 5)).path, limit=2)
    assert [p.index for p in load(config, "data")] == [0, 1]


def numbered(n):
    return [Problem(i, "", "", None, "", "") for i in range(n)]


def test_every_epoch_holds_every_problem_once_in_a_new_order():
    order = Order(numbered(10), seed=3)
    epochs = [[p.index for p in order.take(10 * e, 10)] for e in range(3)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("processes", [(1, 2, 1), (2, 1, 2), (4, 2, 1)])
def test_a_cursor_moved_between_numbers_of_processes_yields_every_row_once(processes):
    """Three legs of an epoch of 24 problems, each with another number of processes, eight problems a leg in steps of four."""
    order, cursor, seen = Order(numbered(24), seed=5), 0, []
    for count in processes:
        for _ in range(2):
            step = [[p.index for p in order.take(cursor, 4, part, count)] for part in range(count)]
            assert [i for share in step for i in share] == [p.index for p in order.take(cursor, 4)]
            seen += [i for share in step for i in share]
            cursor += 4
    assert sorted(seen) == list(range(24))


def test_programming_problems_in_the_forms_in_which_they_come():
    """HumanEval's head of a program stands before it; MBPP's function is named by a test; lists of inputs are kept as they are."""
    human = {
        "task_id": "H/1",
        "prompt": 'def f(x):\n    """One more."""\n',
        "canonical_solution": "    return x + 1\n",
        "test": "def check(c):\n    assert c(1) == 2",
        "entry_point": "f",
    }
    found = adapt(human, 0)
    assert found.id == "H/1" and found.problem == human["prompt"] and found.solution == (human["prompt"] + "    return x + 1")
    assert json.loads(found.answer) == {"tests": human["test"], "entry_point": "f", "prelude": human["prompt"]}
    mbpp = {
        "problem": "Add one.",
        "answer": "assert f(1) == 2",
        "solution": "def f(x): return x + 1",
        "entry_point": "f",
        "test_list": ["assert f(1) == 2", "assert f(2) == 3"],
    }
    found = adapt(mbpp, 3)
    assert found.problem == "Add one.\n\nYour program should pass this test:\nassert f(1) == 2" and found.id == "3"
    assert json.loads(found.answer) == {"tests": "assert f(1) == 2", "entry_point": "f", "prelude": ""}
    cases = [{"input": "1", "output": "2"}]
    assert json.loads(adapt({"problem": "Print one more.", "answer": cases}, 0).answer) == cases
    assert adapt({"problem": "p", "test": "", "entry_point": "f"}, 0) == "no answer"
    assert len(adapt({"problem": "p", "answer": "x" * 9000}, 0).gold) == 501


def test_the_cursor_alone_gives_the_place():
    whole = [p.index for p in Order(numbered(10), 3).take(0, 40)]
    parts = [p.index for start in (0, 7, 14, 21) for p in Order(numbered(10), 3).take(start, 7)]
    assert parts == whole[:28]
    assert [p.index for p in Order(numbered(10), 4).take(0, 40)] != whole


@pytest.mark.skipif(not SHARED.exists(), reason="the shared problem files are not beside this checkout")
@pytest.mark.parametrize("name, rows, solutions", [("gsm8k_train", 7473, True), ("dapo_math_17k", 17176, False)])
def test_real_files_load(name, rows, solutions):
    problems = load(DataConfig(str(SHARED / "train" / f"{name}.jsonl")), "data")
    assert len(problems) == rows
    assert all(bool(p.solution) == solutions for p in problems)


def test_rows_that_lack_something_are_left_out_and_counted(tmp_path):
    card = Card("x")
    rows = [ROW, '{"problem": "q", "answer": ""}', '{"answer": "1"}', '{"problem": "r", "answer": "2"}']
    problems = load(file(tmp_path, "\n".join(rows)), "data", card)
    assert [(p.index, p.answer) for p in problems] == [(0, "1"), (3, "2")]
    assert (card.rows, card.dropped) == (4, {"no answer": 1, "no problem": 1})


WRAPPED = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
    "(without quotes) where $Answer is the answer to the problem.\n\nWhat is 1+1?\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


@pytest.mark.parametrize(
    "row, problem, answer, solution",
    [
        ({"question": "Q", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}, "Q", " 2", "1 + 1 = <<1+1=2>>2"),
        ({"problem": "P", "solution": "so \\boxed{\\frac{1}{2}}"}, "P", "\\frac{1}{2}", "so \\boxed{\\frac{1}{2}}"),
        ({"prompt": [{"role": "user", "content": WRAPPED}], "reward_model": {"ground_truth": "2"}}, "What is 1+1?", "2", None),
        ({"prompt": "P", "answer": 3}, "P", "3", None),
        ({"problem": "P #### Q", "answer": "3"}, "P #### Q", "3", None),
    ],
)
def test_rows_of_known_data_sets_are_read(row, problem, answer, solution):
    found = adapt(row, 7)
    assert (found.problem, found.answer, found.solution, found.id) == (problem, answer, solution, "7")
    assert found.rewritten == (problem == "What is 1+1?")


def make(*texts, answers=None):
    return [Problem(i, t, (answers or ["1"] * len(texts))[i], None, "", f"p{i}") for i, t in enumerate(texts)]


def test_duplicates_are_equal_words_in_any_layout():
    card = Card("x")
    texts = ["Find $x+1$.", "find  x + 1", "Find $x-1$.", "Find \\left(x+1\\right)", "Find $x+1$"]
    kept = without_duplicates(make(*texts, answers=["1", "1", "1", "1", "2"]), card)
    assert [p.id for p in kept] == ["p0", "p2", "p3"]
    assert card.dropped == {"duplicates": 2} and card.conflicts == 1


def test_near_overlaps_by_hand():
    """Ten words have six 5-grams; one changed at the end leaves five of seven in common, in the middle one of eleven."""
    words_ = "a b c d e f g h i j".split()
    end, middle = [*words_[:-1], "z"], [*words_[:5], "z", *words_[6:]]
    card = Card("x")
    evaluation = {"e": make(" ".join(words_))}
    kept = without_overlaps(make(" ".join(end), " ".join(middle), " ".join(words_).upper()), evaluation, card)
    assert [p.id for p in kept] == ["p1"]
    assert [(o["id"], o["kind"], o["jaccard"]) for o in card.overlaps] == [("p0", "near", 0.714), ("p2", "exact", 1.0)]
    assert len(without_overlaps(make(" ".join(end)), evaluation, Card("y"), drop=False)) == 1


def test_kinds_of_answers():
    kinds = {"42": "integer", "-1,234": "integer", "0.5": "decimal", "\\frac{1}{2}": "fraction", "1/2": "fraction"}
    kinds |= {"\\text{Evelyn}": "words", "1, 2": "list", "(1,2)": "list", "x^2": "expression"}
    assert {a: answer_kind(a) for a in kinds} == kinds


@pytest.mark.skipif(not SHARED.exists(), reason="the shared problem files are not beside this checkout")
def test_dapo_loses_what_stands_in_the_evaluation_sets():
    """dapo-00728 is AIME 2026's first problem; the rest is compared with a list that was computed elsewhere."""
    sets = {n: load(DataConfig(str(SHARED / "eval" / f"{n}.jsonl")), "e") for n in ("aime2026", "math500", "minerva_math", "hmmt_feb_2025")}
    card = Card("dapo")
    problems = without_duplicates(load(DataConfig(str(SHARED / "train" / "dapo_math_17k.jsonl")), "d", card), card)
    kept = without_overlaps(problems, sets, card)
    assert [(o["id"], o["kind"]) for o in card.overlaps if o["eval"] == "aime2026"] == [("dapo-00728", "exact")]
    assert "dapo-00728" not in {p.id for p in kept} and len(kept) == 17176 - card.dropped.total()
    rows = [json.loads(line) for line in (SHARED / "overlaps.jsonl").read_text().split("\n") if line]
    listed = {r["train_id"] for r in rows if r["train_file"] == "dapo_math_17k" and r["eval_file"] in sets}
    gone = {o["id"] for o in card.overlaps} | (
        {p.id for p in load(DataConfig(str(SHARED / "train" / "dapo_math_17k.jsonl")), "d")} - {p.id for p in problems}
    )
    assert listed <= gone and {o["eval"] for o in card.overlaps} == {"aime2026", "math500"}
    print("\n".join(card.lines()))
