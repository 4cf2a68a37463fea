"""The program, to be read first: build the parts, resume, loop.

One step is the algorithm's sentence: problems → rollouts → rewards → privileged contexts → teacher scores → credit →
update → log, checkpoint. The verbs are in steps.py, the mathematics in objective/.
"""

import json
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from antisd_jax import config as configuration
from antisd_jax.arrays import as_text, from_text, named_key
from antisd_jax.checkpoint import Checkpoints
from antisd_jax.config import Config
from antisd_jax.dump import write_dump
from antisd_jax.errors import UserError
from antisd_jax.evaluate import generate_rows, metrics, summarise
from antisd_jax.files import STOPPED, read_jsonl, stopped, write_atomically
from antisd_jax.learner import abstract_state, start
from antisd_jax.log import Log, Stopwatch, lock_folder, make_folder, progress, say, speed, warn
from antisd_jax.metrics import acting_u, correction_metrics, gate_metrics, rollout_rows, step_metrics
from antisd_jax.model import hf
from antisd_jax.model.parameters import abstract
from antisd_jax.model.sharding import use_mesh
from antisd_jax.objective import gate as gates
from antisd_jax.objective.gate import GateState
from antisd_jax.plan import describe
from antisd_jax.problems import read_data
from antisd_jax.processes import Preempted, by_first, first, first_ahead, gathered, stoppable
from antisd_jax.rewards.pool import Pool
from antisd_jax.rollout.books import Tally
from antisd_jax.score import exact_products
from antisd_jax.steps import (
    Grading,
    Policy,
    build_policy,
    compile_rollouts,
    learn,
    make_batches,
    padding_metrics,
    privileged,
    roll_out,
    self_check,
    student_scores,
    teacher_scores,
    term_weights,
)
from antisd_jax.text.data import Benchmark, Order
from antisd_jax.text.rows import Problem
from antisd_jax.types import Rollouts, TrainState
from antisd_jax.watchdog import watch


class Stopped(UserError):
    """The run was ended by watchdog.stop, with a checkpoint."""


@dataclass
class Run:
    """The parts of a run that stay."""

    config: Config
    policy: Policy
    order: Order
    held_out: list[tuple[Benchmark, list[Problem]]]
    pool: Pool
    checkpoints: Checkpoints
    log: Log
    clock: Stopwatch
    checked: bool = False  # was the sampler held against the scorer?


@dataclass
class Place:
    """Where a run stands: what a checkpoint holds. cursor counts the problems taken so far. told: the metrics of a step whose weights are
    there, but which is not evaluated and logged yet. ahead: the next step's rollouts, where they are sampled before (ahead.py), or their
    record."""

    state: TrainState
    step: int = 0
    cursor: int = 0
    gate: GateState = field(default_factory=GateState)
    told: dict | None = None
    ahead: "Sampled | dict | None" = None

    def record(self, config: Config) -> dict:
        """All but the arrays, as JSON."""
        plain = {
            "step": self.step,
            "cursor": self.cursor,
            "gate": asdict(self.gate),
            "told": self.told,
            "config": configuration.digest(config),
        }
        return plain | ({"ahead": self.ahead.record()} if self.ahead else {})

    @classmethod
    def of(cls, state: TrainState, record: dict) -> "Place":
        return cls(state, record["step"], record["cursor"], GateState.of(record["gate"]), record["told"], record.get("ahead"))


@dataclass
class Sampled:
    """Rollouts of one step's problems, and the grading that began with them. of: the step whose weights sampled them."""

    problems: list[Problem]
    rollouts: Rollouts
    tally: Tally
    grading: Grading
    of: int

    def record(self) -> dict:
        """All but what follows from the step, as JSON."""
        rollouts = {f.name: as_text(getattr(self.rollouts, f.name)) for f in fields(Rollouts)}
        return {"rollouts": rollouts, "tally": asdict(self.tally), "of": self.of}

    @classmethod
    def of_record(cls, run: Run, at: Place, record: dict) -> "Sampled":
        """The next step's, of whose responses every one is graded again."""
        problems = run.order.take(at.cursor, run.config.problems)
        rollouts = Rollouts(**{name: from_text(text) for name, text in record["rollouts"].items()})
        grading = Grading(run.policy, run.pool, problems, run.config.samples)
        for p, g in np.ndindex(rollouts.lengths.shape):
            grading.ended(p, g, rollouts.tokens[p, g, : rollouts.lengths[p, g]])
        return cls(problems, rollouts, Tally(**record["tally"]), grading, record["of"])


