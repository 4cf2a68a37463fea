"""Do the five models fit at the paper's lengths? Compiles all programs of each for TPU slices that are not here → benchmarks/PLANS.md.

python benchmarks/plans.py [--only=qwen3_8b]    about an hour on 2 cores; needs libtpu (pip install "antisd-jax[tpu]")

The models' config.json are written from tests/families.py; nothing is downloaded.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import REAL  # noqa: E402

from antisd_jax import aot, config  # noqa: E402
from antisd_jax.errors import UserError  # noqa: E402

NAMES = {
    "qwen3_8b": "Qwen3-8B",
    "qwen3_4b_instruct_2507": "Qwen3-4B-Instruct-2507",
    "olmo3_7b_instruct": "Olmo-3-7B-Instruct",
    "olmo3_7b_think": "Olmo-3-7B-Think",
    "qwen3_30b_a3b": "Qwen3-30B-A3B",
}
SLICES = {"v5p_64": list(NAMES), "v6e_64": list(NAMES), "v5e_64": ["qwen3_8b", "qwen3_4b_instruct_2507"]}


def compiled(model: str, hardware: str, folder: Path):
    """(what was found, the lines that `antisd plan` prints)."""
    settings = REAL[NAMES[model]]
    at = folder / NAMES[model]
    at.mkdir(exist_ok=True)
    (at / "config.json").write_text(json.dumps(settings))
    hardware += "_experts" if "num_experts" in settings else "_olmo3" if settings["model_type"] == "olmo3" else ""
    files = [str(ROOT / "configs" / part) for part in (f"models/{model}.yaml", "methods/antisd.yaml", f"hardware/{hardware}.yaml")]
    lines = [f"antisd plan {' '.join('configs' + f.split('configs')[1] for f in files)}"]
    found: list = []
    try:
        aot.plan(config.load(files, [f"model.path={at}"]), say=lines.append, found=found)
    except UserError as e:
        lines.append(f"  {e}")
    return found, [line.replace(f"{folder}/", "") for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="models whose names begin so")
    parser.add_argument("--slices", default=",".join(SLICES))
    a = parser.parse_args()
    plans, chips, told = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for hardware in a.slices.split(","):
            for model in SLICES[hardware]:
                if model.startswith(a.only):
                    began = time.monotonic()
                    found, lines = compiled(model, hardware, Path(folder))
                    lines.append(f"  compiled in {time.monotonic() - began:.0f} s")
                    print("\n".join(lines), flush=True)
                    plans[f"{model}, {hardware}"], chips[f"{model}, {hardware}"] = found, aot.CHIPS[hardware.split("_")[0]]
                    told += ["```", *lines, "```", ""]
    table = aot.table(plans, chips)
    print(table)
    if not a.only and a.slices == ",".join(SLICES):
        text = f"""# Plans

Does a step fit, at the paper's lengths: 32 problems × 8 samples, responses of 16,384 tokens (32,768 for Think)? Peak memory of a chip in GiB, and
as a share of all it has, for every program at its longest, with what the run keeps beside it. Compiled for the hardware, without it:
`python benchmarks/plans.py`; JAX {version("jax")}, libtpu {version("libtpu")}.

{table}

{chr(10).join(told)}"""
        (ROOT / "benchmarks" / "PLANS.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
