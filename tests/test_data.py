import pytest
from conftest import SHARED

from antisd_jax.errors import UserError
from antisd_jax.text.data import DataConfig, Order, Problem, load

ROW = '{"problem": "p", "answer": "1", "solution": null, "source": "s", "id": "a"}'


def file(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    return DataConfig(str(path))


@pytest.mark.parametrize(
    "text, message",
    [
        (ROW + '\n{"problem": "p", "answer": ""}', "rows.jsonl row 2: no answer"),
        ('{"problem": "p"}', "row 1: no answer"),
        ('{"answer": "1"}', "row 1: no problem"),
        (ROW + "\n\n{", "row 3: not JSON"),
        ("[]", "row 1: a list, wanted an object"),
        ("", "holds no problems"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load(file(tmp_path, text), "data")


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(UserError, match="eval.data.path: .*nothing.jsonl cannot be read: No such file"):
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
