"""Grading in child processes that can be killed: a grader that hangs costs one answer, never the run."""

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from antisd_jax.errors import UserError
from antisd_jax.rewards.grade import Grade
from antisd_jax.rewards.isolate import LAYERS

KINDS = ("countdown", "math", "code")
MAX_RESPONSE = 200_000  # characters from the end of a response that a grader sees
STARTS = 3  # tries of a worker that dies before it is ready
MAX_ANSWER_LINE = 1_000_000  # bytes of a worker's answer


@dataclass(frozen=True)
class RewardConfig:
    """Kind of grader, number of worker processes, and the limits of one answer."""

    kind: str = "countdown"  # kind of grader: countdown, math, code [–; ours]
    workers: int = 2  # grader processes of each host [processes; ours]
    timeout_s: float = 10.0  # most time for one answer [seconds; ours]
    memory_mb: int = 4096  # most memory of a grader or of a program under test [MiB; ours]
    isolation: tuple[str, ...] = LAYERS  # layers that lock up a program under test (kind code), where the host offers them [–; ours]
    isolation_required: bool = False  # refuse to run without all of them [–; ours]

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"reward.kind: {self.kind!r} is none of {', '.join(KINDS)}")
        if self.workers < 1:
            raise UserError(f"reward.workers: got {self.workers}, wanted at least 1")
        if self.timeout_s <= 0:
            raise UserError(f"reward.timeout_s: got {self.timeout_s}, wanted above 0")
        for layer in self.isolation:
            if layer not in LAYERS:
                raise UserError(f"reward.isolation: {layer!r} is none of {', '.join(LAYERS)}")


class GraderFault(UserError):
    """The grader itself failed on an item: a gold answer of another task's form, or a worker that will not start."""


class _Worker:
    """One child process and the pipe to it."""

    START_S = 60.0

    def __init__(self, config: RewardConfig):
        self.config = config
        self.process = None
        self.scratch = None  # its temporary files, which a killed worker leaves behind
        self.told = ""  # what the grader said of itself

    def grade(self, response: str, gold: str) -> Grade:
        request = json.dumps({"response": response[-MAX_RESPONSE:], "gold": gold}) + "\n"
        for attempt in (1, 2):
            self.start()
            line = self._ask(request)
            if line:
                answer = json.loads(line)
                if "error" in answer:
                    raise GraderFault(f"{self.config.kind} grader: {answer['error']}")
                return Grade(answer["outcome"], answer["extracted"], cases=answer["cases"] and tuple(answer["cases"]))
            died = self.process.poll() is not None
            self.stop()
            # A worker that died, rather than being late, may have been killed from outside: its replacement answers.
            if not died or attempt == 2:
                return Grade("unparsed" if died else "timed out")
        raise AssertionError("unreachable")

    def start(self) -> None:
        """A process that has said that it is ready, if there is none yet. One that dies before may have been killed from outside: three tries."""
        for _ in range(STARTS):
            if self.process is not None:
                return
            self._launch()
        if self.process is None:
            raise GraderFault(f"{self.config.kind} grader: a worker did not start in {STARTS} tries")

    def _launch(self) -> None:
        command = [sys.executable, "-m", "antisd_jax.rewards.worker", json.dumps(asdict(self.config))]
        self.scratch = tempfile.TemporaryDirectory(prefix="grader-", ignore_cleanup_errors=True)
        environment = os.environ | {"TMPDIR": self.scratch.name}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        line = self._read_line(self.START_S)
        message = json.loads(line) if line else {}
        if "ready" not in message:
            self.stop()
        if "error" in message:
            raise GraderFault(f"{self.config.kind} grader: {message['error']}")
        self.told = message.get("ready", "")

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
            self.scratch.cleanup()
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

    def start(self) -> str:
        """All workers at work, slow imports behind them; what the grader has to say of itself (its isolation), or ""."""
        list(self.threads.map(_Worker.start, self.workers))
        return self.workers[0].told

    def grade(self, responses: list[str], golds: list[str]) -> list[Grade]:
        """Grades in the order of the responses. Raises GraderFault when a gold answer is at fault."""
        return list(self.each(responses, golds))

    def ask(self, response: str, gold: str):
        """A Future of the grade."""
        return self.threads.submit(self._one, response, gold)

    def each(self, responses: list[str], golds: list[str]):
        """The same, one grade at a time as they become known."""
        return self.threads.map(self._one, responses, golds)

    def _one(self, response: str, gold: str) -> Grade:
        worker = self.idle.get()
        start = time.monotonic()
        try:
            return replace(worker.grade(response, gold), seconds=time.monotonic() - start)
        finally:
            self.idle.put(worker)
