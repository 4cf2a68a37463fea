"""A grader process: one JSON request a line on standard input, one JSON answer a line on standard output.

Request {"response", "gold"}; answer {"outcome", "extracted"} or {"error"}; first of all a line "ready". Started by the pool as
`python -m antisd_jax.rewards.worker KIND MEMORY_MB TIMEOUT_S`, killed by it when an answer is late. Limits of its own: memory, CPU
time (one answer's), no file may be written, no core is dumped.
"""

import ctypes
import json
import logging
import os
import resource
import signal
import sys


def main() -> None:
    kind, memory_mb, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed trainer must not leave a busy worker behind
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not pass for an answer
    if kind == "math":
        import math_verify  # noqa: F401  (slow to import: before "ready", not on the first answer's time)

        from antisd_jax.rewards.math import grade
    else:
        from antisd_jax.rewards.countdown import grade
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + timeout) + 2, resource.RLIM_INFINITY))
        try:
            result = grade(request["response"], request["gold"])
            answer = {"outcome": result.outcome, "extracted": result.extracted}
        except Exception as e:  # a grader fault is reported, and must not cost the worker
            answer = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