def loop(run: Run, at: Place) -> None:
    begin(run, at)
    for step in range(at.step + 1, run.config.steps + 1):
        improve(run, at, sample(run, at, step))


def begin(run: Run, at: Place) -> None:
    """Finish what the place has not finished, and compile what can be."""
    c = run.config
    if at.told is not None or (at.step == 0 and c.eval.every):
        at.told = {k: v for k, v in (at.told or {}).items() if not k.startswith("perf/")}  # the clock of that step is lost
        finish_step(run, at)
    if c.rollout.compile_first and at.step < c.steps:
        with run.clock.time("gen"):
            programs = compile_rollouts(run.policy, at.state.weights, c.problems, c.samples, c.sampling)
            say(f"{programs} decoding programs are compiled")


def sample(run: Run, at: Place, step: int) -> Sampled:
    """Problems → rollouts, with the weights as they stand; grading goes on behind it."""
    c, policy = run.config, run.policy
    problems = run.order.take(at.cursor + (step - 1 - at.step) * c.problems, c.problems)
    grading = Grading(policy, run.pool, problems, c.samples)
    with run.clock.time("gen"):
        key = named_key(c.seed, step, "sample")
        rollouts, tally = roll_out(policy, at.state.weights, problems, c.samples, key, c.sampling, grading.ended)
        if not run.checked:
            say(self_check(policy, at.state.weights, problems, rollouts, c.sampling.temperature, c.rollout.tolerance))
            run.checked = True
    return Sampled(problems, rollouts, tally, grading, at.step)


def improve(run: Run, at: Place, sampled: Sampled, ahead: Sampled | None = None) -> None:
    """The rest of a step: rewards → privileged contexts → teacher scores → credit → update → log, checkpoint. ahead: see Place."""
    c, policy, clock, gate, step = run.config, run.policy, run.clock, run.config.method.active_gate, at.step + 1
    temperature, problems, rollouts = c.sampling.temperature, sampled.problems, sampled.rollouts
    with clock.time("reward"):
        said, grades, rewards = sampled.grading.verdicts()
    with clock.time("teacher"):
        contexts, teacher, acts, old = [], None, np.ones(rewards.size, bool), None
        if c.method.needs_teacher:
            contexts = privileged(policy, problems, said, grades, c.seed, step)
            teacher, acts = teacher_scores(policy, at.state.weights, problems, contexts, rollouts, temperature)
        if c.optim.minibatches > 1 or gate.statistic == "student_perplexity":
            old = student_scores(policy, at.state.weights, problems, rollouts, temperature)
    h = gates.statistic(gate.statistic, old, teacher, rollouts.lengths.reshape(-1), acts)
    gate_state, g = gates.step(gate, at.gate, h)
    lam, limit = g * c.method.lam_max, c.method.term.outlier * gate_state.deviation if c.method.term.outlier else np.inf
    strengths = gates.strengths(gate, gate_state, teacher, rollouts.lengths.reshape(-1), c.method.lam_max)
    with clock.time("update_actor"):
        weights = term_weights(policy.words, c.method.term, rollouts, acts, strengths)
        work = make_batches(policy, problems, rewards, rollouts, teacher, weights, old if c.optim.minibatches > 1 else None, c)
        state, updates, student = learn(policy, at.state, work, lam, c, step, limit)
    student = old or student
    if c.method.term.outlier and teacher is not None:
        gate_state = gates.remember(gate_state, acting_u(rollouts, student, teacher, acts))
    cursor = at.cursor + c.problems
    values = step_metrics(c, rollouts, grades, rewards, contexts, student, teacher, acts, weights, updates, lam, limit)
    values |= padding_metrics(policy, problems, contexts, rollouts, work)
    if c.optim.importance_cap:
        values |= correction_metrics(rollouts, student, c.optim.importance_cap) | {"rollout/staleness": at.step - sampled.of}
    values |= (
        gate_metrics(gate, gate_state, h, lam * float(strengths.mean()))
        | sampled.tally.metrics()
        | {"data/epoch": cursor / len(run.order.problems)}
    )
    if c.dump_every and step % c.dump_every == 0 and first():
        scores = (rollouts, student, teacher, rewards, acts)
        write_dump(Path(c.output), step, problems, contexts, grades, *scores, gate_state, gate.statistic, lam)
    run.log.rollouts(rollout_rows(step, problems, said, grades, rollouts, contexts, student, teacher, c.log_rollouts))
    at.state, at.step, at.cursor, at.gate, at.told, at.ahead = state, step, cursor, gate_state, values, ahead
    finish_step(run, at)


