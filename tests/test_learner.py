from dataclasses import replace

import jax
import numpy as np
import pytest

from antisd_jax.config import Config, Method
from antisd_jax.errors import UserError
from antisd_jax.learner import OptimConfig, abstract_state, accumulate, no_gradient, start
from antisd_jax.model.parameters import count, declare, init
from antisd_jax.model.sharding import MeshConfig, make_mesh, param_shardings, place_rows, use_mesh
from antisd_jax.objective.advantage import Term
from antisd_jax.objective.gate import Gate
from antisd_jax.steps import Policy, learn, make_batches, student_scores, teacher_scores
from antisd_jax.text.prompt import Context
from antisd_jax.text.rows import Problem
from antisd_jax.tiny.random_folder import relative
from antisd_jax.types import Batch, Rollouts, pack_rows

P, G, R, S = 4, 4, 9, 6
GRPO = Method("grpo", 0.0, gate=Gate("none"))


def policy_on(model, mesh, tokens=256):
    """Rows of 8 and 16 tokens are two buckets of the student's; of the teacher's 8, 16 and 24."""
    return Policy(model, mesh, None, (0,), S, 12, R, tokens, "float32")


def material(seed=0):
    rng = np.random.default_rng(seed)
    problems = [Problem(i, "", "", None, "", "", tuple(rng.integers(1, 40, rng.integers(2, S + 1)).tolist())) for i in range(P)]
    lengths = rng.integers(1, R + 1, (P, G))
    tokens = rng.integers(0, 40, (P, G, R)) * (np.arange(R) < lengths[..., None])
    rollouts = Rollouts(tokens.astype(np.int32), lengths, np.zeros((P, G, R), np.float32), lengths < R)
    rewards = rng.integers(0, 2, (P, G)).astype(float)
    rewards[0] = 1.0  # a group in which the group advantage is silent
    contexts = [Context([1 + i % 39, 2, *p.prompt_ids], "sibling") for i, p in enumerate(p for p in problems for _ in range(G))]
    return problems, rollouts, rewards, contexts


def one_update(model, weights, *, method=Method(), lam=0.5, mesh=None, tokens=256, optim=OptimConfig(lr=1e-2), contexts=None):
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    policy = policy_on(model, mesh, tokens)
    config = replace(Config(), method=method, optim=optim)
    problems, rollouts, rewards, default = material()
    placed = jax.device_put(weights, param_shardings(mesh, declare(model)))
    teacher, acts = None, np.ones(P * G, bool)
    if method.needs_teacher:
        teacher, acts = teacher_scores(policy, placed, problems, contexts or default, rollouts, 1.0)
    work = make_batches(policy, problems, rewards, rollouts, teacher, acts[:, None], None, config)
    copy = jax.tree.map(lambda x: x.copy(), placed)
    with use_mesh(mesh):
        state, told, _ = learn(policy, start(copy, optim, mesh), work, lam, config, 1)
    return state, told


def bits(state):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def differs(a, b):
    """Largest difference of two trees, relative to the largest entry of the array it stands in."""
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))]
    return max(float(np.abs(x - y).max() / (np.abs(x).max() + 1e-30)) for x, y in pairs)


def test_the_term_moves_the_weights(model, weights):
    assert bits(one_update(model, weights)[0].weights) != bits(one_update(model, weights, method=GRPO, lam=0.0)[0].weights)


@pytest.mark.parametrize(
    "term", [Term(), Term(1, "linear"), Term(-1, "linear"), Term(-1, "jsd", "student"), Term(-1, "jsd", "teacher", "multiplicative")]
)
def test_lambda_zero_is_grpo_bit_for_bit(model, weights, term):
    """Teacher scored and at hand, λ = 0 as in warm-up or behind a closed gate, against GRPO that never met a teacher."""
    closed, _ = one_update(model, weights, method=Method(term=term), lam=0.0)
    grpo, _ = one_update(model, weights, method=GRPO, lam=0.0)
    assert bits(closed) == bits(grpo)


def test_equal_prompts_are_grpo_bit_for_bit(model, weights):
    problems = material()[0]
    same = [Context(list(p.prompt_ids), "feedback") for p in problems for _ in range(G)]
    assert bits(one_update(model, weights, contexts=same)[0]) == bits(one_update(model, weights, method=GRPO, lam=0.0)[0])


def test_a_context_that_did_not_fit_gives_no_term(model, weights):
    empty = [Context([], "sibling") for _ in range(P * G)]
    assert bits(one_update(model, weights, contexts=empty)[0]) == bits(one_update(model, weights, method=GRPO, lam=0.0)[0])


