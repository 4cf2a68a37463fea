"""The command line: antisd train | sweep | trace | replay | generate | evaluate | table | score | grade | check | plan | bench | convert | report | random-model | pretrain-tiny."""

import os
import sys

from antisd_jax import __version__
from antisd_jax.errors import UserError, nearest

USAGE = """usage: antisd train [FILE.yaml …] [--key=value …]   train, or continue, the run in the folder --output
       antisd report RUN [RUN … --output=DIR]      write RUN/report.html again; several runs on one page, as PNG, CSV and JSON
       antisd sweep FILE.yaml [--print=true] [--key=value …]    a matrix of runs, one after another, and their report
       antisd trace RUN [--step=N] [--problems=8]  what the teacher says of every token: JSONL, words, a coloured page
       antisd replay RUN/dumps/step-….npz --method=NAME,…    the credit that methods give the same rollouts
       antisd evaluate [RUN] [FILE.yaml …] --output=DIR [--eval.data=NAME@k,…] [--key=value …]
       antisd table RUN [RUN …]                    results table: Average@best, Average@last, speed-up over the first run
       antisd generate --model=DIR --input=FILE.jsonl --output=FILE.jsonl    responses with log-probs to given prompts
       antisd score --model=DIR --input=FILE.jsonl --output=FILE.jsonl    log-probs and entropies of given responses
       antisd grade --input=FILE.jsonl --output=FILE.jsonl    predictions against gold answers
       antisd check --data=NAME,NAME,…               are data sets fit for their grader?
       antisd plan FILE.yaml … --topology=v5p:4x4x4    compile for hardware that is not here: does it fit?
       antisd bench rollout [FILE.yaml …] [--rounds=3] [--median=0]    the sampler's speed here, with random weights
       antisd keys                                 every key of a configuration, as Markdown
       antisd convert RUN --to=DIR                 a run's weights as a Hugging Face folder
       antisd random-model --text=FILE.jsonl --output=DIR    a small random model folder, to try real text with
       antisd pretrain-tiny --output=DIR           make the embedded model and its problems again
       antisd --version

Files are merged from left to right, then --a.b=value. Example:
  antisd train configs/smoke.yaml configs/methods/grpo.yaml --steps=6 --seed=1 --output=runs/grpo"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 2 with one line on standard error when the input is at fault."""
    args = sys.argv[1:] if argv is None else argv
    try:
        if not args or args[0] in ("-h", "--help", "help"):
            print(USAGE)
            return 0 if args else 2
        if args[0] == "--version":
            print(__version__)
            return 0
        commands = {
            "train": _train,
            "score": _score,
            "grade": _grade,
            "check": _check,
            "generate": _generate,
            "evaluate": _evaluate,
            "table": _table,
            "plan": _plan,
            "bench": _bench,
            "convert": _convert,
            "report": _report,
            "trace": _trace,
            "sweep": _sweep,
            "keys": _keys,
            "replay": _replay,
        }
        commands |= {"random-model": _random_model, "pretrain-tiny": _pretrain_tiny}
        if args[0] not in commands:
            raise UserError(f"unknown command {args[0]!r}{nearest(args[0], commands)}")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would announce that there is no torch
        return commands[args[0]](args[1:]) or 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: {e.filename or 'a file'}: {e.strerror or e}; {_after(args[0])}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {_after(args[0])}", file=sys.stderr)
        return 130


def _after(command: str) -> str:
    """What becomes of work that was cut off."""
    return "the same command continues from the last checkpoint" if command == "train" else "the output is not complete"


def _train(args: list[str]) -> int:
    from pathlib import Path

    from antisd_jax import config, processes, train
    from antisd_jax.files import read_jsonl
    from antisd_jax.log import say
    from antisd_jax.report.page import write_report

    options = _options([a for a in args if a.startswith("-")])
    c = config.load([a for a in args if not a.startswith("-")], options)
    processes.join(c.processes)
    with processes.together():
        try:
            train.train(c)
            status = 0
        except processes.Preempted:
            say("stopped as asked; the same command goes on from the last complete step")
            status = processes.AGAIN
        except train.Stopped as e:
            say(f"error: {e}")
            status = 2
        if processes.first() and (status == 0 or read_jsonl(Path(c.output) / "metrics.jsonl")):
            say(f"report: {write_report(c.output)}")
    return status


def _options(args: list[str]) -> list[str]:
    """--key=value → key=value; two long names have short ones."""
    short = {"topology": "mesh.topology", "init-from": "init.run"}
    for option in args:
        if not option.startswith("--") or "=" not in option:
            raise UserError(f"{option}: options are written --key=value")
    pairs = [option.removeprefix("--").partition("=") for option in args]
    return [f"{short.get(key, key)}={value}" for key, _, value in pairs]


