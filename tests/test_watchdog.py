from antisd_jax.watchdog import WatchdogConfig, story, watch

CALM = {
    "response_length/clip_ratio": 0.1,
    "response_length/mean": 50.0,
    "critic/rewards/mean": 0.4,
    "critic/rewards/completed_mean": 0.5,
    "actor/entropy": 0.4,
    "training/rollout_probs_diff_mean": 1e-6,
    "antisd/teacher_entropy": 0.3,
    "antisd/context/sibling": 0.8,
    "antisd/context/solution": 0.2,
}


def modes(history, **changes):
    return watch([*history, CALM | changes], WatchdogConfig(window=3))


def test_a_calm_run_is_not_warned_of():
    assert modes([CALM] * 20) == {} == watch([], WatchdogConfig())


def test_each_failure_mode_is_named_with_its_number():
    history = [CALM] * 5
    assert "62%" in modes(history, **{"response_length/clip_ratio": 0.62})["capped"]
    falling = {"response_length/clip_ratio": 0.3, "critic/rewards/completed_mean": 0.31}
    assert "fell to 0.310" in modes(history, **falling)["diverging"]
    assert "0.4000 to 0.1000" in modes(history, **{"actor/entropy": 0.1})["collapse"]
    assert "0.0200" in modes(history, **{"training/rollout_probs_diff_mean": 0.02})["drift"]
    assert "0.300 to 0.500" in modes(history, **{"antisd/teacher_entropy": 0.5, "response_length/mean": 60.0})["over-ascent"]
    assert "10%" in modes(history, **{"antisd/context/sibling": 0.1, "antisd/context/solution": 0.0})["blind"]
    assert "0.0010" in watch([CALM | {"antisd/teacher_entropy": 0.001}], WatchdogConfig())["flat"]


def test_a_reward_that_falls_is_named_however_it_falls():
    """Short, wrong responses: no cap is met, entropy stays."""
    rewards = [0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2]
    told = story([CALM | {"step": n, "critic/rewards/mean": r} for n, r in enumerate(rewards)], WatchdogConfig(window=3))
    assert told == [(8, "falling", "the reward fell from 0.400 to 0.200, means of 3 steps")]
    assert not story([CALM | {"step": n, "critic/rewards/mean": r / 10} for n, r in enumerate(rewards)], WatchdogConfig(window=3)), "noise"
    assert not story([CALM | {"step": 0, "critic/rewards/mean": 0.0}], WatchdogConfig(window=3))


def test_a_reward_that_jumps_by_as_much_at_every_step_is_not_falling():
    """Few rollouts a step: the same two means as a fall that is named, one of 0.4 ± 0.01 and one of 0.25 ± 0.01."""

    def told(noise):
        rewards = [mean + noise * (-1) ** n for mean in (0.4, 0.25) for n in range(10)]
        return story([CALM | {"step": n, "critic/rewards/mean": r} for n, r in enumerate(rewards)], WatchdogConfig(window=10))

    assert [mode for _, mode, _ in told(0.01)] == ["falling"] and not told(0.25)


def test_a_step_at_which_no_rollout_completed_or_no_context_acted_is_not_judged_by_them():
    def without(key, **changes):
        return {k: v for k, v in CALM.items() if k != key} | changes

    nobody = without("critic/rewards/completed_mean", **{"response_length/clip_ratio": 1.0})
    assert modes([CALM] * 5, **{"response_length/clip_ratio": 1.0}).keys() == {"capped"}
    assert (
        watch([*[CALM] * 5, nobody], WatchdogConfig(window=3)).keys() == {"capped"} == watch([nobody] * 5, WatchdogConfig(window=3)).keys()
    )
    alone = without("antisd/teacher_entropy", **{"antisd/context/sibling": 0.0, "antisd/context/solution": 0.0})
    assert watch([alone], WatchdogConfig()).keys() == {"blind"} == watch([CALM, alone], WatchdogConfig()).keys()
    rising = CALM | {"antisd/teacher_entropy": 0.5, "response_length/mean": 60.0}
    assert "0.300 to 0.500" in watch([alone, *[CALM] * 4, rising], WatchdogConfig(window=3))["over-ascent"]


def test_grpo_without_a_teacher_can_be_watched():
    plain = {k: v for k, v in CALM.items() if not k.startswith("antisd")}
    assert watch([plain] * 20, WatchdogConfig()) == {}


def test_a_runs_story_tells_when_each_mode_set_in():
    caps = [0.1, 0.6, 0.7, 0.2, 0.9]
    rows = [CALM | {"step": 10 + n, "response_length/clip_ratio": cap} for n, cap in enumerate(caps)]
    told = story(rows, WatchdogConfig(window=50))
    assert [(step, mode) for step, mode, _ in told] == [(11, "capped"), (14, "capped")] and "60%" in told[0][2]