def measure(run: Run, at: Place) -> dict:
    """Evaluation metrics of the weights as they stand."""
    c, results, generations = run.config, [], []
    key = named_key(c.seed, at.step, "evaluate")
    with run.clock.time("testing"):
        for bench, problems in run.held_out:
            k = bench.samples
            parts = generate_rows(
                run.policy, at.state.weights, problems, k, c.eval, key, run.pool, c.rollout.slots or c.problems * c.samples
            )
            rows = [row for part in parts for row in part]
            generations += [{"benchmark": bench.name} | row for row in rows]
            results.append(summarise(bench.name, k, rows))
    run.log.generations(at.step, generations)
    return metrics(results)


def finish_step(run: Run, at: Place) -> None:
    """Evaluate when it is time, log, print one line, warn of what is new, and save when it is time."""
    c, values = run.config, at.told or {}
    if c.eval.every and (at.step % c.eval.every == 0 or at.step == c.steps):
        values |= measure(run, at)
    at.told = None
    seconds, compiling = run.clock.lap()
    if compiling:
        say("compiled " + ", ".join(f"{name} {s:.1f} s" for name, s in compiling.items()))
    run.log.metrics(at.step, values | speed(seconds, values.get("perf/response_tokens", 0)))
    say(progress(at.step, c.steps, run.log.history[-1], run.clock.left(at.step, c.steps)))
    steps = [row for row in run.log.history if "actor/entropy" in row]
    already = watch(steps[:-1], c.watchdog)
    now = watch(steps, c.watchdog)
    for mode, sentence in now.items():
        if mode not in already:
            warn(f"step {at.step}: {sentence} [{mode}]")
    stopping = [mode for mode in c.watchdog.stop if mode in now]
    if at.step and (stopping or run.checkpoints.due(at.step, c.steps)):
        with run.clock.time("save_checkpoint"):
            run.checkpoints.save(at.step, at.state, at.record(c), values.get("eval/average"))
    if stopping:
        why = {"step": at.step, "mode": stopping[0], "reason": now[stopping[0]]}
        by_first(lambda: write_atomically(Path(c.output) / STOPPED, json.dumps(why) + "\n"))
        raise Stopped(f"step {at.step}: stopped by watchdog.stop, with a checkpoint: {why['reason']}")


def train(config: Config) -> None:
    """A whole run, from wherever its folder stands to `config.steps`. Raises UserError for what the user can mend, and Preempted, with a
    checkpoint, after a request to stop."""
    folder, drive = Path(config.output), loop
    if config.rollout.ahead:
        from antisd_jax.ahead import loop as drive
    with by_first(lambda: open_folder(folder, config)) or nullcontext(), stoppable():
        policy, source = first_ahead(lambda: build_policy(config))
        held_out, problems, cards = first_ahead(lambda: read_data(policy, config, folder))
        by_first(lambda: describe_run(config, policy, source, held_out, problems, cards))
        with (
            use_mesh(policy.mesh),
            exact_products(policy.dtype),
            closing(Checkpoints(folder / "checkpoints", config.checkpoint)) as checkpoints,
        ):
            at = resume(config, policy, source, checkpoints)
            if at.told is not None and gathered(logged(folder, at.step))[0]:
                at.told = None  # it was finished after that checkpoint
            if at.step >= config.steps and at.step and at.told is None:
                say(f"{config.output} has already reached step {at.step}")
                return
            if (why := gathered(stopped(folder, config.watchdog.stop))[0]) and why["step"] == at.step:
                raise Stopped(f"step {at.step}: stopped by watchdog.stop: {why['reason']}. Without {why['mode']} in it the run goes on")
            with closing(Log(folder, at.step or -1, at.told is None)) as log, Pool(config.reward) as pool:
                if told := pool.start():
                    say(told)
                try:
                    drive(Run(config, policy, Order(problems, config.seed), held_out, pool, checkpoints, log, Stopwatch()), at)
                except Preempted:
                    if at.step:
                        last = log.history[-1] if log.history else {}
                        score = last.get("eval/average") if last.get("step") == at.step else None
                        checkpoints.save(at.step, at.state, at.record(config), score)
                    raise