def test_equal_prompts_have_u_exactly_zero(model, weights, mesh1):
    policy, (problems, rollouts, _, _) = replace(policy_on(model, mesh1), context_budget=S), material()
    same = [Context(list(p.prompt_ids), "feedback") for p in problems for _ in range(G)]
    teacher, acts = teacher_scores(policy, weights, problems, same, rollouts, 1.0)
    assert not acts.any()
    assert (teacher.logprobs == student_scores(policy, weights, problems, rollouts, 1.0).logprobs).all()


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_same_gradient_for_any_micro_batch(model, weights, aggregation):
    optim = OptimConfig(lr=1e-2, aggregation=aggregation, max_grad_norm=1e9)
    whole, told = one_update(model, weights, optim=optim)
    for tokens in (1, 40):
        other, also = one_update(model, weights, optim=optim, tokens=tokens)
        assert differs(whole.optimizer, other.optimizer) < 1e-4, tokens
        assert float(told[0].grad_norm) == pytest.approx(float(also[0].grad_norm), rel=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(8), MeshConfig(2, 2, 2), MeshConfig(1, 8)])
def test_the_same_gradient_on_eight_devices(model, weights, mesh):
    optim = OptimConfig(lr=1e-2, max_grad_norm=1e9)
    one, told = one_update(model, weights, optim=optim)
    eight, also = one_update(model, weights, optim=optim, mesh=make_mesh(mesh), tokens=16)
    assert differs(one.optimizer, eight.optimizer) < 1e-4
    assert float(told[0].grad_norm) == pytest.approx(float(also[0].grad_norm), rel=1e-5)


def test_the_optimizer_state_is_sharded_as_the_weights_and_stays_so(model, weights):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    state, _ = one_update(model, weights, mesh=mesh, tokens=16)
    wanted = abstract_state(state.weights, OptimConfig(), mesh)
    for got, planned in zip(jax.tree.leaves(state), jax.tree.leaves(wanted)):
        assert got.sharding.is_equivalent_to(planned.sharding, got.ndim)
    moment = next(x for x in jax.tree.leaves(state.optimizer) if x.shape == (model.vocab, model.width))
    assert moment.addressable_shards[0].data.size == moment.size // 4


def test_the_gradient_is_that_of_the_weighted_log_likelihood(model, weights, mesh1):
    """The update's gradient against the advantage-weighted log-likelihood written out in one line."""
    from antisd_jax.arrays import response_mask
    from antisd_jax.objective.advantage import group_advantage, token_advantage
    from antisd_jax.score import score_rows

    optim = OptimConfig(lr=1.0, beta1=0.0, weight_decay=0.0, max_grad_norm=1e9)
    policy, (problems, rollouts, rewards, contexts) = policy_on(model, mesh1), material()
    teacher, acts = teacher_scores(policy, weights, problems, contexts, rollouts, 1.0)
    student = student_scores(policy, weights, problems, rollouts, 1.0)
    config = replace(Config(), optim=optim)
    work = make_batches(policy, problems, rewards, rollouts, teacher, acts[:, None], None, config)
    sequence = group_advantage(rewards).reshape(-1)
    advantage = token_advantage(sequence, student.logprobs, teacher.logprobs, acts[:, None], 0.5, Term())
    pairs = [(p.prompt_ids, r[:n]) for p, rs, ns in zip(problems, rollouts.tokens, rollouts.lengths) for r, n in zip(rs, ns)]
    rows = pack_rows(pairs, P * G, S + R)
    mask = response_mask(rows.response_lengths, R)

    def plain(w):
        return -(score_rows(model, w, rows, R, 1.0)[0].logprobs * advantage * mask).sum() / rollouts.lengths.sum()

    expected = jax.grad(plain)(weights)
    state, _, seen = learn(policy, start(jax.tree.map(lambda x: x.copy(), weights), optim, mesh1), work, 0.5, config, 1)
    assert np.allclose(seen.logprobs[mask], student.logprobs[mask], atol=1e-5), "the update's own forward pass is the student's"
    first_moment = state.optimizer[1][0].mu  # with beta1 = 0 it is the gradient
    assert differs(first_moment, expected) < 1e-5


