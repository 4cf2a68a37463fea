"""The verbs of the training loop: what turns problems into rollouts, contexts, scores and a batch.

Host side: strings and numpy arrays in and out, with one call of a compiled program in the middle where there is one.
Shape letters: P problems, G samples a problem, N = P·G rollouts in that order, R response tokens, B rows of a micro-batch,
T tokens of its rows, R' = min(R, T).
"""

from dataclasses import astuple, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from antisd_jax.arrays import word
from antisd_jax.batching import Micro, arrange, buckets, padding
from antisd_jax.errors import UserError
from antisd_jax.learner import Seen, UpdateStats, accumulate, no_gradient, optimizer_step
from antisd_jax.model.hf import locate
from antisd_jax.model.parameters import ModelConfig, declare
from antisd_jax.model.settings import load_config, stop_tokens
from antisd_jax.model.sharding import everywhere, keep_programs, make_mesh, one_by_one, place_rows, rows_per_step
from antisd_jax.objective.advantage import Term, group_advantage, term_signal
from antisd_jax.objective.loss import row_weights
from antisd_jax.processes import gathered, mine, safe_point
from antisd_jax.rewards.grade import Grade
from antisd_jax.rewards.pool import Pool
from antisd_jax.rollout.books import Tally
from antisd_jax.rollout.engine import generate, program
from antisd_jax.rollout.sampling import Sampling
from antisd_jax.rollout.warm import compile_all
from antisd_jax.score import score
from antisd_jax.text.prompt import Context, Prompts, clean_solution, load_tokenizer
from antisd_jax.text.rows import Problem
from antisd_jax.text.words import first_word
from antisd_jax.tiny import HERE
from antisd_jax.types import Batch, Rollouts, Rows, Scores, TrainState, pack_rows


@dataclass(frozen=True)
class Policy:
    """What every stage knows about the model: its numbers, its mesh, its prompts and its budgets in tokens."""

    model: ModelConfig
    mesh: jax.sharding.Mesh
    prompts: Prompts
    stop: tuple[int, ...]
    prompt_budget: int
    context_budget: int
    responses: int  # R
    micro_tokens: int
    dtype: str
    slots: int = 0  # samples in flight; 0: all of a step's
    words: tuple[int, ...] = ()  # ids of the tokens that the term is restricted to; (): all


def model_folder(path: str, revision: str, weights: bool = True) -> Path:
    """Where a model's files are: of the embedded one for "tiny", else as `hf.locate` says."""
    return HERE / "model" if path == "tiny" else locate(path, revision, weights)


def build_policy(config) -> tuple[Policy, Path]:
    """The policy of a configuration, and the model folder that holds its first weights. Raises UserError for what does not fit."""
    path = model_folder(config.model.path, config.model.revision)
    model = load_config(path)
    mesh = make_mesh(config.mesh)
    keep_programs(mesh)
    refuse_mesh(config, model, mesh)
    tokenizer, stop = load_tokenizer(path), stop_tokens(path)
    if max(len(tokenizer) - 1, *stop) >= model.vocab:
        raise UserError(f"{path}: token ids up to {max(len(tokenizer) - 1, *stop)} for a model with vocab_size {model.vocab}")
    policy = Policy(
        model=model,
        mesh=mesh,
        prompts=Prompts(tokenizer, config.prompt),
        stop=stop,
        prompt_budget=config.lengths.prompt,
        context_budget=config.lengths.context,
        responses=config.lengths.response,
        micro_tokens=config.optim.micro_tokens,
        dtype=config.model.dtype,
        slots=config.rollout.slots,
        words=word_ids(tokenizer, config.method.term.words),
    )
    return policy, path


def word_ids(tokenizer, words: tuple[str, ...]) -> tuple[int, ...]:
    """Ids of the tokens whose first word is one of these. Raises UserError when there is no such token."""
    if not words:
        return ()
    said = tokenizer.batch_decode([[n] for n in range(len(tokenizer))])
    found = tuple(n for n, text in enumerate(said) if first_word(text) in words)
    if not found:
        raise UserError(f"method.term.words: this tokenizer has no token that is one of {', '.join(words)}")
    return found


def refuse_mesh(config, model: ModelConfig, mesh) -> None:
    """Raises UserError where a step does not divide over the mesh."""
    if config.mesh.expert > 1 and not model.experts:
        raise UserError(f"mesh.expert: {config.mesh.expert}, but {config.model.path} has no experts")
    ways = rows_per_step(mesh)
    if config.problems % ways:
        raise UserError(f"problems: {config.problems} does not divide over data × fsdp × expert = {ways}")


