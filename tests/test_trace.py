"""`antisd trace` on a small run: its numbers, its words, and what a browser makes of its page."""

import csv
import re
from collections import Counter

import numpy as np
import pytest
from browser import looked_at, readable
from test_train import small

from antisd_jax.cli import main
from antisd_jax.errors import UserError
from antisd_jax.files import read_jsonl
from antisd_jax.report.trace import RANGE, colour, group_rows, write_trace
from antisd_jax.text.words import first_word
from antisd_jax.tiny import HERE
from antisd_jax.trace import TraceConfig, gate_word, pieces, trace
from antisd_jax.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of nine problems, one of which stands in the evaluation set: the run has eight, and a trace of sixteen takes each twice."""
    folder, data = tmp_path_factory.mktemp("trace") / "run", tmp_path_factory.mktemp("data")
    rows = (HERE / "train.jsonl").read_text().splitlines(keepends=True)[:9]
    (data / "train.jsonl").write_text("".join(rows))
    (data / "eval.jsonl").write_text(rows[0])
    files = (f"data.path={data / 'train.jsonl'}", f"eval.data={data / 'eval.jsonl'}")
    train(small(folder, "steps=2", *files, "mesh.data=1", "mesh.fsdp=8"))
    before = sorted((p, p.stat().st_mtime_ns) for p in (folder / "checkpoints").rglob("*"))
    assert main(["trace", str(folder), "--problems=16", "--samples=2", "--least=3"]) == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in (folder / "checkpoints").rglob("*")) == before, "a trace only reads"
    return folder


def test_every_token_has_its_numbers(run):
    rows, tokens = (read_jsonl(run / "trace-2" / f"{name}.jsonl") for name in ("rollouts", "tokens"))
    assert len(rows) == 32 and {row["outcome"] for row in rows} >= {"correct", "wrong"}
    of = {}
    for t in tokens:
        of.setdefault(t["rollout"], []).append(t)
    assert list(of) == [row["rollout"] for row in rows] == list(range(32))
    problems = Counter(row["problem"] for row in rows)
    assert problems == dict.fromkeys((f"countdown-train-{i:05d}" for i in range(1, 9)), 4), "what overlaps is left out, as in the run"
    assert {row["gate"] for row in rows} == {"warm-up"}
    for row in rows:
        own = of[row["rollout"]]
        for key in ("problem", "sample", "outcome", "context_source", "gate"):
            assert {t[key] for t in own} == {row[key]}, key
        assert [t["position"] for t in own] == list(range(len(own)))
        assert "".join(t["token"] for t in own).removesuffix("<|im_end|>").rstrip() == row["response"].rstrip()
        assert row["gold"] in row["prompt"] or row["privileged"].startswith("<|im_start|>")
    u, s, t = (np.array([x[name] for x in tokens]) for name in ("u", "s", "t"))
    assert np.allclose(u, t - s, atol=3e-5) and (s <= 0).all() and (t <= 0).all() and np.abs(u).max() > 0.5
    assert np.allclose([x["minus_phi"] for x in tokens], -0.5 * (np.logaddexp(0, u) - np.log(2)), atol=2e-5)
    for name in ("student_entropy", "teacher_entropy"):
        entropy = np.array([x[name] for x in tokens])
        assert (entropy >= 0).all() and entropy.max() <= np.log(75)


def test_words_are_counted_and_ordered_as_by_hand(run):
    tokens = read_jsonl(run / "trace-2" / "tokens.jsonl")
    with open(run / "trace-2" / "words.csv", newline="") as file:
        table = list(csv.DictReader(file))
    by_hand = {}
    for t in tokens:
        by_hand.setdefault(t["token"].strip(), []).append(t)
    assert {row["word"] for row in table} == {word for word, ts in by_hand.items() if word and len(ts) >= 3}
    for row in table:
        mine = by_hand[row["word"]]
        assert int(row["count"]) == len(mine) and float(row["u_mean"]) == pytest.approx(np.mean([t["u"] for t in mine]))
        assert float(row["p_teacher"]) == pytest.approx(np.mean(np.exp([t["t"] for t in mine])))
    assert [float(row["u_mean"]) for row in table] == sorted(float(row["u_mean"]) for row in table)


def test_chosen_problems_another_folder_and_a_clear_refusal(run, tmp_path, capsys):
    ids = [row["problem"] for row in read_jsonl(run / "trace-2" / "rollouts.jsonl")][:16:2]
    trace(str(run), TraceConfig(ids=(*ids[3:], *ids[:3]), samples=2, output=str(tmp_path / "other")))
    rows = read_jsonl(tmp_path / "other" / "rollouts.jsonl")
    assert [row["problem"] for row in rows[::2]] == [*ids[3:], *ids[:3]] and len(rows) == 16
    for wrong, message in (
        (TraceConfig(ids=("nothing",)), "ids: the run's data has no problem 'nothing'; ids are like 'countdown-train-"),
        (TraceConfig(step=7), "has no checkpoint 7; there are: 2"),
        (TraceConfig(problems=3), "problems: 3 does not divide"),
    ):
        with pytest.raises(UserError, match=message):
            trace(str(run), wrong)
    assert main(["trace"]) == 2 and "takes one run folder" in capsys.readouterr().err


@pytest.mark.parametrize("option, least", [("problems=0", 1), ("problems=-1", 1), ("samples=-2", 0)])
def test_a_trace_of_less_than_nothing_is_refused(capsys, option, least):
    assert main(["trace", "run", f"--{option}"]) == 2
    assert capsys.readouterr().err == f"error: {option.replace('=', ': got ')}, wanted at least {least}\n"


def test_a_browser_shows_the_colours_of_the_numbers(run, tmp_path):
    """Ground colours as Chromium computes them, against the JSONL."""
    page = (run / "trace-2" / "trace.html").read_text()
    found = looked_at(
        page, '[...d.querySelectorAll(".tokens span")].map(x => [x.textContent, w.getComputedStyle(x).backgroundColor])', tmp_path
    )
    tokens = read_jsonl(run / "trace-2" / "tokens.jsonl")
    assert [text for text, _ in found] == [t["token"] for t in tokens]
    for (_, seen), t in zip(found, tokens):
        r, g, b, alpha = [float(x) for x in (re.findall(r"[\d.]+", seen) + ["1"])[:4]]
        assert abs(alpha - min(abs(t["u"]) / RANGE, 1)) < 0.01, (seen, t)
        assert alpha < 0.01 or (b > r if t["u"] < 0 else r > b)
    readable(page, tmp_path)


def test_colours_words_and_pieces_by_hand():
    assert colour(-2.0) == "rgba(59,130,196,1.00)" and colour(1.0) == "rgba(217,96,59,0.50)" and colour(9.0).endswith("1.00)")
    assert [first_word(x) for x in (" Wait,", "\\boxed{(", "So ", "==", "Solution", "l'état")] == [
        "Wait",
        "boxed",
        "So",
        "",
        "Solution",
        "l",
    ]

    class Bytes:  # a tokenizer whose tokens are bytes
        def decode(self, ids):
            return bytes(ids).decode("utf-8", "replace")

    assert pieces(Bytes(), list("aé…b".encode())) == ["a", "", "é", "", "", "…", "b"]
    assert "".join(pieces(Bytes(), list("é".encode())[:1])) == "\ufffd"


def test_what_does_not_act_is_shown_but_not_counted(tmp_path):
    def token(text, u):
        return {"token": text, "u": u, "s": -1.0, "t": u - 1.0, "minus_phi": 0.0, "student_entropy": 0.0, "teacher_entropy": 0.0}

    row = {
        "problem": "p",
        "prompt": "",
        "outcome": "wrong",
        "extracted": "",
        "gold": "",
        "context_source": "",
        "privileged": "",
        "gate": "none",
    }
    rows = [row | {"sample": g, "acts": g == 0} for g in range(2)]
    tokens = [[token("Wait", -1.0), token("so", 0.5)], [token("Wait", 0.9)]]
    page = write_trace(tmp_path, "run", rows, tokens, [], {"deliberation": ("Wait",), "shortcut": ("So",)}).read_text()
    assert "<td>deliberation</td><td>1</td><td>-1.000</td>" in page and "<td>all tokens</td><td>2</td><td>-0.250</td>" in page
    assert "1 rollouts had no usable privileged context" in page and "u +0.900" in page and "gate: none" in page
    assert "<td>–</td>" in group_rows([], {})
    nothing = [r | {"acts": False} for r in rows]
    assert "2 rollouts had no usable" in write_trace(tmp_path, "run", nothing, tokens, [], {}).read_text()

    words = [
        {"word": name, "count": 5, "u_mean": u, "p_student": 0.5, "p_teacher": 0.5}
        for name, u in (("Wait", -1.0), ("yes", 0.0), ("So", 1.0))
    ]
    page = write_trace(tmp_path, "run", rows, tokens, words, {}).read_text()
    suppressed, boosted = page.partition("suppressed most")[2].partition("boosted most")[::2]
    assert "<td>Wait</td>" in suppressed and "<td>So</td>" in boosted and "<td>yes</td>" not in page
    assert "<td>So</td>" not in suppressed and "<td>Wait</td>" not in boosted


def test_how_the_gate_stood():
    told = [gate_word(kind, {"level": level, "open": o}) for kind, level, o in (("none", None, True), ("token_mean", None, True))]
    told += [gate_word("token_mean", {"level": 0.5, "open": o}) for o in (True, False)]
    assert told == ["none", "warm-up", "open", "closed"]
