"""The other driver: a step's rollouts are sampled before the update of the step before it, while that step's are still being graded.

    train.py   sample 1 · grade 1 · update 1 · sample 2 · grade 2 · update 2 …
    here       sample 1 · sample 2 (grade 1) · update 1 · sample 3 (grade 2) · update 2 …

So slow graders cost nothing as long as they are faster than sampling, and each update but the first learns from rollouts of the policy one
update before it (rollout/staleness 1). Every token's loss is multiplied by min(π_now / π_sampled, optim.importance_cap), and
rollout_corr/… say how far the two are apart. s and t are scored with the weights as they are, never taken from the sampler. Device
programs are started in one order in every process, as in train.py. A checkpoint holds the rollouts that wait.
"""

from antisd_jax.train import Place, Run, Sampled, begin, improve, sample


def loop(run: Run, at: Place) -> None:
    now = at.ahead = Sampled.of_record(run, at, at.ahead) if at.ahead else None
    begin(run, at)
    for step in range(at.step + 1, run.config.steps + 1):
        now = now or sample(run, at, step)
        following = sample(run, at, step + 1) if step < run.config.steps else None
        improve(run, at, now, following)
        now = following
