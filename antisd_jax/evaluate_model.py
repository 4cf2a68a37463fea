"""`antisd evaluate`: a model, or a run's checkpoint, on several benchmarks.

`antisd evaluate [RUN] [FILE.yaml …] [--step=N] --output=DIR [--eval.data=NAME@k,…] [--eval.samples=32] [--key=value …]`
The keys are those of training. Of a RUN its own configuration is the base and its last checkpoint (or `step`) is evaluated, with
the keys of the evaluation that it made itself at that step. DIR gets generations.jsonl (every generation), problems.csv,
results.json, results.md, and report.html with its figures as PNG. The same command goes on where it was stopped.
"""

import csv
import io
import json
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from antisd_jax import config as configuration
from antisd_jax.arrays import named_key
from antisd_jax.checkpoint import CheckpointConfig, Checkpoints
from antisd_jax.errors import UserError
from antisd_jax.evaluate import Result, bootstrap, generate_rows, summarise
from antisd_jax.files import append_rows, read_jsonl, write_atomically
from antisd_jax.log import lock_folder, make_folder, say
from antisd_jax.model import hf
from antisd_jax.model.parameters import abstract
from antisd_jax.model.sharding import use_mesh
from antisd_jax.problems import Pins, read_benchmarks
from antisd_jax.report.evaluation import write_evaluation
from antisd_jax.results import markdown, pass_values
from antisd_jax.rewards.pool import Pool
from antisd_jax.score import exact_products
from antisd_jax.steps import build_policy

DECIDING = ("model.", "prompt.", "lengths.prompt", "reward.kind", "eval.response", "eval.sampling.", "eval.limit", "seed")


def evaluate_model(config: configuration.Config, run: Path | None = None, step: int | None = None) -> list[Result]:
    """Generate what is missing, summarise everything. Raises UserError for what the user can mend."""
    folder = make_folder(config.output)
    with lock_folder(folder):
        policy, source = build_policy(config)
        checkpoint = None
        if run is not None:
            checkpoint = Checkpoints(run / "checkpoints", CheckpointConfig(), read_only=True)
            step = checkpoint.choose(step)
        what = {"run": str(run) if run else "", "step": step or 0} | {
            k: v for k, v in configuration.flatten(config).items() if k.startswith(DECIDING)
        }
        refuse_another(folder / "evaluation.json", json.loads(json.dumps(what)))
        sets, cards, _ = read_benchmarks(policy, config.eval, Pins(folder / "revisions.json"))
        say("\n".join(line for card in cards for line in card.lines()))
        with use_mesh(policy.mesh), exact_products(policy.dtype):
            if checkpoint is None:
                weights = hf.load_weights(source, policy.model, policy.mesh)
            else:
                with closing(checkpoint):
                    weights, _ = checkpoint.restore_weights(step, abstract(policy.model, policy.mesh))
            with Pool(config.reward) as pool:
                if told := pool.start():
                    say(told)
                key = named_key(config.seed, step or 0, "evaluate")
                results = [measure(policy, weights, bench, problems, config, key, pool, folder) for bench, problems in sets]
        name = f"{run.name if run else Path(config.model.path).name}{f' @{step}' if run else ''}"
        write_results(folder, name, step or 0, results)
        return results


def refuse_another(path: Path, what: dict) -> None:
    """Raises UserError when the folder holds an evaluation of something else, naming what differs."""
    if path.exists():
        before = json.loads(path.read_text())
        changed = [f"{k}: {before.get(k)!r} → {v!r}" for k, v in what.items() if before.get(k) != v]
        if changed:
            raise UserError(f"{path.parent} holds another evaluation: {'; '.join(changed)}. Choose another --output")
    write_atomically(path, json.dumps(what, indent=1) + "\n")