def prompted(policy: Policy, problems: list[Problem]) -> tuple[list[Problem], int]:
    """The problems whose prompt fits its budget, with their prompt ids, and the length of the longest that does not (0: all fit)."""
    problems = [replace(p, prompt_ids=tuple(policy.prompts.student(p.problem))) for p in problems]
    kept = [p for p in problems if len(p.prompt_ids) <= policy.prompt_budget]
    return kept, max((len(p.prompt_ids) for p in problems if len(p.prompt_ids) > policy.prompt_budget), default=0)


def roll_out(policy: Policy, weights, problems: list[Problem], group: int, key, sampling: Sampling, on_end=None) -> tuple[Rollouts, Tally]:
    """G = `group` responses to each problem, on the host; on_end(p, g, tokens) is told of each as it ends. A problem that stands twice in
    the list gets fresh samples."""
    prompts = pack_rows(((p.prompt_ids, ()) for p in problems), len(problems), policy.prompt_budget)
    indices = [p.index for p in problems]
    repeats = np.array([indices[:i].count(n) for i, n in enumerate(indices)])
    samples = repeats[:, None] * group + np.arange(group)
    return generate(
        weights,
        prompts.tokens,
        prompts.prompt_lengths,
        key,
        np.array(indices, np.uint32),
        samples.astype(np.uint32),
        c=policy.model,
        responses=policy.responses,
        sampling=sampling,
        stop=policy.stop,
        dtype=policy.dtype,
        slots=policy.slots,
        on_end=on_end,
    )


def compile_rollouts(policy: Policy, weights, problems: int, group: int, sampling: Sampling) -> int:
    """Compile ahead what `roll_out` needs for so many problems; the number of decoding programs."""
    how = program(policy.model, sampling, policy.stop, policy.responses, policy.dtype)
    return compile_all(weights, problems, group, policy.prompt_budget, policy.responses, how, policy.slots)


def self_check(policy: Policy, weights, problems: list[Problem], rollouts: Rollouts, temperature: float, bound: float) -> str:
    """Re-score what was sampled by the scorer; a sentence with mean and largest |Δ log-prob|.

    Raises UserError when the mean is above the bound: training would ascend another policy's gradient. The lengths are the
    teacher's, whose programs this compiles.
    """
    prompts = each(problems, rollouts.lengths.shape[1])
    scores = score_all(policy, weights, prompts, rollouts, policy.context_budget, temperature)
    mask = np.arange(policy.responses) < rollouts.lengths.reshape(-1, 1)
    difference = np.abs(scores.logprobs - rollouts.logprobs.reshape(scores.logprobs.shape))[mask]
    found = f"sampler against scorer: |Δ log-prob| mean {difference.mean():.2g}, at most {difference.max():.2g} over {mask.sum()} tokens"
    if not difference.mean() <= bound:
        raise UserError(f"{found}; rollout.tolerance is {bound}")
    return found


class Grading:
    """Grades of G responses to each of P problems, asked for as each ends, while others are still being sampled. Each process has its
    part graded. Text is for graders and people; ids are what is trained on."""

    def __init__(self, policy: Policy, pool: Pool, problems: list[Problem], group: int):
        self.decode, self.pool, self.problems, self.group = policy.prompts.tokenizer.decode, pool, problems, group
        self.said = [[""] * group for _ in problems]
        self.asked = dict.fromkeys(mine(range(len(problems) * group)))  # number of a response → Future of its grade

    def ended(self, p: int, g: int, tokens: np.ndarray) -> None:
        """Problem p's response g has ended."""
        self.said[p][g] = self.decode(tokens.tolist(), skip_special_tokens=True)
        if p * self.group + g in self.asked:
            self.asked[p * self.group + g] = self.pool.ask(self.said[p][g], self.problems[p].answer)

    def verdicts(self):
        """(decoded responses [P][G], grades [P][G], rewards [P G]), after all have ended. Raises GraderFault when a gold answer is at fault."""
        own = [astuple(grade.result()) for grade in self.asked.values()]
        graded = iter(Grade.of(values) for part in gathered(own) for values in part)
        safe_point()
        grades = [[next(graded) for _ in group] for group in self.said]
        return self.said, grades, np.array([[g.reward for g in group] for group in grades])


