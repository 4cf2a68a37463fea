"""Prompts: the student's, and the teacher's privileged one. All wording stands in PromptConfig and nowhere else."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from antisd_jax.errors import UserError
from antisd_jax.rewards.boxed import last_boxed
from antisd_jax.rewards.grade import Grade
from antisd_jax.text.rows import Problem

SOURCES = ("sibling", "solution", "answer", "feedback")
# What a signal should not come from: another problem's solution; the frame of the prompt without anything in it.
CONTROLS = ("other", "none")
LEAST_SHOWN = 8  # tokens: below it a shortened solution is not worth showing


@dataclass(frozen=True)
class PromptConfig:
    """Wording of both prompts, thinking mode, and what the teacher may be shown.

    instruction: after the problem, in both prompts [–; ours].
    sources: of the shown solution, tried in this order; "sibling" is a correct rollout of the same group, "feedback" shows none. Controls:
    other, none. The released code's sibling alone [–; ours].
    """

    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    attempt: str = "Your previous attempt:"  # before the shown solution [–; ours]
    assessment: str = "Previous assessment:"  # before the sentence about the rollout [–; ours]
    request: str = "Solve the problem again, step by step."  # after them, before the instruction [–; ours]
    thinking: bool = False  # enable_thinking of the chat template, for student and teacher alike [–; paper]
    sources: tuple[str, ...] = SOURCES
    shuffled: bool = False  # a control: the shown solution's sentences in another order [–; ours]
    solution_tokens: int = 3072  # budget of the shown solution, the only part that is ever shortened [tokens; ours]
    elision: str = "\n…\n"  # stands where the middle of a solution was left out [–; ours]

    def __post_init__(self):
        for source in self.sources:
            if source not in SOURCES + CONTROLS:
                raise UserError(f"prompt.sources: {source!r} is none of {', '.join(SOURCES + CONTROLS)}")


@dataclass(frozen=True)
class Context:
    """One rollout's privileged prompt; shortened: the solution was cut. ids is empty, and source "overflow", when not even
    the prompt without a solution fits."""

    ids: list[int]
    source: str
    shortened: bool = False


def load_tokenizer(folder: str | Path, chat: bool = True):
    """The folder's tokenizer. Raises UserError when there is none or, where `chat` is wanted, it has no chat template."""
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer.json").exists():
        raise UserError(f"model folder {folder} has no tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as e:  # the library raises whatever the broken file provokes
        raise UserError(f"{folder}: tokenizer cannot be loaded: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}") from None
    if chat and not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template (chat_template.jinja or tokenizer_config.json)")
    return tokenizer


def ids_or_text(row: dict, name: str, encode, vocab: int, where: str) -> list[int]:
    """The token ids of a row's NAME_ids, or of its NAME as text. Raises UserError saying `where` when it has neither.

    A lone surrogate, which JSON can hold and no tokenizer takes, becomes a question mark.
    """
    ids = row.get(f"{name}_ids")
    if ids is None and isinstance(row.get(name), str):
        ids = encode(row[name].encode("utf-8", "replace").decode())
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < vocab for i in ids):
        raise UserError(f"{where}: wanted {name!r} as text or {name}_ids as token ids below {vocab}, got {str(ids)[:80]}")
    if name == "prompt" and not ids:
        raise UserError(f"{where}: the prompt is empty, so nothing predicts the response's first token")
    return ids