def test_minibatches_take_several_steps_against_old_log_probs(model, weights, mesh1):
    optim = OptimConfig(lr=1e-2, minibatches=2)
    config = replace(Config(), optim=optim, method=GRPO)
    policy, (problems, rollouts, rewards, _) = policy_on(model, mesh1, 128), material()
    old = student_scores(policy, weights, problems, rollouts, 1.0)
    work = make_batches(policy, problems, rewards, rollouts, None, np.ones((P * G, 1)), old, config)
    state, told, student = learn(policy, start(jax.tree.map(lambda x: x.copy(), weights), optim, mesh1), work, 0.0, config, 1)
    assert int(state.optimizer[1][0].count) == 2
    moved = np.abs(student.logprobs - old.logprobs) * (np.arange(R) < rollouts.lengths.reshape(-1, 1))
    given = sum(float((b.loss_weights * b.rows.response_lengths).sum()) for part in work for _, b in part)
    assert given == pytest.approx(2, rel=1e-5), "each of two minibatches is an update at full weight"
    assert len(told) == 2 and moved[:8].max() < 1e-5 and moved[8:].max() > 1e-3, "the second half meets moved weights"


def test_a_nan_gradient_changes_nothing_and_is_named(model, weights, mesh1):
    policy, (problems, rollouts, rewards, _) = policy_on(model, mesh1), material()
    rewards[1] = [np.inf, 0, 0, 0]
    config = replace(Config(), method=GRPO)
    with np.errstate(invalid="ignore"):
        work = make_batches(policy, problems, rewards, rollouts, None, np.ones((P * G, 1)), None, config)
    with pytest.raises(UserError, match="step 7: gradient or update of model.embed_tokens.weight is not finite"):
        learn(policy, start(jax.tree.map(lambda x: x.copy(), weights), OptimConfig(), mesh1), work, 0.0, config, 7)


def test_a_nan_weight_is_named_with_its_step(model, weights, mesh1):
    policy, (problems, rollouts, rewards, _) = policy_on(model, mesh1), material()
    config = replace(Config(), method=GRPO)
    work = make_batches(policy, problems, rewards, rollouts, None, np.ones((P * G, 1)), None, config)
    broken = jax.tree.map(lambda x: x.copy(), weights)
    broken = broken.replace(norm=broken.norm.at[3].set(np.nan))
    with pytest.raises(UserError, match="step 7: weight model.norm.weight holds NaN"):
        learn(policy, start(broken, OptimConfig(), mesh1), work, 0.0, config, 7)


def test_a_weight_that_would_overflow_is_not_stored(model, weights, mesh1):
    policy, (problems, rollouts, rewards, _) = policy_on(model, mesh1), material()
    config = replace(Config(), method=GRPO, optim=OptimConfig(lr=1e39))
    work = make_batches(policy, problems, rewards, rollouts, None, np.ones((P * G, 1)), None, config)
    with pytest.raises(UserError, match="step 2: gradient or update of .* is not finite"):
        learn(policy, start(jax.tree.map(lambda x: x.copy(), weights), config.optim, mesh1), work, 0.0, config, 2)


def test_masked_truncated_rollouts_leave_the_gradient(model, weights, mesh1):
    policy, (problems, rollouts, rewards, _) = policy_on(model, mesh1), material()
    config = replace(Config(), method=GRPO, optim=OptimConfig(mask_truncated=True))
    work = make_batches(policy, problems, rewards, rollouts, None, np.ones((P * G, 1)), None, config)
    for micro, batch in work[0]:
        real = micro.rows >= 0
        assert ((batch.loss_weights[real] > 0) == rollouts.stopped.reshape(-1)[micro.rows[real]]).all()


def test_importance_weights_multiply_the_gradient_and_are_one_where_sampler_and_trainer_agree(model, weights, mesh1):
    """Without a term: the sampler's log-probs equal to the trainer's change nothing; 5 nats below, every weight is the cap, 2."""
    policy, config = policy_on(model, mesh1), replace(Config(), method=GRPO, optim=OptimConfig(importance_cap=2.0))
    problems, rollouts, rewards, _ = material()
    s = student_scores(policy, weights, problems, rollouts, 1.0).logprobs.reshape(P, G, R)

    def told(sampled, config):
        work = make_batches(policy, problems, rewards, rollouts.replace(logprobs=sampled), None, np.ones((P * G, 1)), None, config)
        copy = jax.tree.map(lambda x: x.copy(), weights)
        return learn(policy, start(copy, config.optim, mesh1), work, 0.0, config, 1)[1][0]

    plain = told(s, replace(config, optim=OptimConfig()))
    agreed, below = told(s, config), told(s - 5, config)
    assert agreed.grad_norm == pytest.approx(plain.grad_norm, rel=1e-6) and agreed.loss == pytest.approx(plain.loss, rel=1e-6)
    assert below.grad_norm == pytest.approx(2 * plain.grad_norm, rel=1e-5)