def privileged(policy: Policy, problems, said: list[list[str]], grades: list[list[Grade]], seed: int, step: int) -> list[Context]:
    """One context a rollout, N in all; whose sibling is shown is drawn from (seed, step, problem, sample)."""
    solved = [next((clean_solution(t) for t, g in zip(*group) if g.correct), p.solution) for p, *group in zip(problems, said, grades)]
    out = []
    for n, (p, group_texts, group_grades) in enumerate(zip(problems, said, grades)):
        other = next((solved[m] for m in range(n + 1 - len(problems), n) if solved[m] and problems[m].index != p.index), None)
        for which in range(len(group_texts)):
            rng = np.random.default_rng([seed, step, word("sibling"), p.index, which])
            out.append(policy.prompts.context(p, group_texts, group_grades, which, policy.context_budget, rng, other))
    return out


def sequence_lengths(prompts: list, rollouts: Rollouts) -> np.ndarray:
    """[N] tokens of each prompt with its response."""
    return np.array([len(p) for p in prompts]) + rollouts.lengths.reshape(-1)


def arranged(policy: Policy, prompts: list, rollouts: Rollouts, budget: int) -> tuple[np.ndarray, list[Micro]]:
    """(lengths of N prompts with their responses, their micro-batches), for prompts of at most `budget` tokens."""
    lengths = sequence_lengths(prompts, rollouts)
    return lengths, arrange(lengths, buckets(budget + policy.responses), policy.micro_tokens, rows_per_step(policy.mesh))


def pack(micro: Micro, prompts: list, rollouts: Rollouts) -> Rows:
    """A micro-batch's prompts, each followed by its response's ids unchanged, on the host."""
    tokens, lengths = rollouts.tokens.reshape(-1, rollouts.tokens.shape[-1]), rollouts.lengths.reshape(-1)
    pairs = ((prompts[n], tokens[n, : lengths[n]]) for n in micro.rows if n >= 0)
    return pack_rows(pairs, micro.rows.size, micro.length)


def score_all(policy: Policy, weights, prompts: list, rollouts: Rollouts, budget: int, temperature: float) -> Scores:
    """Log-probs and entropies of N responses under N prompts of at most `budget` tokens: arrays [N R] on the host, 0 where a
    micro-batch's rows end."""
    told = []
    for micro in arranged(policy, prompts, rollouts, budget)[1]:
        safe_point()
        rows = place_rows(policy.mesh, pack(micro, prompts, rollouts))
        responses = min(policy.responses, micro.length)
        told.append((micro, one_by_one(score(weights, rows, temperature, c=policy.model, responses=responses, dtype=policy.dtype))))
    return collected(policy, len(prompts), told)


def collected(policy: Policy, count: int, told: list[tuple[Micro, Scores]]) -> Scores:
    """Scores of micro-batches → arrays [N R] on the host."""
    out = Scores(*np.zeros((2, count, policy.responses), np.float32))
    for micro, scores in told:
        scores = jax.device_get(everywhere(scores))
        micro.put(out.logprobs, scores.logprobs)
        micro.put(out.entropies, scores.entropies)
    return out


def each(problems: list[Problem], group: int) -> list[tuple[int, ...]]:
    """N prompts: each problem's, once a sample."""
    return [p.prompt_ids for p in problems for _ in range(group)]


def student_scores(policy: Policy, weights, problems, rollouts: Rollouts, temperature: float) -> Scores:
    """Scores [N R] under the prompts that the responses were sampled from."""
    prompts = each(problems, rollouts.lengths.shape[1])
    return score_all(policy, weights, prompts, rollouts, policy.prompt_budget, temperature)


def teacher_scores(policy: Policy, weights, problems, contexts: list[Context], rollouts: Rollouts, temperature: float):
    """(Scores [N R] under the privileged prompts, acts [N]).

    acts is False where the context did not fit, or says no more than the student's own prompt: such rows are scored under
    the student's prompt, and the term is 0 there.
    """
    students = each(problems, rollouts.lengths.shape[1])
    acts = np.array([bool(c.ids) and tuple(c.ids) != s for c, s in zip(contexts, students)])
    prompts = [c.ids or s for c, s in zip(contexts, students)]
    return score_all(policy, weights, prompts, rollouts, policy.context_budget, temperature), acts


def padding_metrics(policy: Policy, problems, contexts: list[Context], rollouts: Rollouts, work: list[list]) -> dict:
    """perf/padding_…: share of the update's and of the teacher's tokens that belongs to no sequence."""
    students = each(problems, rollouts.lengths.shape[1])
    out = {"perf/padding_update": padding(sequence_lengths(students, rollouts), [micro for part in work for micro, _ in part])}
    if contexts:
        shown = [c.ids or s for c, s in zip(contexts, students)]
        out["perf/padding_teacher"] = padding(*arranged(policy, shown, rollouts, policy.context_budget))
    return out


