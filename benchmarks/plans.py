"""Do the five models fit at the paper's lengths? Compiles all programs of each for TPU slices and GPUs that are not here → benchmarks/PLANS.md.

python benchmarks/plans.py [--only=qwen3_8b] [--slices=v5p_64,h100_8]    an hour and a half on 2 cores; needs pip install "antisd-jax[tpu,cuda]"

The models' config.json are written from tests/families.py; nothing is downloaded.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import REAL  # noqa: E402

from antisd_jax import aot, config  # noqa: E402
from antisd_jax.errors import UserError  # noqa: E402
from antisd_jax.results import markdown  # noqa: E402

NAMES = {
    "qwen3_8b": "Qwen3-8B",
    "qwen3_4b_instruct_2507": "Qwen3-4B-Instruct-2507",
    "olmo3_7b_instruct": "Olmo-3-7B-Instruct",
    "olmo3_7b_think": "Olmo-3-7B-Think",
    "qwen3_30b_a3b": "Qwen3-30B-A3B",
}
SLICES = {
    **{"v5p_64": list(NAMES), "v6e_64": list(NAMES), "v5e_64": ["qwen3_8b", "qwen3_4b_instruct_2507"]},
    "h100_8": list(NAMES),
}


def compiled(model: str, hardware: str, folder: Path) -> list[str]:
    """The lines that `antisd plan` prints, after the command."""
    settings = REAL[NAMES[model]]
    at = folder / NAMES[model]
    at.mkdir(exist_ok=True)
    (at / "config.json").write_text(json.dumps(settings))
    own = "_experts" if "num_experts" in settings else "_olmo3" if settings["model_type"] == "olmo3" else ""
    hardware += own if (ROOT / "configs" / "hardware" / f"{hardware}{own}.yaml").exists() else ""
    files = [str(ROOT / "configs" / part) for part in (f"models/{model}.yaml", "methods/antisd.yaml", f"hardware/{hardware}.yaml")]
    lines = [f"antisd plan {' '.join('configs' + f.split('configs')[1] for f in files)}"]
    try:
        aot.plan(config.load(files, [f"model.path={at}"]), say=lines.append)
    except UserError as e:
        lines.append(f"  {e}")
    return [line.replace(f"{folder}/", "") for line in lines]


def compiler(hardware: str) -> str:
    """What compiles for it, with versions."""
    names = (
        ["jax", "libtpu"]
        if hardware.startswith("v")
        else ["jax", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"]
    )
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def blocks(text: str) -> dict[tuple[str, str], str]:
    """(model, hardware file) → what `antisd plan` printed, as it stands in PLANS.md."""
    found = re.findall(r"```\n(.*?)\n```", text, re.DOTALL)
    return {re.search(r"models/(\w+)\.yaml .*hardware/(\w+)\.yaml", block).groups(): block for block in found}


def table(plans: dict[tuple[str, str], str]) -> str:
    """Rows of several plans: peak memory of each program (of several of a kind the largest), as a share of the chip's."""
    kinds = ["prefill", "decode", "gradient", "score", "apply"]
    lines = [["model", "hardware", *kinds, "largest"]]
    for (model, hardware), block in plans.items():
        found = re.findall(r"^  (\w+).*?: ([\d.]+) of ([\d.]+) GiB", block, re.MULTILINE)
        peaks = {k: max(float(used) for kind, used, _ in found if kind == k) for k in kinds}
        memory = float(found[0][2])
        cells = [f"{p:.1f} ({p / memory:.0%})" for p in peaks.values()]
        lines.append([model, hardware, *cells, f"{max(peaks.values()) / memory:.0%}"])
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="models whose names begin so; the others' plans stay as they are")
    parser.add_argument("--slices", default=",".join(SLICES))
    a = parser.parse_args()
    path = ROOT / "benchmarks" / "PLANS.md"
    plans = blocks(path.read_text(encoding="utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for hardware in a.slices.split(","):
            for model in SLICES[hardware]:
                if model.startswith(a.only):
                    began = time.monotonic()
                    lines = compiled(model, hardware, Path(folder))
                    lines.append(f"  compiled in {time.monotonic() - began:.0f} s by {compiler(hardware)}")
                    print("\n".join(lines), flush=True)
                    plans |= blocks("```\n" + "\n".join(lines) + "\n```")
    told = "\n\n".join(f"```\n{block}\n```" for block in plans.values())
    text = f"""# Plans

Does a step fit, at the paper's lengths: 32 problems × 8 samples, responses of 16,384 tokens (32,768 for Think)? Peak memory of a chip in GiB, and
as a share of all it has, for every program at its longest, with what the run keeps beside it. Compiled for the hardware, without it:
`python benchmarks/plans.py` (`--only=olmo3 --slices=v6e_64` does a part again). What compiled a plan stands at its end; where nothing does, it was
JAX 0.10.2 with libtpu 0.0.42.1, before gradients were added in place (a second look at Qwen3-8B on v5p_64 gave 6.7 and 9.7 GiB, where 6.8 and 9.6 stand).

{table(plans)}

{told}
"""
    path.write_text(text, encoding="utf-8")
    print(table(plans))


if __name__ == "__main__":
    main()