def _generate(args: list[str]) -> None:
    from antisd_jax import config
    from antisd_jax.generate_file import GenerateConfig, generate_file

    generate_file(config.parse(GenerateConfig, [], _options(args)))


def _score(args: list[str]) -> None:
    from antisd_jax import config
    from antisd_jax.score_file import ScoreConfig, score_file

    score_file(config.parse(ScoreConfig, [], _options(args)))


def _grade(args: list[str]) -> None:
    from antisd_jax import config
    from antisd_jax.grade_file import GradeConfig, grade_file

    grade_file(config.parse(GradeConfig, [], _options(args)))


def _check(args: list[str]) -> None:
    from antisd_jax import config
    from antisd_jax.grade_file import CheckConfig, check

    check(config.parse(CheckConfig, [], _options(args)))


def _evaluate(args: list[str]) -> None:
    from antisd_jax.evaluate_model import main

    _options([a for a in args if a.startswith("-")])
    main(args)


def _table(args: list[str]) -> None:
    from pathlib import Path

    from antisd_jax.files import read_jsonl
    from antisd_jax.results import curve, markdown, table

    if not args:
        raise UserError("antisd table needs run folders, the reference first")
    curves = [curve(Path(run).name, read_jsonl(Path(run) / "metrics.jsonl")) for run in args]
    for run, c in zip(args, curves):
        if not c.steps:
            raise UserError(f"{run} holds no evaluation: no metrics.jsonl, or none in it")
    print(markdown(table(curves)))


def _plan(args: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # this process is only a compiler
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what XLA would do better with the device at hand
    for option in args:
        if "topology=cpu:" in option:
            os.environ.setdefault("JAX_NUM_CPU_DEVICES", option.rpartition(":")[2])
    from antisd_jax import aot, config

    options = _options([a for a in args if a.startswith("-")])
    aot.plan(config.load([a for a in args if not a.startswith("-")], options))


def _bench(args: list[str]) -> None:
    from antisd_jax import config
    from antisd_jax.bench import BenchConfig, bench_rollout

    if args[:1] != ["rollout"]:
        raise UserError(f"antisd bench: got {args[0] if args else 'nothing'!r}, wanted rollout")
    options = _options([a for a in args if a.startswith("-")])
    bench_rollout(config.load([a for a in args[1:] if not a.startswith("-")], options, BenchConfig))


def _convert(args: list[str]) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing is computed; the weights pass through the host's memory
    from antisd_jax.convert import main

    main(args)


def _report(args: list[str]) -> None:
    from antisd_jax.report.compare import write_comparison
    from antisd_jax.report.page import write_report

    runs = [a for a in args if not a.startswith("-")]
    given = dict(option.split("=", 1) for option in _options([a for a in args if a.startswith("-")]))
    output = given.pop("output", "")
    if not runs or given or (len(runs) > 1 and not output):
        raise UserError("antisd report takes one run folder, or several and --output=DIR")
    print(f"report: {write_comparison(runs, output) if output else write_report(runs[0])}")


def _trace(args: list[str]) -> None:
    from antisd_jax import config
    from antisd_jax.trace import TraceConfig, trace

    runs = [a for a in args if not a.startswith("-")]
    if len(runs) != 1:
        raise UserError(f"antisd trace takes one run folder, got {len(runs)}")
    trace(runs[0], config.parse(TraceConfig, [], _options([a for a in args if a.startswith("-")])))


def _keys(args: list[str]) -> None:
    from antisd_jax.keys import markdown

    _options(args)
    print(markdown(), end="")


def _sweep(args: list[str]) -> int:
    from antisd_jax.sweep import sweep

    files = [a for a in args if not a.startswith("-")]
    options = _options([a for a in args if a.startswith("-")])
    if len(files) != 1:
        raise UserError(f"antisd sweep takes one file, got {len(files)}")
    return sweep(files[0], [o for o in options if o != "print=true"], "print=true" in options)


def _replay(args: list[str]) -> None:
    from antisd_jax import config
    from antisd_jax.replay import ReplayConfig, replay

    replay([a for a in args if not a.startswith("-")], config.parse(ReplayConfig, [], _options([a for a in args if a.startswith("-")])))


def _random_model(args: list[str]) -> None:
    from antisd_jax.tiny.random_folder import main

    main(args)


def _pretrain_tiny(args: list[str]) -> None:
    from antisd_jax.tiny.pretrain import main

    main(args)