def term_weights(words: tuple[int, ...], term: Term, rollouts: Rollouts, acts: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Of the per-token term [N 1], or [N R] where it is restricted to words, of which these are the ids. acts, strengths [N]."""
    lengths, tokens = rollouts.lengths.reshape(-1), rollouts.tokens.reshape(acts.size, -1)
    rows = acts * strengths * (lengths < term.longest if term.longest else 1)
    return rows[:, None] * (np.isin(tokens, words) if term.words else 1)


def make_batches(policy: Policy, problems, rewards, rollouts: Rollouts, teacher: Scores | None, weights, old, config) -> list[list]:
    """Everything an update needs, on the host: of every minibatch its (Micro, Batch) pairs.

    rewards [P G]; weights of the term [N R] or [N 1]; old: the student's Scores of a pass before it, or None. A minibatch is a stretch of
    the N rollouts, at full weight.
    """
    n, o, sampled = rewards.size, config.optim, rollouts.logprobs.reshape(rewards.size, -1)
    counted = rollouts.stopped.reshape(-1) if o.mask_truncated else np.ones(n, bool)
    losses = row_weights(rollouts.lengths.reshape(-1), counted, o.aggregation, policy.responses) * o.minibatches
    advantages = group_advantage(rewards, config.method.normalise).reshape(-1)
    t = term_signal(config.method.term, teacher, rollouts.lengths, policy.responses)
    prompts = each(problems, rewards.shape[1])
    lengths = sequence_lengths(prompts, rollouts)

    def batch(micro: Micro) -> Batch:
        return Batch(
            rows=pack(micro, prompts, rollouts),
            sequence_advantages=micro.take(advantages),
            teacher_logprobs=micro.take(t),
            term_weights=micro.take(weights),
            loss_weights=micro.take(losses),
            sampled_logprobs=micro.take(sampled) if o.importance_cap else None,
            old_logprobs=None if old is None else micro.take(old.logprobs),
        )

    out, sizes, ways = [], buckets(policy.prompt_budget + policy.responses), rows_per_step(policy.mesh)
    for part in np.split(np.arange(n), o.minibatches):
        micros = [m.of(part) for m in arrange(lengths[part], sizes, policy.micro_tokens, ways)]
        out.append([(m, batch(m)) for m in micros])
    return out


def learn(policy: Policy, state: TrainState, work: list[list], lam: float, config, step: int, limit: float = np.inf):
    """The optimizer steps of one batch: (state, what each told, the student's Scores [N R] as the update saw them). limit: see Term.

    Raises UserError at a gradient that is not finite.
    """
    told, students = [], []
    how = dict(c=policy.model, o=config.optim, term=config.method.term, dtype=policy.dtype)
    for part in work:
        gradient, seen = no_gradient(state.weights), []
        for micro, batch in part:
            if not told:  # the state is that of the last step
                safe_point()
            placed = place_rows(policy.mesh, batch)
            strength = jnp.float32(lam), jnp.float32(limit)
            gradient, more = accumulate(gradient, state.weights, placed, *strength, config.sampling.temperature, **how)
            seen.append(more)
        state, norm, bad = optimizer_step(state, gradient, config.optim)
        del gradient
        students += [(micro, s.student) for (micro, _), s in zip(part, seen)]
        loss, clipped, load, norm, bad = jax.device_get(everywhere((*summed(seen), norm, bad)))
        told.append(UpdateStats(float(loss), float(norm), bad, int(clipped), load))
        refuse_non_finite(policy, state.weights, told[-1], step)
    return state, told, collected(policy, sum(len(m.rows[m.rows >= 0]) for m, _ in students), students)


def summed(seen: list[Seen]):
    """(loss, clipped tokens, the experts' load or None) of all micro-batches."""
    return jax.tree.map(lambda *x: sum(x), *[(s.loss, s.clipped, s.load) for s in seen])


def refuse_non_finite(policy: Policy, weights, stats: UpdateStats, step: int) -> None:
    """Stop at a NaN, naming the first weight that holds one, else the first gradient."""
    if not stats.bad.any():
        return
    names = [p.hf for p in jax.tree.leaves(declare(policy.model))]
    for name, weight in zip(names, jax.tree.leaves(weights)):
        if not jnp.all(jnp.isfinite(weight)):
            raise UserError(f"step {step}: weight {name} holds NaN or infinity; checkpoints are untouched")
    name = names[int(np.argmax(stats.bad))]
    raise UserError(
        f"step {step}: gradient or update of {name} is not finite (loss {float(stats.loss)}); nothing was updated, checkpoints are untouched"
    )