def logged(folder: Path, step: int) -> bool:
    """Are there metrics of that step?"""
    return any(row["step"] == step for row in read_jsonl(folder / "metrics.jsonl"))


def open_folder(folder: Path, config: Config):
    """The lock on the run folder, made when it is not there. Raises UserError when it cannot be used, or holds another run."""
    make_folder(config.output)
    lock = lock_folder(folder)
    try:
        refuse_another_run(folder, config)
    except UserError:
        lock.close()
        raise
    return lock


def describe_run(config: Config, policy: Policy, source: Path, held_out, problems: list[Problem], cards: list) -> None:
    """Print what will be done, and write it into the run folder."""
    folder = Path(config.output)
    write_atomically(folder / "config.yaml", configuration.dump(config))
    hf.copy_settings(source, folder / "model")
    say(describe(config, policy, len(problems), [(b.name, len(ps), b.samples) for b, ps in held_out]))
    for card in cards:
        say("\n".join(card.lines()))
    write_atomically(folder / "overlaps.jsonl", "".join(json.dumps(o) + "\n" for card in cards for o in card.overlaps))


def refuse_another_run(folder: Path, config: Config) -> None:
    """Raises UserError when the folder holds a begun run of another configuration, naming the keys that differ."""
    path = folder / "config.yaml"
    begun = any(row["step"] for row in read_jsonl(folder / "metrics.jsonl")) or any((folder / "checkpoints").glob("[0-9]*"))
    if path.exists() and begun:
        changed = configuration.differences(configuration.build(Config, configuration.read_yaml(path)), config)
        if changed:
            raise UserError(f"{folder} holds a run of another configuration: {'; '.join(changed)}. Choose another --output")


def resume(config: Config, policy: Policy, source: Path, checkpoints: Checkpoints) -> Place:
    """Where the folder's last checkpoint that can be read stands, or the beginning, with the weights of the model folder `source`."""
    wanted = abstract_state(abstract(policy.model, policy.mesh), config.optim, policy.mesh)
    if checkpoints.latest() is None:
        if config.init.run:
            return inherit(config, policy, wanted)
        return Place(start(hf.load_weights(source, policy.model, policy.mesh), config.optim, policy.mesh))
    state, record = checkpoints.restore_last(wanted)
    if record["config"] != configuration.digest(config):
        raise UserError(f"checkpoint {record['step']} in {config.output} belongs to another configuration. Choose another --output")
    say(f"resuming at step {record['step']}")
    return Place.of(state, record)


def inherit(config: Config, policy: Policy, wanted: TrainState) -> Place:
    """The beginning of a run that goes on from another's checkpoint: its weights, moments and place in the data; a new gate, steps from 1."""
    run, _, step = config.init.run.partition("@")
    folder = Path(run)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"init.run: {run} holds no run, or one without checkpoints")
    if step and not step.isdigit():
        raise UserError(f"init.run: got {config.init.run!r}, wanted RUN or RUN@STEP")
    parent = configuration.build(Config, configuration.read_yaml(folder / "config.yaml"))
    if (parent.data, parent.seed) != (config.data, config.seed):
        warn("init.run: another data set or seed than the parent's: problems are taken from another order, and may come again")
    with closing(Checkpoints(folder / "checkpoints", config.checkpoint, read_only=True)) as checkpoints:
        state, record = checkpoints.restore(checkpoints.choose(int(step) if step else None), wanted)
    if not config.init.optimizer:
        state = start(state.weights, config.optim, policy.mesh)
    say(f"goes on from step {record['step']} of {run}, {record['cursor']} problems on; {'its' if config.init.optimizer else 'new'} moments")
    return Place(state, cursor=record["cursor"])
