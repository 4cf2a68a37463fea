"""What a GPU does with this program, each figure beside its floor and its peers → OUT/gpu.json, OUT/gpu.md and, with --write, RESULTS.md.

python benchmarks/gpu.py [--size=full] [--only=decode,train] [--out=DIR] [--limit=600] [--write]

Every part is a process of its own (gpu_worker.py) with the limit in seconds; what one leaves out or loses is said in the table. --size=small
runs the same parts on a CPU in some minutes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALONE = ("machine", "parity")  # parts without a model
OF_EACH = ("decode", "tail", "train", "step", "peer_decode", "peer_train")


def run(command: list[str], limit: float) -> tuple[list[dict], str]:
    """(JSON lines that it printed, "" or why it ended otherwise than well). Where torch works, jax leaves the GPU, or most of its memory, to it."""
    part = command[2]
    leave = {"JAX_PLATFORMS": "cpu"} if part.startswith("peer") else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if part == "parity" else {}
    started = subprocess.Popen(command, env=os.environ | leave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = started.communicate(timeout=limit)
        last = (err.strip().splitlines() or ["no word"])[-1][:200]
        why = f"status {started.returncode}: {last}" if started.returncode else ""
    except subprocess.TimeoutExpired:
        started.kill()
        out, why = started.communicate()[0], f"cut off after {limit:g} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    print("\n".join(map(json.dumps, rows)), *([why] if why else []), sep="\n", flush=True)
    return rows, why


def table(rows: list[dict], lost: dict[str, str]) -> str:
    """What was measured, as Markdown: machine, parity, and a line a figure."""
    sys.path.insert(0, str(HERE.parent))
    from antisd_jax.results import markdown

    parts: dict[str, list[dict]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    out = []
    for row in parts.pop("machine", []):
        out.append(
            f"{row['kind']}, {row['memory_gib']:.0f} GiB for arrays, JAX {row['jax']}: a copy moves {row['bytes_per_s'] / 1e12:.3g} TB/s, read"
            f" and written; a product of {row['dtype']} matrices makes {row['flop_per_s'] / 1e12:.3g} TFLOP/s."
        )
    for part, found in parts.items():
        keys = [key for key in dict.fromkeys(key for row in found for key in row) if key != "part"]
        out.append(f"**{part}**\n\n" + markdown([keys, *([shown(key, row.get(key, "–")) for key in keys] for row in found)]))
    out += [f"{name}: {why}" for name, why in lost.items()]
    return "\n\n".join(out) + "\n"


def shown(key: str, value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1%}" if key.endswith("floor") else f"{value:,.0f}" if key.endswith("per_s") else f"{value:.3g}"


def smoke(folder: Path, limit: float) -> tuple[list[dict], str]:
    """Five steps of the smoke run, by the command itself."""
    run_folder = folder / "smoke"
    options = ["--steps=5", "--eval.every=5", f"--output={run_folder}"]
    command = [sys.executable, "-m", "antisd_jax", "train", str(HERE.parent / "configs" / "smoke.yaml"), *options]
    done = subprocess.run(command, cwd=HERE.parent, timeout=limit, capture_output=True, text=True)
    if done.returncode:
        return [], f"status {done.returncode}: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}"
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    found = {"steps": rows[-1]["step"], "reward": rows[-1]["critic/rewards/mean"], "accuracy": rows[-1]["eval/average"]}
    return [{"part": "smoke", **found, "seconds_of_last_step": rows[-1]["timing_s/step"]}], ""


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="full", choices=("full", "small"))
    parser.add_argument("--only", default="", help="parts, with commas; all of them by default")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--write", action="store_true")
    a = parser.parse_args(argv)
    a.out.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in a.only.split(",") if part]
    if unknown := set(wanted) - {*ALONE, "smoke", *OF_EACH}:
        parser.error(f"--only: {', '.join(sorted(unknown))}: no such part; there are {', '.join((*ALONE, 'smoke', *OF_EACH))}")
    worker = [sys.executable, str(HERE / "gpu_worker.py")]
    rows, why = run([*worker, "machine", a.size], a.limit)
    if why:
        print(f"error: the machine's rates cannot be measured: {why}", file=sys.stderr)
        return 1
    rates, lost = json.dumps({key: rows[0][key] for key in ("bytes_per_s", "flop_per_s")}), {}
    models = json.loads(subprocess.run([*worker, "models", a.size], capture_output=True, text=True, check=True).stdout)
    todo = [("parity", ""), ("smoke", ""), *((part, name) for name in models for part in OF_EACH)]
    for part, name in todo:
        if wanted and part not in wanted:
            continue
        label = f"{part}, {name}" if name else part
        print(f"— {label}", flush=True)
        found, why = smoke(a.out, a.limit) if part == "smoke" else run([*worker, part, a.size, name, rates], a.limit)
        rows += found
        lost |= {label: why} if why else {}
        (a.out / "gpu.json").write_text(json.dumps({"rows": rows, "lost": lost}, indent=1) + "\n")
    text = table(rows, lost)
    (a.out / "gpu.md").write_text(text)
    print(text)
    if a.write:
        from results_file import write_part

        write_part(
            "A GPU",
            f"`bash launch/gpu_bench.sh --size={a.size} --write`; random weights; “floor” is the share of it that was reached.\n\n{text}",
        )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