def test_the_gradient_is_placed_as_the_weights_from_the_first_micro_batch_on(model, weights):
    """Also where the compiler is free to choose: zeros of its own making would stand whole on every device."""
    mesh, config = make_mesh(MeshConfig(2, 2, 2)), replace(Config(), method=GRPO)
    policy, (problems, rollouts, rewards, _) = policy_on(model, mesh, 16), material()
    placed = jax.device_put(weights, param_shardings(mesh, declare(model)))
    work = make_batches(policy, problems, rewards, rollouts, None, np.ones((P * G, 1)), None, config)
    with use_mesh(mesh):
        gradient = no_gradient(placed)
        for _, batch in work[0][:2]:
            for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(placed)):
                assert g.sharding.is_equivalent_to(w.sharding, g.ndim)
            batch = place_rows(mesh, batch)
            gradient, _ = accumulate(gradient, placed, batch, np.float32(0), np.float32(np.inf), 1.0, c=model, o=OptimConfig(), term=Term())


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "olmo3"])
def test_a_gradient_is_added_in_place(family):
    """The compiled program has no room for a second one beside it."""
    c = relative(family, 64, 256, 8)
    w = jax.eval_shape(lambda: init(c, 0))
    rows = pack_rows([([1, 2, 3], [4, 5, 6, 7])] * 2, 2, 8)
    ones = np.ones(2, np.float32)
    batch = Batch(rows, ones, np.zeros((2, 5), np.float32), np.zeros((2, 1), np.float32), ones)
    lowered = accumulate.lower(w, w, batch, 0.0, np.inf, 1.0, c=c, o=OptimConfig(remat="full"), term=Term())
    found = lowered.compile().memory_analysis()
    assert found.alias_size_in_bytes >= 4 * count(c), "the sum is the argument itself"
    assert found.temp_size_in_bytes < 0.7 * 4 * count(c)


def test_bfloat16_activations_track_float32_over_twenty_steps(model, weights, mesh1):
    """Float32 weights either way. What is learned, the log-likelihood of good responses over that of bad ones, stays within 3 %."""
    problems, rollouts, rewards, _ = material()
    config = replace(Config(), method=GRPO, optim=OptimConfig(lr=3e-3))
    mask = np.arange(R) < rollouts.lengths.reshape(-1, 1)
    better = (rewards - rewards.mean(1, keepdims=True)).reshape(-1, 1) * mask

    def told(dtype):
        policy = replace(policy_on(model, mesh1), dtype=dtype)
        work = make_batches(policy, problems, rewards, rollouts, None, np.ones((P * G, 1)), None, config)
        state, out = start(jax.tree.map(lambda x: x.copy(), weights), config.optim, mesh1), []
        for step in range(21):
            state, _, student = learn(policy, state, work, 0.0, config, step)
            out.append((student.logprobs * better).sum())
        return np.array(out)

    exact, rounded = told("float32"), told("bfloat16")
    learned = exact[-1] - exact[0]
    assert learned > 20 and (exact != rounded).any()
    assert np.abs(exact - rounded).max() < 0.03 * learned


def test_moments_that_wait_on_the_host_change_nothing(model, weights):
    optim, mesh = OptimConfig(lr=1e-2, minibatches=2), make_mesh(MeshConfig(2, 2, 2))
    there, _ = one_update(model, weights, optim=optim, mesh=mesh, tokens=16)
    away, _ = one_update(model, weights, optim=replace(optim, offload=True), mesh=mesh, tokens=16)
    assert bits(there) == bits(away)
    waiting = {x.sharding.memory_kind for x in jax.tree.leaves(away.optimizer) if x.ndim}
    assert waiting == {"pinned_host"} and {x.sharding.memory_kind for x in jax.tree.leaves(away.weights)} == {"device"}


def test_a_first_moment_in_bfloat16_steps_as_the_exact_one_but_for_rounding(model, weights):
    exact, _ = one_update(model, weights, optim=OptimConfig(lr=1e-2, minibatches=2))
    rounded, _ = one_update(model, weights, optim=OptimConfig(lr=1e-2, minibatches=2, moments="bfloat16"))
    assert {x.dtype.name for x in jax.tree.leaves(rounded.optimizer[1][0].mu)} == {"bfloat16"}
    assert 0 < differs(exact.weights, rounded.weights) < 0.02
