import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from antisd_jax import config
from antisd_jax.arrays import named_key
from antisd_jax.errors import UserError
from antisd_jax.model import hf
from antisd_jax.model.parameters import count
from antisd_jax.model.settings import load_config
from antisd_jax.model.sharding import MeshConfig
from antisd_jax.rewards import countdown as grader
from antisd_jax.rewards.pool import Pool
from antisd_jax.steps import Grading, build_policy, privileged, prompted, roll_out, student_scores, teacher_scores
from antisd_jax.text.data import DataConfig, load
from antisd_jax.text.prompt import Prompts, load_tokenizer
from antisd_jax.tiny import HERE
from antisd_jax.tiny import tokenizer as tok
from antisd_jax.tiny.countdown import Trial, direct, informed, puzzles, search
from antisd_jax.tiny.pretrain import CONTEXT, PROMPT, RESPONSE, TRIALS, main, plain_row

ALL = puzzles(0)


def test_a_trial_writes_its_results_by_hand():
    assert Trial((3, 5, 2), ("*", "+")).written() == "3*5=15+2=17"
    assert Trial((3, 5, 2), ("*", "+")).boxed() == "\\boxed{(3*5)+2}"
    assert Trial((3, 5, 2), ("-", "+")).written() == "3-5=out"
    assert Trial((12, 3, 4), ("*", "+")).results() == [36, None]


def test_writing_and_grading_agree_on_every_candidate():
    """The puzzle's own arithmetic against the grader's parser."""
    for puzzle in ALL[::40]:
        gold = puzzle.row("train", 0)["answer"]
        assert all(grader.grade(t.boxed(), gold).correct for t in puzzle.hits)
        assert not any(grader.grade(t.boxed(), gold).correct for t in puzzle.misses if None not in t.results())


def test_searches_claim_what_is_true():
    rng = np.random.default_rng(0)
    for puzzle in ALL[:200]:
        text, right = search(puzzle, rng, 0.3, TRIALS)
        assert grader.grade(text, puzzle.row("train", 0)["answer"]).correct == right
        assert ("yes" in text) <= right and text.count("Wait") < TRIALS
        assert grader.grade(informed(puzzle, puzzle.hits[0], rng, 0.5), puzzle.row("train", 0)["answer"]).correct


def test_the_shipped_problems_are_what_the_seed_makes_and_held_out_ones_are_unseen():
    for split, held_out in (("train", False), ("eval", True)):
        rows = [json.loads(line) for line in (HERE / f"{split}.jsonl").read_text().splitlines()]
        assert rows == [p.row(split, i) for i, p in enumerate(p for p in ALL if p.held_out == held_out)]
    keys = [{(tuple(sorted(p.numbers)), p.target) for p in ALL if p.held_out == h} for h in (True, False)]
    assert not keys[0] & keys[1] and len(keys[0]) > 300


def test_the_shipped_model_is_small_and_its_tokenizer_exact():
    model = load_config(HERE / "model")
    assert count(model) < 2_000_000
    tokenizer = load_tokenizer(HERE / "model")
    prompts, rng = Prompts(tokenizer, tok.WORDING), np.random.default_rng(1)
    assert model.vocab == len(tokenizer)
    for puzzle in ALL[::100]:
        text, _ = search(puzzle, rng, 0.0, TRIALS)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text and len(ids) < RESPONSE
        student = prompts.student(puzzle.statement)
        teacher = prompts.teacher(puzzle.statement, text, "Your answer is incorrect.")
        assert len(student) <= PROMPT and len(teacher) <= CONTEXT
        assert tokenizer.convert_tokens_to_ids("<unk>") not in student + teacher + ids


def test_solutions_of_the_problems_are_correct():
    for problem in load(DataConfig("countdown:eval"), "data"):
        assert grader.grade(problem.solution, problem.answer).correct
    assert direct(ALL[0].hits[0]) == ALL[0].row("train", 0)["solution"]


@pytest.mark.long
def test_pretraining_learns_and_writes_a_complete_folder(tmp_path, capsys, mesh1):
    main([f"--output={tmp_path}", "--steps=8"])
    losses = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0]
    hf.load_weights(tmp_path / "model", load_config(tmp_path / "model"), mesh1)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (HERE / "model" / name).read_bytes()
    assert (tmp_path / "train.jsonl").read_bytes() == (HERE / "train.jsonl").read_bytes()


def test_the_embedded_teacher_suppresses_deliberation_and_boosts_the_shortcut(mesh1):
    """After a failed trial: "Wait" has u < 0 and is rewarded, "So", which answers without having found it, has u > 0."""
    c = config.load([str(ROOT / "configs" / "smoke.yaml")], [])
    policy, source = build_policy(replace(c, mesh=MeshConfig(8)))
    weights = hf.load_weights(source, policy.model, policy.mesh)
    problems = prompted(policy, load(c.data, "data"))[0][:32]
    with Pool(c.reward) as pool:
        grading = Grading(policy, pool, problems, 8)
        rollouts, _ = roll_out(policy, weights, problems, 8, named_key(0, 0, "sample"), c.sampling, grading.ended)
        said, grades, rewards = grading.verdicts()
    assert 0.07 <= rewards.mean() <= 0.4
    contexts = privileged(policy, problems, said, grades, 0, 0)
    teacher, acts = teacher_scores(policy, weights, problems, contexts, rollouts, 1.0)
    u = teacher.logprobs - student_scores(policy, weights, problems, rollouts, 1.0).logprobs
    no, wait, so = (policy.prompts.tokenizer.convert_tokens_to_ids(t) for t in (" no", "\nWait, ", "\nSo "))
    tokens = rollouts.tokens.reshape(-1, policy.responses)
    failed = np.roll(tokens == no, 1, axis=1) & acts[:, None]
    assert failed.sum() > 100
    assert u[failed & (tokens == wait)].mean() < -0.1
    assert u[failed & (tokens == so)].mean() > 0.1


def test_a_policy_that_always_gives_up_is_shown_one_try(tmp_path):
    prompts = Prompts(load_tokenizer(HERE / "model"), tok.WORDING)
    rng = np.random.default_rng(0)
    tries = {chance: [plain_row(prompts, p, rng, chance)[1].count("=") // 2 for p in ALL[:200]] for chance in (1.0, 0.0)}
    assert max(tries[1.0]) == 1 and max(tries[0.0]) == TRIALS
    with pytest.raises(UserError, match="--give-up: got 1.5"):
        main([f"--output={tmp_path}", "--give-up=1.5"])