class Prompts:
    """Renders prompts with one tokenizer and one wording. Token ids out, and response ids never go through it."""

    def __init__(self, tokenizer, config: PromptConfig):
        """Raises UserError when the chat template does not have the thinking mode that the configuration asks for."""
        self.tokenizer, self.config = tokenizer, config
        on, off = (self.render("x", thinking) for thinking in (True, False))
        if not config.thinking and off.rstrip().endswith("<think>"):
            raise UserError("prompt.thinking: false, but the chat template opens a thought: this model needs --prompt.thinking=true")
        if config.thinking and on == off and not on.rstrip().endswith("<think>"):
            raise UserError("prompt.thinking: true, but the chat template has no thinking mode")

    def render(self, user_turn: str, thinking: bool) -> str:
        """One user turn through the chat template, up to where the assistant speaks."""
        turns = [{"role": "user", "content": user_turn}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)

    def ids(self, user_turn: str) -> list[int]:
        return self.tokenizer.encode(self.render(user_turn, self.config.thinking), add_special_tokens=False)

    def student(self, problem: str) -> list[int]:
        return self.ids(f"{problem}\n\n{self.config.instruction}")

    def teacher(self, problem: str, solution: str | None, feedback: str | None) -> list[int]:
        c = self.config
        shown = f"{c.attempt}\n{solution}\n\n" if solution is not None else ""
        assessed = f"{c.assessment}\n{feedback}\n\n" if feedback is not None else ""
        return self.ids(f"{problem}\n\n{shown}{assessed}{c.request} {c.instruction}")

    def context(
        self, problem: Problem, texts: list[str], grades: list[Grade], which: int, budget: int, rng: np.random.Generator, other=None
    ) -> Context:
        """The privileged prompt of sample `which` of a group: its own feedback, and somebody else's verified solution.

        texts and grades are the group's; `budget` bounds the prompt in tokens. A solution is shortened to fit, nothing
        else is: when the rest alone is too long the context comes back empty, and the rollout gets no per-token term.
        other: a solution of another problem, for the control of that name.
        """
        solution, source = self.solution(problem, texts, grades, which, rng, other)
        feedback = None if source == "none" else grades[which].feedback
        shortened = False
        if solution is not None:
            solution = shuffled(solution, rng) if self.config.shuffled else solution
            rest = len(self.teacher(problem.problem, "", feedback))
            solution, shortened = self.shorten(solution, min(self.config.solution_tokens, budget - rest))
            source = source if solution is not None else "feedback"
        ids = self.teacher(problem.problem, solution, feedback)
        return Context(ids, source, shortened) if len(ids) <= budget else Context([], "overflow", shortened)

    def solution(self, problem: Problem, texts, grades, which: int, rng, other: str | None = None) -> tuple[str | None, str]:
        """The verified solution to show, and where it comes from: the first of the configured sources that has one."""
        siblings = [i for i, g in enumerate(grades) if g.correct and i != which]
        for source in self.config.sources:
            if source == "sibling" and siblings:
                return clean_solution(texts[siblings[rng.integers(len(siblings))]]), source
            if source == "solution" and problem.solution:
                return problem.solution, source
            if source == "answer":
                boxed = last_boxed(problem.solution or "")  # the answer of the data may be a specification for its grader
                return f"\\boxed{{{boxed[0] if boxed else problem.answer}}}", source
            if source == "other" and other is not None:
                return other, source
            if source in ("feedback", "none"):
                return None, source
        return None, "feedback"

    def shorten(self, text: str, budget: int) -> tuple[str | None, bool]:
        """The text in at most `budget` tokens, and whether it was cut: head (a quarter) and tail around an elision.

        Cuts fall between characters, never inside one. None when there is no room for anything worth showing.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = encoded["offset_mapping"]
        if len(ends) <= budget:
            return text, False
        room = budget - len(self.tokenizer.encode(self.config.elision, add_special_tokens=False))
        while room >= LEAST_SHOWN:
            head, tail = text[: ends[room // 4 - 1][1]], text[ends[len(ends) - (room - room // 4)][0] :]
            shown = head + self.config.elision + tail
            if len(self.tokenizer.encode(shown, add_special_tokens=False)) <= budget:
                return shown, True
            room -= 4
        return None, True


def shuffled(text: str, rng: np.random.Generator) -> str:
    """The text's sentences, or lines, in a random order."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part]
    return "\n".join(parts[n] for n in rng.permutation(len(parts)))


def clean_solution(text: str) -> str:
    """A correct rollout as a solution to show: what follows its last thought, cut after its last boxed answer."""
    text = text.rpartition("</think>")[2]
    boxed = last_boxed(text)
    return (text[: boxed[1]] if boxed else text).strip()
