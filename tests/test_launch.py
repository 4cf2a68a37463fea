"""Launch scripts: read by shellcheck, run dry, SLURM's against a stand-in for srun, manifests held against Kubernetes' schema and field by field."""

import math
import os
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT
from test_train import SMALL, metrics

from antisd_jax import aot, config

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def test_shellcheck_finds_nothing():
    done = subprocess.run([os.path.join(os.path.dirname(sys.executable), "shellcheck"), *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0 and len(SCRIPTS) >= 5, done.stdout


@pytest.mark.parametrize(
    "script, environment, said",
    [
        ("gpu_bench", {}, ".venv/bin/python benchmarks/gpu.py configs/a b.yaml --steps=3"),
        ("host", {}, ".venv/bin/python -m antisd_jax train configs/a b.yaml --steps=3"),
        (
            "slurm",
            {"SLURM_SUBMIT_DIR": str(ROOT)},
            "srun --kill-on-bad-exit=1 --cpus-per-task=8 .venv/bin/python -m antisd_jax train configs/a b.yaml --steps=3 --processes.coordinator=auto",
        ),
        (
            "tpu_pod",
            {"TPU": "pod", "ZONE": "us-east5-a"},
            "gcloud compute tpus tpu-vm ssh pod --zone=us-east5-a --worker=all --command=cd antisd_jax && .venv/bin/python -m antisd_jax"
            " train 'configs/a b.yaml' '--steps=3' --processes.coordinator=auto",
        ),
    ],
)
def test_a_dry_run_prints_the_command(script, environment, said):
    command = ["bash", str(LAUNCH / f"{script}.sh"), "configs/a b.yaml", "--steps=3"]
    done = subprocess.run(command, env=os.environ | environment | {"DRY_RUN": "1"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, said + "\n"), done.stderr


def test_a_pod_without_a_name_is_refused():
    done = subprocess.run(["bash", str(LAUNCH / "tpu_pod.sh")], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0 and "TPU: the name of the slice" in done.stderr


SRUN = """#!/usr/bin/env bash
set -e
shift 2  # its own options
for n in 0 1; do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" & done
wait -n && wait -n
"""


@pytest.mark.long
def test_slurms_script_trains_with_two_tasks(tmp_path):
    stand_in = tmp_path / "bin" / "srun"
    stand_in.parent.mkdir()
    stand_in.write_text(SRUN)
    stand_in.chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    job |= {"SLURM_SUBMIT_DIR": str(ROOT), "PYTHON": sys.executable, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    job |= {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    options = [f"--{o}" for o in (*SMALL, "steps=2", "eval.every=0", f"output={tmp_path / 'run'}")]
    command = ["bash", str(LAUNCH / "slurm.sh"), "configs/smoke.yaml", *options]
    done = subprocess.run(command, env=os.environ | job, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "mesh     data 2" in done.stdout and done.stdout.count("step 2/2") == 1, "two devices, and one process that prints"
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("name", ["gke_jobset", "gke_jobset_queued"])
def test_manifests_ask_for_the_slice_that_their_configuration_is_for(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    manifest = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    assert manifest["spec"].keys() <= {"suspend", "failurePolicy", "replicatedJobs"} and job.keys() == {"name", "replicas", "template"}
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
    kubernetes_validate.validate(whole, "1.34", strict=True)
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert job["parallelism"] == job["completions"] == math.prod(map(int, topology.split("x"))) // chips
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never" and manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    files = [a for a in container["args"] if not a.startswith("--")]
    c = config.load(files, [a.removeprefix("--") for a in container["args"] if a.startswith("--")])
    assert c.mesh.topology == f"v5p:{topology}" and c.processes.coordinator == "auto" and aot.CHIPS["v5p"]
    (mount,) = container["volumeMounts"]
    assert c.output.startswith(mount["mountPath"]) and mount["name"] == pod["volumes"][0]["name"]
    assert pod["terminationGracePeriodSeconds"] > 60
    queued = manifest["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
    assert manifest["spec"].get("suspend", False) == bool(queued) == name.endswith("queued")


def test_slurms_job_is_queued_again_when_it_was_asked_to_stop(tmp_path):
    for name, text in (("srun", "exit ${STATUS}"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(tmp_path)}
    for status, said in ((75, "requeue 77\n"), (2, ""), (0, "")):
        done = subprocess.run(["bash", str(LAUNCH / "slurm.sh")], env=environment | {"STATUS": str(status)}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (status, said), done.stderr
