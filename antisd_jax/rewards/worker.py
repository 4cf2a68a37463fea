"""A grader process: one JSON request a line on standard input, one JSON answer a line on standard output.

Request {"response", "gold"}; answer {"outcome", "extracted", "cases"} or {"error"}; first of all a line {"ready": what the grader
has to say of itself}. Started by the pool as `python -m antisd_jax.rewards.worker CONFIG`, a RewardConfig as JSON, and killed by it
when an answer is late. Limits of its own: memory, CPU time (one answer's), the size of files (none may be written by a grader of
mathematics), no core is dumped.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from functools import partial

from antisd_jax.rewards.isolate import FILE_MB


def load(config: dict):
    """(the grader's function of (response, gold), what it has to say of itself). Slow imports happen here, before "ready"."""
    if config["kind"] == "math":
        import math_verify  # noqa: F401

        from antisd_jax.rewards.math import grade

        return grade, ""
    if config["kind"] == "code":
        import numpy  # noqa: F401  (tests compare with it)

        from antisd_jax.rewards import code
        from antisd_jax.rewards.court import Limits

        limits = Limits(config["timeout_s"], config["memory_mb"], tuple(config["isolation"]))
        return partial(code.grade, limits=limits), code.describe(limits, config["isolation_required"])
    from antisd_jax.rewards.countdown import grade

    return grade, ""


def main() -> None:
    config = json.loads(sys.argv[1])
    memory = config["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTERM, lambda *_: None)  # a scheduler signals the whole group: the trainer decides when this one ends
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed trainer must not leave a busy worker behind
        libc.prctl(4, 0)  # PR_SET_DUMPABLE: another process of this user cannot read this one's memory
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer

    def answer(message: dict) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        grade, told = load(config)
    except ValueError as e:
        return answer({"error": str(e)})
    most = (FILE_MB << 20) if config["kind"] == "code" else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    answer({"ready": told})
    for line in sys.stdin:
        request = json.loads(line)
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + config["timeout_s"]) + 2, resource.RLIM_INFINITY))
        try:
            result = grade(request["response"], request["gold"])
            answer({"outcome": result.outcome, "extracted": result.extracted, "cases": result.cases})
        except Exception as e:  # a grader fault is reported, and must not cost the worker
            answer({"error": f"{type(e).__name__}: {e}"})


if __name__ == "__main__":
    main()
