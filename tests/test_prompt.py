import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from antisd_jax.errors import UserError
from antisd_jax.rewards.grade import Grade
from antisd_jax.steps import privileged
from antisd_jax.text.prompt import PromptConfig, Prompts, clean_solution, load_tokenizer, shuffled
from antisd_jax.text.rows import Problem, adapt
from antisd_jax.tiny import HERE
from antisd_jax.tiny import tokenizer as tok

PROBLEM = Problem(0, "What is 6 times 7?", "42", "Six sevens are 42.", "test", "p0")
RIGHT, WRONG = Grade("correct", "42"), Grade("wrong", "41")
TEXTS = ["a \\boxed{41}", "b \\boxed{42}", "c \\boxed{42}", "d \\boxed{41}"]
GRADES = [WRONG, RIGHT, RIGHT, WRONG]


@pytest.fixture(scope="module", params=tok.TEMPLATES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    corpus = [PROBLEM.problem, "Your previous attempt: is correct. Solve the problem again, step by step. Please reason"]
    tok.save(tok.trained_tokenizer(corpus, 400), folder, request.param)
    return folder


@pytest.fixture
def prompts(folder):
    return Prompts(load_tokenizer(folder), PromptConfig(thinking=template(folder) == "think"))


def template(folder) -> str:
    text = (folder / "chat_template.jinja").read_text()
    return next(name for name, t in tok.TEMPLATES.items() if t == text)


def context(prompts, which=0, problem=PROBLEM, texts=TEXTS, grades=GRADES, budget=10_000, seed=0):
    return prompts.context(problem, texts, grades, which, budget, np.random.default_rng(seed))


def test_the_student_sees_the_problem_and_the_instruction(prompts):
    text = prompts.tokenizer.decode(prompts.student(PROBLEM.problem))
    assert text.startswith("<|im_start|>user\nWhat is 6 times 7?\n\nPlease reason step by step")
    assert "<|im_start|>assistant\n" in text


MODES = {"plain": (False,), "hybrid": (False, True), "think": (True,)}


def test_teacher_and_student_end_alike(folder, prompts):
    """Both prompts hand over to the assistant in the same mode, empty thought included: no token of the response is an outlier."""
    for thinking in MODES[template(folder)]:
        p = Prompts(prompts.tokenizer, PromptConfig(thinking=thinking))
        a, b = (p.tokenizer.decode(i) for i in (p.student(PROBLEM.problem), p.teacher(PROBLEM.problem, "x", RIGHT.feedback)))
        assert a.rpartition("<|im_end|>")[2] == b.rpartition("<|im_end|>")[2]


def test_the_thinking_switch_does_what_the_template_says(folder, prompts):
    ends = {"plain": ("assistant\n", None), "hybrid": ("</think>\n\n", "assistant\n"), "think": (None, "<think>")}[template(folder)]
    for thinking, end in zip((False, True), ends):
        if end is not None:
            p = Prompts(prompts.tokenizer, PromptConfig(thinking=thinking))
            assert p.tokenizer.decode(p.student("x")).endswith(end)


def test_a_thinking_mode_that_the_template_does_not_have_is_refused(folder, prompts):
    wrong = {"plain": (True, "has no thinking mode"), "think": (False, "opens a thought: this model needs --prompt.thinking=true")}
    if template(folder) in wrong:
        thinking, message = wrong[template(folder)]
        with pytest.raises(UserError, match=message):
            Prompts(prompts.tokenizer, PromptConfig(thinking=thinking))


def test_the_teacher_sees_a_sibling_and_the_feedback_on_the_rollout_itself(prompts):
    for which, sentence in ((0, "Your answer is incorrect."), (1, "Your answer is correct.")):
        c = context(prompts, which)
        text = prompts.tokenizer.decode(c.ids)
        assert c.source == "sibling" and not c.shortened
        assert f"Previous assessment:\n{sentence}" in text
        assert "Your previous attempt:\n" in text and TEXTS[which] not in text


def test_a_rollout_is_never_its_own_sibling(prompts):
    only = [WRONG, RIGHT, WRONG, WRONG]
    assert context(prompts, 1, grades=only).source == "solution"
    assert context(prompts, 0, grades=only).source == "sibling"


def test_the_sibling_is_drawn_from_all_correct_ones(prompts):
    shown = {prompts.solution(PROBLEM, TEXTS, GRADES, 0, np.random.default_rng(s))[0] for s in range(20)}
    assert shown == {TEXTS[1], TEXTS[2]}


@pytest.mark.parametrize(
    "sources, solution, expected",
    [
        (("sibling", "solution", "answer", "feedback"), "worked", ("worked", "solution")),
        (("sibling", "solution", "answer", "feedback"), None, ("\\boxed{42}", "answer")),
        (("sibling", "answer"), "worked", ("\\boxed{42}", "answer")),
        (("sibling", "feedback", "answer"), None, (None, "feedback")),
        (("sibling",), None, (None, "feedback")),
    ],
)
def test_sources_are_tried_in_order(prompts, sources, solution, expected):
    p = Prompts(prompts.tokenizer, replace(prompts.config, sources=sources))
    assert p.solution(replace(PROBLEM, solution=solution), ["x"] * 2, [WRONG] * 2, 0, None) == expected


def test_the_answer_shown_is_the_last_box_of_the_rows_own_solution():
    """Countdown's answer field is "7 from 5 6 2", a specification for its grader, and no answer."""
    puzzle = adapt(json.loads((HERE / "train.jsonl").read_text().splitlines()[0]), 0)
    p = Prompts(load_tokenizer(HERE / "model"), PromptConfig(sources=("answer",)))
    c = context(p, problem=puzzle)
    assert c.source == "answer" and "\\boxed{(6*2)-5}" in p.tokenizer.decode(c.ids)
    assert p.tokenizer.convert_tokens_to_ids("<unk>") not in c.ids


def test_only_the_solution_is_shortened_to_its_budget(prompts):
    long = replace(PROBLEM, solution="start " + "so it goes on and on " * 200 + "end")
    p = Prompts(prompts.tokenizer, replace(prompts.config, sources=("solution",), solution_tokens=100))
    c = context(p, problem=long)
    text = p.tokenizer.decode(c.ids)
    assert c.shortened and c.source == "solution"
    assert PROBLEM.problem in text and "Your answer is incorrect." in text
    shown = text.partition("attempt:\n")[2].partition("\n\nPrevious")[0]
    head, _, tail = shown.partition("\n…\n")
    sizes = [len(p.tokenizer.encode(x, add_special_tokens=False)) for x in (shown, head, tail)]
    assert sizes[0] <= 100 and head.startswith("start") and tail.endswith("end")
    assert sizes[2] == pytest.approx(3 * sizes[1], abs=6)


def test_the_budget_of_the_whole_prompt_holds_and_an_impossible_one_gives_no_context(prompts):
    long = replace(PROBLEM, solution="on and on " * 500)
    need = len(prompts.teacher(PROBLEM.problem, "", WRONG.feedback))
    c = context(prompts, problem=long, grades=[WRONG] * 4, budget=need + 60)
    assert c.shortened and need < len(c.ids) <= need + 60
    hopeless = context(prompts, problem=long, grades=[WRONG] * 4, budget=need - 20)
    assert hopeless.ids == [] and hopeless.source == "overflow"


def test_without_room_for_a_solution_the_feedback_stands_alone(prompts):
    need = len(prompts.teacher(PROBLEM.problem, "", WRONG.feedback))
    c = context(prompts, problem=replace(PROBLEM, solution="on and on " * 500), grades=[WRONG] * 4, budget=need + 5)
    assert c.ids == prompts.teacher(PROBLEM.problem, None, WRONG.feedback)
    assert (c.source, c.shortened) == ("feedback", True)


def test_shortening_never_cuts_inside_a_character_and_keeps_the_budget(prompts):
    text = "因为 ∠ABC ≤ √2，所以 x ≥ π/3。" * 40
    for budget in range(20, 80):
        shown, cut = prompts.shorten(text, budget)
        assert cut and "\ufffd" not in shown
        assert len(prompts.tokenizer.encode(shown, add_special_tokens=False)) <= budget


def test_a_siblings_thoughts_and_afterthoughts_are_not_shown():
    text = "<think>\nmaybe \\boxed{1}\n</think>\n\nIt is \\boxed{\\frac{1}{2}}. Hope this helps!"
    assert clean_solution(text) == "It is \\boxed{\\frac{1}{2}}"
    assert clean_solution("opened by the template \\boxed{1}</think> Then \\boxed{2} ok") == "Then \\boxed{2}"


def test_thought_marks_survive_decoding_so_that_thoughts_can_be_stripped(prompts):
    ids = prompts.tokenizer.encode("<think>maybe</think> done", add_special_tokens=False)
    assert prompts.tokenizer.decode(ids, skip_special_tokens=True) == "<think>maybe</think> done"


def test_feedback_never_says_that_a_response_was_cut_off():
    for outcome in ("wrong", "unparsed", "timed out"):
        assert Grade(outcome).feedback == "Your answer is incorrect."


def test_a_tokenizer_without_chat_template_is_refused(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    with pytest.raises(UserError, match="has no chat template"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(UserError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_an_unknown_source_is_refused():
    with pytest.raises(UserError, match="prompt.sources: 'siblings' is none of sibling, solution, answer, feedback"):
        PromptConfig(sources=("siblings",))


def test_context_controls_show_what_they_say(prompts):
    def seen(config, other=None):
        c = Prompts(prompts.tokenizer, config).context(PROBLEM, TEXTS, GRADES, 0, 400, np.random.default_rng(0), other)
        return c.source, prompts.tokenizer.decode(c.ids)

    wording = dict(thinking=prompts.config.thinking)
    source, text = seen(PromptConfig(**wording, sources=("none",)))
    assert source == "none" and "attempt:" not in text and "assessment:" not in text and "Solve the problem again" in text
    source, text = seen(PromptConfig(**wording, sources=("other", "feedback")), other="Of sevens, 49.")
    assert source == "other" and "Six sevens" not in text and "Of sevens, 49." in text and "Your answer is incorrect." in text
    assert seen(PromptConfig(**wording, sources=("other", "feedback")))[0] == "feedback", "no other problem has a solution"


def test_shuffled_sentences_are_the_same_in_another_order():
    text = "First. Then 3.5 more!\nAnd so on? The end"
    found = {shuffled(text, np.random.default_rng(n)) for n in range(30)}
    assert len(found) > 10 and {tuple(sorted(f.split("\n"))) for f in found} == {("And so on?", "First.", "The end", "Then 3.5 more!")}


def test_another_problems_solution_is_never_its_own(prompts):
    """Two problems stand in a step, one of them twice; the third has no solution, and nobody solved it."""
    twice = replace(PROBLEM, solution="Of six.")
    problems = [twice, replace(PROBLEM, index=1, solution="Of one."), twice, replace(PROBLEM, index=2, solution=None)]
    policy = SimpleNamespace(prompts=Prompts(prompts.tokenizer, replace(prompts.config, sources=("other", "none"))), context_budget=400)
    contexts = privileged(policy, problems, [["x"]] * 4, [[WRONG]] * 4, 0, 1)
    shown = [prompts.tokenizer.decode(c.ids) for c in contexts]
    assert [("Of one." in text, "Of six." in text) for text in shown] == [(True, False), (False, True), (True, False), (False, True)]