def measure(policy, weights, bench, problems, config, key, pool: Pool, folder: Path) -> Result:
    """One benchmark: what generations.jsonl lacks is generated and appended, a batch at a time."""
    path, k = folder / "generations.jsonl", bench.samples
    wanted = {p.index for p in problems}
    stored = [r for r in read_jsonl(path) if r["benchmark"] == bench.name and r["index"] in wanted and r["sample"] < k]
    rows = {(r["index"], r["sample"]): r for r in stored}
    left = [p for p in problems if any((p.index, j) not in rows for j in range(k))]
    with tqdm(total=len(problems), initial=len(problems) - len(left), desc=bench.name, unit=" problems") as bar:
        for part in generate_rows(
            policy, weights, left, k, config.eval, key, pool, config.rollout.slots or config.problems * config.samples
        ):
            made = {(r["index"], r["sample"]): {"benchmark": bench.name} | r for r in part}
            append_rows(path, [row for place, row in made.items() if place not in rows])
            rows |= made
            bar.update(len(made) // k)
    return summarise(bench.name, k, list(rows.values()))


def describe(r: Result) -> dict:
    """A benchmark's numbers, each with its 95 % interval over problems."""

    def number(values) -> dict:
        low, high = bootstrap(values)
        return {"mean": float(np.mean(values)), "low": low, "high": high}

    out = {"problems": len(r.ids), "samples": r.samples, "avg": number(r.correct / r.samples)}
    out |= {} if r.voted is None else {"maj": number(r.voted)}
    out |= {} if r.cases is None else {"cases": r.cases}
    out["pass"] = {str(j): number(pass_values(r.samples, r.correct, j)) for j in range(1, r.samples + 1)}
    return out | {"clip_ratio": r.clip_ratio, "response_length": r.response_length}


def write_results(folder: Path, name: str, step: int, results: list[Result]) -> None:
    """results.json, results.md, problems.csv and the page; and the table on the screen."""
    low, high = bootstrap(*[r.correct / r.samples for r in results])
    numbers = {"name": name, "step": step, "average": {"mean": float(np.mean([r.average for r in results])), "low": low, "high": high}}
    numbers["benchmarks"] = {r.name: describe(r) for r in results}
    write_atomically(folder / "results.json", json.dumps(numbers, indent=1) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["benchmark", "id", "correct", "samples"])
    for r in results:
        writer.writerows([r.name, i, int(c), r.samples] for i, c in zip(r.ids, r.correct))
    write_atomically(folder / "problems.csv", text.getvalue())
    columns = [(f"{r.name} avg@{r.samples}", r.average) for r in results] + [("Average", numbers["average"]["mean"])]
    short = markdown([["run", *[c for c, _ in columns]], [name, *[f"{100 * v:.1f}" for _, v in columns]]])
    long = markdown([HEAD, *[line(r, numbers["benchmarks"][r.name]) for r in results]])
    write_atomically(folder / "results.md", f"{short}\n\n{long}\n")
    say(f"\n{short}\n\n{long}\n")
    say(f"report: {write_evaluation(folder, numbers, {r.name: r.correct for r in results})}")


HEAD = ["benchmark", "problems", "avg@k", "maj@k", "pass@k", "cut off", "tokens"]


def line(r: Result, d: dict) -> list[str]:
    """A benchmark's line of the long table."""

    def percent(x: dict) -> str:
        return f"{100 * x['mean']:.1f} [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"

    maj = percent(d["maj"]) if "maj" in d else "–"
    share = f"{100 * d['clip_ratio']:.1f} %"
    return [
        r.name,
        str(len(r.ids)),
        f"{percent(d['avg'])} k={r.samples}",
        maj,
        percent(d["pass"][str(r.samples)]),
        share,
        f"{r.response_length:.0f}",
    ]


def main(argv: list[str]) -> None:
    """The command's arguments → evaluate_model."""
    places = [a for a in argv if not a.startswith("-")]
    options = [a.removeprefix("--") for a in argv if a.startswith("-")]
    runs = [Path(p) for p in places if Path(p).is_dir()]
    if len(runs) > 1:
        raise UserError(f"antisd evaluate takes one run, got {len(runs)}")
    steps = [o.removeprefix("step=") for o in options if o.startswith("step=")]
    if steps and not (runs and steps[-1].isdigit()):
        raise UserError(f"--step={steps[-1]}: wanted the number of a checkpoint of a run")
    if not any(o.startswith("output=") for o in options):
        raise UserError("antisd evaluate needs --output=DIR")
    files = [p for p in places if not Path(p).is_dir()]
    if runs:
        if not (runs[0] / "config.yaml").exists() or not (runs[0] / "checkpoints").is_dir():
            raise UserError(f"{runs[0]} is not a run's folder: it has no config.yaml and checkpoints; a model is given by --model.path")
        files.insert(0, str(runs[0] / "config.yaml"))
    config = configuration.load(files, [o for o in options if not o.startswith("step=")])
    if runs and Path(config.output).resolve() == runs[0].resolve():
        raise UserError("output: the run's own folder; choose another one")
    evaluate_model(config, runs[0] if runs else None, int(steps[-1]) if steps else None)
