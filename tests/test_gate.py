import numpy as np
import pytest

from antisd_jax.objective.gate import Gate, GateCannotArm, GateState, statistic, step
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
    assert state == GateState((1.2, 0.8, 1.0), 1.0, True)


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
