import numpy as np
import pytest

from antisd_jax.objective.gate import Gate, GateCannotArm, GateState, remember, statistic, step, strengths
from antisd_jax.types import Scores


def run(gate, values):
    state, out = GateState(), []
    for h in values:
        state, g = step(gate, state, h)
        out.append(g)
    return state, out


def test_truth_table_with_hysteresis():
    # Warm-up median of (1.2, 0.8, 1.0) is 1.0: it closes below 0.93 and opens again at 1.00, not before.
    gate = Gate(warmup=3)
    state, out = run(gate, [1.2, 0.8, 1.0, 0.93, 0.9299, 0.95, 0.9999, 1.0, 0.93, 0.5, 1.7])
    assert out == [0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 1]
    assert state == GateState((1.2, 0.8, 1.0), 1.0, True, last=1.7)


def test_warm_up_is_grpo_and_the_gate_decides_on_the_current_batch():
    state, out = run(Gate(warmup=5), [1.0] * 5 + [0.1])
    assert out == [0] * 6
    assert not state.open


def test_no_gate_is_open_from_the_first_step():
    assert run(Gate(statistic="none"), [float("nan")] * 3) == (GateState(), [1, 1, 1])


def test_an_even_warm_up_takes_the_mean_of_the_middle_two():
    assert run(Gate(warmup=4), [4.0, 1.0, 2.0, 3.0, 9.0])[0].level == 2.5


def test_a_flat_teacher_cannot_arm_an_entropy_gate():
    with pytest.raises(GateCannotArm, match="token_median over warm-up is 1.00e-06 nats"):
        run(Gate("token_median", warmup=2), [1e-6, 1e-6, 1e-6])
    assert run(Gate("teacher_perplexity", warmup=1), [1.0, 1.0])[1] == [0, 1]


def test_a_batch_without_a_measurement_leaves_the_state():
    gate, nan = Gate(warmup=1), float("nan")
    assert run(gate, [nan, 1.0, nan, 0.5, nan])[1] == [0, 0, 0, 0, 0]
    assert run(gate, [1.0, 1.0, nan])[1] == [0, 1, 1]


def test_statistics_over_response_tokens_only():
    logp = np.array([[-1.0, -3.0, 50.0], [-2.0, 50.0, 50.0]], np.float32)
    teacher, student = Scores(logp, -logp), Scores(2 * logp, None)
    arguments = dict(student=student, teacher=teacher, lengths=np.array([2, 1]), scored=np.ones(2, bool))
    assert statistic("token_mean", **arguments) == pytest.approx(2.0)
    assert statistic("token_median", **arguments) == pytest.approx(2.0)
    assert statistic("teacher_perplexity", **arguments) == pytest.approx(np.exp(2.0))
    assert statistic("student_perplexity", **arguments) == pytest.approx(np.exp(4.0))
    assert statistic("token_mean", **arguments | {"scored": np.array([False, True])}) == pytest.approx(2.0)
    assert np.isnan(statistic("token_mean", **arguments | {"scored": np.zeros(2, bool)}))
    assert statistic("student_perplexity", **arguments | {"scored": np.zeros(2, bool)}) == pytest.approx(np.exp(4.0))


def test_a_band_closes_above_it_too_and_opens_again_further_down():
    gate = Gate(warmup=1, high=1.3, back=1.1)
    values = [1.0, 1.3, 1.31, 1.2, 1.1, 1.2, 0.92, 0.99, 1.11, 1.05]
    assert run(gate, values)[1] == [0, 1, 0, 0, 1, 1, 0, 0, 0, 1]


def test_the_step_before_decides_where_the_gate_lags():
    gate = Gate(warmup=2, lagged=True)
    assert run(gate, [1.0, 0.5, 1.0, 0.1, 1.0, 1.0])[1] == [0, 0, 0, 1, 0, 1], "level 0.75"


def test_a_threshold_has_a_floor():
    gate = Gate("teacher_perplexity", warmup=1, least=1.01)
    assert run(gate, [1.02, 1.012, 1.005])[1] == [0, 1, 0] and run(Gate("teacher_perplexity", warmup=1), [1.02, 1.005])[1] == [0, 1]


def test_the_deviation_of_u_over_warm_up_is_that_of_all_its_tokens():
    parts = [np.random.default_rng(n).normal(n, 1 + n, 50 + n).astype(np.float32) for n in range(3)]
    state = GateState()
    assert state.deviation == np.inf
    for u in parts:
        state = remember(state, u)
    assert state.deviation == pytest.approx(np.concatenate(parts).astype(float).std(), rel=1e-9)
    armed = GateState(state.records, 1.0, moments=state.moments)
    assert remember(armed, parts[0]) == armed, "only over warm-up"


def test_adaptive_strengths_by_hand():
    gate, state = Gate("teacher_perplexity", adaptive=0.2, least=1.01), GateState(level=1.0)
    perplexity = np.array([1.0, 1.01, 1.5, 2.9, 3.1])
    teacher = Scores(np.repeat(-np.log(perplexity)[:, None], 4, axis=1), None)
    teacher.logprobs[:, 2:] = -9.0  # beyond the responses
    got = strengths(gate, state, teacher, np.full(5, 2), 0.5)
    wanted = [0, 0, 0.2 * np.log(1.5 / 1.01), 0.2 * np.log(2.9 / 1.01), 0]
    assert np.allclose(0.5 * got, wanted, atol=1e-12) and strengths(gate, state, teacher, np.full(5, 2), 0.1).max() == 1.0
    assert (strengths(gate, GateState(), teacher, np.full(5, 2), 0.5) == 1).all() and (
        strengths(Gate(), state, None, np.ones(5), 0.5) == 1
    ).all()
