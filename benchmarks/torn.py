"""Runs of two processes that a campaign of faults (faults.py) can tear: what they do meanwhile, how they end, what they leave."""

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 5
SETTINGS = [
    f"steps={STEPS}",
    "problems=8",
    "samples=4",
    "lengths.response=32",
    "optim.micro_tokens=1024",
    "optim.minibatches=2",
    "eval.samples=2",
]
SETTINGS += ["eval.limit=16", "eval.every=2", "log_rollouts=-1", "method.gate.warmup=2", "checkpoint.every=1"]
PATIENCE = 6
ENDS = 60  # seconds within which a torn run must be gone
MEETING = 330  # the same, where it waits for another process to begin


class Torn:
    """The processes of one start of a run, each with the file that tells its phase; all carry a mark, by which what they leave is found."""

    def __init__(self, folder: Path, work: Path, count: int = 2, environment=None):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        self.folder, self.mark, self.host = folder, f"torn-{random.getrandbits(60):x}", socket.gethostname()
        flags = [f"--{o}" for o in (*SETTINGS, "mesh.fsdp=2", f"output={folder}")]
        if count > 1:
            flags += [f"--processes.coordinator=localhost:{port}", f"--processes.count={count}", f"--processes.patience={PATIENCE}"]
        self.phases = [work / f"phase-{n}" for n in range(count)]
        self.outputs = [work / f"out-{n}" for n in range(count)]
        self.processes = []
        for n, (phase, output) in enumerate(zip(self.phases, self.outputs)):
            phase.write_text("starting")
            told = {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(2 // count), "PHASE": str(phase), "TORN": self.mark}
            command = [sys.executable, str(ROOT / "benchmarks" / "faults_worker.py"), "train", str(ROOT / "configs" / "smoke.yaml"), *flags]
            command += [f"--processes.number={n}"] if count > 1 else []
            with open(output, "w") as out:
                env = os.environ | told | (environment or {})
                self.processes.append(subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT))

    def phase(self, n: int) -> str:
        return self.phases[n].read_text().strip()

    def running(self) -> bool:
        return all(p.poll() is None for p in self.processes)

    def until(self, ready, seconds: float = 120.0) -> bool:
        """Wait for ready(); False when the run ended before, or the time did."""
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            if ready():
                return True
            time.sleep(0.003)
        return False

    def ended(self, seconds: float = ENDS) -> list[int]:
        """Exit statuses. Raises SystemExit when one is still there after so long, or has left a process behind."""
        end = time.monotonic() + seconds
        for n, p in enumerate(self.processes):
            try:
                p.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                raise SystemExit(f"process {n} is still there after {seconds:.0f} s:\n{self.said(n)[-3000:]}") from None
        while left := self.left():
            if time.monotonic() > end:
                raise SystemExit(f"left behind: {left}")
            time.sleep(0.1)
        return [p.returncode for p in self.processes]

    def left(self) -> list[str]:
        """Command lines of the processes that carry the mark."""
        return [command for _, command in self.alive()]

    def alive(self) -> list[tuple[int, str]]:
        """(number, command line) of the processes that carry the mark."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (place / "environ").read_bytes():
                    found.append((int(place.name), (place / "cmdline").read_text().replace("\0", " ")))
            except OSError:  # gone meanwhile, or not ours
                continue
        return found

    def said(self, n: int) -> str:
        return self.outputs[n].read_text(errors="replace")

    def named(self, victim: int, witness: int) -> bool:
        return f"process {victim}" in self.said(witness) and "error:" in self.said(witness)


def contents(folder: Path) -> dict:
    """What must not differ."""
    import jax
    import numpy as np

    from antisd_jax import config
    from antisd_jax.checkpoint import Checkpoints
    from antisd_jax.files import read_jsonl
    from antisd_jax.learner import abstract_state
    from antisd_jax.log import CLOCKED
    from antisd_jax.model.parameters import abstract
    from antisd_jax.model.settings import load_config
    from antisd_jax.model.sharding import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    c = config.load([str(folder / "config.yaml")], [])
    checkpoints = Checkpoints(folder / "checkpoints", c.checkpoint, read_only=True)
    state, record = checkpoints.restore(STEPS, abstract_state(abstract(load_config(folder / "model"), mesh), c.optim, mesh))
    checkpoints.close()
    rows = [{k: v for k, v in row.items() if not k.startswith(CLOCKED)} for row in read_jsonl(folder / "metrics.jsonl")]
    logs = {name: read_jsonl(folder / name) for name in ("rollouts.jsonl", "evaluations.jsonl")}
    return {"metrics": rows, "gate": record["gate"], "arrays": [np.asarray(x).tobytes() for x in jax.tree.leaves(state)], **logs}
