"""Grading in child processes that can be killed: a grader that hangs costs one answer, never the run."""

import json
import os
import queue
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from antisd_jax.errors import UserError
from antisd_jax.rewards.grade import Grade

KINDS = ("countdown", "math")
MAX_RESPONSE = 200_000  # characters from the end of a response that a grader sees
MAX_ANSWER_LINE = 1_000_000  # bytes of a worker's answer


@dataclass(frozen=True)
class RewardConfig:
    """kind of grader, number of worker processes, and the limits of one answer."""

    kind: str = "countdown"
    workers: int = 2
    timeout_s: float = 10.0
    memory_mb: int = 4096

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"reward.kind: {self.kind!r} is none of {', '.join(KINDS)}")


class GraderFault(UserError):
    """The grader itself failed on an item: a gold answer of another task's form, or a worker that will not start."""


class _Worker:
    """One child process and the pipe to it."""

    START_S = 60.0

    def __init__(self, config: RewardConfig):
        self.config = config
        self.process = None

    def grade(self, response: str, gold: str) -> Grade:
        request = json.dumps({"response": response[-MAX_RESPONSE:], "gold": gold}) + "\n"
        for attempt in (1, 2):
            if self.process is None:
                self._start()
            line = self._ask(request)
            if line:
                answer = json.loads(line)
                if "error" in answer:
                    raise GraderFault(f"{self.config.kind} grader: {answer['error']}")
                return Grade(answer["outcome"], answer["extracted"])
            died = self.process.poll() is not None
            self.stop()
            # A worker that died, rather than being late, may have been killed from outside: its replacement answers.
            if not died or attempt == 2:
                return Grade("unparsed" if died else "timed out")
        raise AssertionError("unreachable")

    def _start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "antisd_jax.rewards.worker",
            self.config.kind,
            str(self.config.memory_mb),
            str(self.config.timeout_s),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if self._read_line(self.START_S) is None:
            self.stop()
            raise GraderFault(f"{self.config.kind} grader: a worker did not start: {' '.join(command)}")

    def _ask(self, request: str) -> bytes | None:
        """One answer line; None when the worker is late or gone."""
        try:
            self.process.stdin.write(request.encode())
            self.process.stdin.flush()
        except OSError:
            self.process.wait()
            return None
        return self._read_line(self.config.timeout_s)

    def _read_line(self, timeout: float) -> bytes | None:
        data = b""
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], timeout)
            if not ready:
                return None
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                self.process.wait()
                return None
            data += chunk
            if len(data) > MAX_ANSWER_LINE:
                return None
        return data

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with suppress(BrokenPipeError):  # what a dead worker has not read is still in the buffer
                self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


class Pool:
    """`workers` graders side by side. Use as a context manager: leaving it kills the children."""

    def __init__(self, config: RewardConfig):
        self.threads = ThreadPoolExecutor(config.workers, thread_name_prefix="grader")
        self.idle: queue.Queue[_Worker] = queue.Queue()
        self.workers = [_Worker(config) for _ in range(config.workers)]
        for worker in self.workers:
            self.idle.put(worker)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.threads.shutdown(wait=True, cancel_futures=True)
        for worker in self.workers:
            worker.stop()

    def grade(self, responses: list[str], golds: list[str]) -> list[Grade]:
        """Grades in the order of the responses. Raises GraderFault when a gold answer is at fault."""
        return list(self.threads.map(self._one, responses, golds))

    def _one(self, response: str, gold: str) -> Grade:
        worker = self.idle.get()
        start = time.monotonic()
        try:
            return replace(worker.grade(response, gold), seconds=time.monotonic() - start)
        finally:
            self.idle.put(worker)
