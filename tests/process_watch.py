"""One of two processes that pass safe points together: `python process_watch.py PORT NUMBER WHAT`, WHAT happens to number 1 at its twentieth (LEAD: to number 0).
Started by test_processes.py."""

import os
import signal
import sys
import time

from antisd_jax import processes
from antisd_jax.errors import UserError

port, number, what = sys.argv[1:]
processes.join(processes.ProcessConfig(f"localhost:{port}", 2, int(number), 10))
print("met", processes.gathered([int(number), "ü"]), processes.mine([10, 11, 12]), processes.first(), flush=True)
with processes.together():
    try:
        for point in range(1, 400):
            processes.safe_point()
            if number == "0" and point == 20 and what == "LEAD":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == "1" and point == 20:
                if what == "ABORT":
                    os.abort()
                if what == "fail":
                    raise UserError("no room on the disk")
                if what == "break":
                    raise KeyError("a fault of ours")
                if what in ("TERM", "STOP", "KILL"):
                    os.kill(os.getpid(), getattr(signal, f"SIG{what}"))
            if point % 10 == 0:
                processes.gathered(point)
            time.sleep(0.05)
            if what == "end" and point == 30:
                break
    except processes.Preempted:
        print("asked to stop at", processes.gathered(processes._here.points), flush=True)
print("left together", flush=True)
