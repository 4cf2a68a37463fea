"""A campaign of faults on runs of two processes: however a run is torn, the same command again must end as if nothing had happened.

python benchmarks/faults.py [--kills=200] [--only=kills,stops,…]    about 1.5 hours on 2 cores → benchmarks/RESULTS.md

Each kind of fault is a function that tears runs and gives rows of the table. A run is compared with an undisturbed one when it has come to
its end: metrics but for clocks, rollouts, evaluations, and every bit of weights and moments. Disks need the right to mount a tmpfs.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from torn import ENDS, MEETING, PATIENCE, STEPS, Torn, contents

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
PHASES = ("gen", "reward", "teacher", "update_actor", "testing", "save_checkpoint")
WRITING = "a checkpoint being written"
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) {
    static volatile long *at;
    if (!at) at = mmap(0, 8, PROT_READ, MAP_SHARED, open(getenv("CLOCK_JUMP"), O_RDONLY), 0);
    return *at;
}
int clock_gettime(clockid_t c, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int r = real(c, t);
    if (c == CLOCK_REALTIME) t->tv_sec += jump();
    return r;
}
int gettimeofday(struct timeval *t, void *z) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class Campaign:
    """One reference, and one run at a time that is torn until it comes to its end; then it is compared, and a new one begins."""

    def __init__(self, work: Path, seed: int):
        self.work, self.seed, self.chance, self.number, self.rows = work, seed, random.Random(seed), 0, []
        self.compared = collections.Counter()
        self.references = {}
        for count in (1, 2):
            start = Torn(work / f"reference-{count}", work, count)
            start.until(lambda: start.phase(0) != "starting")
            begun = time.monotonic()
            start.until(lambda: start.phase(0) == "save_checkpoint")
            first = time.monotonic()
            if start.ended(300) != [0] * count:
                raise SystemExit(f"the undisturbed run failed:\n{start.said(0)[-3000:]}")
            self.seconds, self.whole = time.monotonic() - first, time.monotonic() - begun
            self.references[count] = contents(start.folder)
        print(f"undisturbed runs are there; {self.whole:.1f} s, from the first checkpoint to the end {self.seconds:.1f} s", flush=True)

    def folder(self) -> Path:
        return self.work / f"run-{self.number}"

    def over(self, kind: str, folder: Path | None = None, count: int = 2) -> None:
        """A run has come to its end: compare it. Raises SystemExit where it differs."""
        folder = folder or self.folder()
        for name, wanted in self.references[count].items():
            if contents(folder)[name] != wanted:
                raise SystemExit(f"{kind}: {name} of {folder} differs from the undisturbed run's")
        self.compared[kind] += 1
        shutil.rmtree(folder)
        self.number += 1

    def finish(self, kind: str, count: int = 2, starts: int = 3) -> None:
        """Let the run go on without more faults, to its end."""
        for _ in range(starts):  # the first may say what it has met, and end
            start = Torn(self.folder(), self.work, count)
            if start.ended(300) == [0] * count:
                return self.over(kind, count=count)
        raise SystemExit(f"{kind}: does not go on:\n{start.said(0)[-3000:]}")

    def row(self, fault: str, trials: int, came: str, kind: str) -> None:
        self.rows.append(f"| {fault} | {trials} | {came} | {self.compared[kind]} |")
        print(self.rows[-1], flush=True)


def written(folder: Path) -> bool:
    """A checkpoint is half there."""
    return any(folder.glob("checkpoints/*tmp*"))


def kills(c: Campaign, number: int) -> None:
    """kill -9 of one or both at a random moment; half of the time aimed at a phase, so that short ones are met, too."""
    where, by_victims, named, asked = collections.Counter(), collections.Counter(), collections.Counter(), collections.Counter()
    done = 0
    while done < number:
        start = Torn(c.folder(), c.work)
        victims = c.chance.choice([(0,), (1,), (0, 1)])
        wanted = c.chance.choice([None, WRITING, *PHASES]) if c.chance.random() < 0.6 else "any"
        if wanted == "any":
            start.until(lambda: start.phase(0) != "starting")
            start.until(lambda: False, c.chance.uniform(0, c.whole))
        elif wanted:
            start.until(lambda: start.phase(0) != "starting")
            start.until(lambda: False, c.chance.uniform(0, c.whole * 0.8))
            if wanted == WRITING:
                start.until(lambda: written(c.folder()), 20)
            else:
                start.until(lambda: start.phase(victims[0]) == wanted, 20)
            time.sleep(c.chance.uniform(0, 0.05))
        else:
            time.sleep(c.chance.uniform(0, 6))
        if not start.running():
            if start.ended() != [0, 0]:
                raise SystemExit(f"kills: ended by itself:\n{start.said(0)[-3000:]}")
            c.over("kills")
            continue
        phase = start.phase(victims[0])
        if written(c.folder()):
            phase += f", {WRITING}"
        for n in victims:
            start.processes[n].kill()
        statuses = start.ended(MEETING if "starting" in phase else ENDS)
        done += 1
        where[phase.split(",")[0]] += 1
        where[WRITING] += "," in phase
        by_victims[victims] += 1
        if len(victims) == 1:
            other = 1 - victims[0]
            asked[victims] += statuses[other] != 0
            named[victims] += statuses[other] != 0 and start.named(victims[0], other)
            if statuses[other] == 0:  # the run was whole before the kill
                c.over("kills")
        print(f"kill {done} of {victims} in {phase}: {statuses}", flush=True)
    if c.folder().exists():
        c.finish("kills")
    told = ", ".join(f"{phase} {n}" for phase, n in sorted(where.items()))
    came = f"of process 0: {by_victims[0,]}, of 1: {by_victims[1,]}, of both: {by_victims[0, 1]}; moments: {told}; the other one ended, "
    came += f"naming process 0 {named[0,]} times of {asked[0,]}, process 1 {named[1,]} of {asked[1,]}"
    c.row(f"`kill -9`, seed {c.seed}", number, came, "kills")


def stops(c: Campaign, each: int = 4) -> None:
    """SIGTERM to one of the two, in every phase."""
    statuses, tried = collections.Counter(), 0
    for phase in PHASES * each:
        for _ in range(6):  # a run that has little left to do may not come to that phase any more
            start = Torn(c.folder(), c.work)
            victim = c.chance.randrange(2)
            met = start.until(lambda: start.phase(victim) == phase, 60)
            if met:
                start.processes[victim].terminate()
            found = start.ended(120)
            if found == [0, 0]:
                c.over("stops")
            elif found != [75, 75]:
                raise SystemExit(f"stops: {found} in {phase}:\n{start.said(0)[-3000:]}\n{start.said(1)[-2000:]}")
            if met:
                break
        tried += met
        statuses[tuple(found)] += met
        print(f"SIGTERM in {phase}: {found}", flush=True)
    if c.folder().exists():
        c.finish("stops")
    came = f"{statuses[75, 75]} ended with status 75, {statuses[0, 0]} came to their end first; in each of {', '.join(PHASES)}"
    c.row("SIGTERM", tried, came, "stops")


def silences(c: Campaign, number: int = 6) -> None:
    """SIGSTOP of one for longer than the patience: the other one names it."""
    named = tried = 0
    for n in range(number):
        victim = n % 2
        start = Torn(c.folder(), c.work)
        if not start.until(lambda: start.phase(victim) == c.chance.choice(PHASES), 60):
            start.ended()
            c.over("silences")
            continue
        tried += 1
        start.processes[victim].send_signal(signal.SIGSTOP)
        status = start.processes[1 - victim].wait(ENDS)
        named += start.named(victim, 1 - victim) and status != 0
        start.processes[victim].kill()
        start.ended()
        print(f"SIGSTOP of {victim}: the other ended with {status}", flush=True)
    c.finish("silences")
    c.row(f"SIGSTOP, patience {PATIENCE} s", tried, f"the other one ended and named it {named} times", "silences")


def damage(c: Campaign, number: int = 300) -> None:
    """A file of the newest checkpoint is cut short, has one bit flipped, or is gone: the state is read right, or the one before it is."""
    import jax
    import numpy as np

    from antisd_jax import checkpoint, config
    from antisd_jax.checkpoint import Checkpoints
    from antisd_jax.learner import abstract_state
    from antisd_jax.model.parameters import abstract
    from antisd_jax.model.settings import load_config
    from antisd_jax.model.sharding import MeshConfig, make_mesh

    told = []
    checkpoint.warn = told.append
    run, mesh = c.work / "reference-2", make_mesh(MeshConfig(), jax.devices()[:1])
    settings = config.load([str(run / "config.yaml")], [])
    wanted = abstract_state(abstract(load_config(run / "model"), mesh), settings.optim, mesh)

    def read(folder):
        checkpoints = Checkpoints(folder, settings.checkpoint)
        state, record = checkpoints.restore_last(wanted)
        checkpoints.close()
        return record, [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]

    whole = {}
    for step in (STEPS, STEPS - 1):
        copy = c.work / "whole"
        shutil.copytree(run / "checkpoints", copy)
        if step < STEPS:
            shutil.rmtree(copy / str(STEPS))
        whole[step] = read(copy)
        shutil.rmtree(copy)
    came = {how: collections.Counter() for how in ("one bit flipped", "cut short", "deleted")}
    for n in range(number):
        how = list(came)[n % len(came)]
        copy = c.work / "damaged"
        shutil.copytree(run / "checkpoints", copy)
        files = sorted(p for p in (copy / str(STEPS)).rglob("*") if p.is_file() and p.stat().st_size)
        file = c.chance.choices(files, [p.stat().st_size for p in files])[0] if n % 2 else c.chance.choice(files)
        data = bytearray(file.read_bytes())
        if how == "deleted":
            file.unlink()
        elif how == "cut short":
            file.write_bytes(data[: c.chance.randrange(len(data))])
        else:
            data[c.chance.randrange(len(data))] ^= 1 << c.chance.randrange(8)
            file.write_bytes(data)
        record, arrays = read(copy)
        if (record, arrays) != whole.get(record["step"]):
            raise SystemExit(f"damage: {file} {how}: something else was read at step {record['step']}")
        came[how][record["step"]] += 1
        came[how]["sums"] += any("not the one that was saved" in x for x in told)
        told.clear()
        shutil.rmtree(copy)
    for how, steps in came.items():
        text = f"{steps[STEPS - 1]} set aside and the one before read ({steps['sums']} of them told by our sums alone), {steps[STEPS]} read all the same; "
        c.row(
            f"a file of the newest checkpoint: {how}", steps[STEPS - 1] + steps[STEPS], text + "never other than what was saved", "damage"
        )


def disks(c: Campaign, number: int = 12) -> None:
    """The disk becomes full at a random moment, with a random rest of room; then room is made, and the run goes on."""
    place = c.work / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)]).returncode:
        return c.row("a full disk", 0, "not tried: no right to mount a tmpfs here", "disks")
    came, folder = collections.Counter(), place / "run"
    try:
        for n in range(number):
            for tear in (True, True, True, False):
                start = Torn(folder, c.work)
                if tear:
                    start.until(lambda: start.phase(0) != "starting")
                    start.until(lambda: False, c.chance.uniform(0, c.seconds))
                rest = c.chance.choice([0, 3_000, 30_000, 300_000, 1_000_000, 1_800_000, 4_000_000])
                if tear and start.running() and shutil.disk_usage(place).free > rest:
                    (place / "ballast").write_bytes(b"\0" * (shutil.disk_usage(place).free - rest))
                    came["filled"] += 1
                statuses = start.ended(120)
                (place / "ballast").unlink(missing_ok=True)
                if statuses == [0, 0]:
                    c.over("disks", folder)
                    break
                came[statuses[0]] += 1
                line = [x for x in start.said(0).splitlines() if x.startswith("error:")]
                print(f"full disk, {rest:,} bytes left: {statuses} {line[-1:]}", flush=True)
                if not line or not any(word in line[-1] for word in ("No space", "are free")):
                    raise SystemExit(f"disks: not said:\n{start.said(0)[-3000:]}")
            else:
                raise SystemExit(f"disks: does not go on:\n{start.said(0)[-3000:]}")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        start = Torn(folder, c.work)
        refused = start.ended(120)
        line = next(x for x in start.said(0).splitlines() if x.startswith("error:"))
        print(f"read-only disk: {refused} {line}", flush=True)
        read_only = "Read-only file system" in line
    finally:
        subprocess.run(["umount", "-l", str(place)])
    ended = came.total() - came["filled"]
    c.row("a full disk", came["filled"], f"{ended} ended with the reason, the others had room enough", "disks")
    c.row("a read-only disk", 1, "refused at the start, with the reason" if read_only else f"not said: {line}", "read-only")


def graders(c: Campaign, number: int = 12) -> None:
    """Grader workers are killed while they work."""
    killed = 0
    for _ in range(number):
        start = Torn(c.folder(), c.work)
        while start.until(lambda: start.phase(0) in ("reward", "testing"), 30):
            listed = [pid for pid, command in start.alive() if "antisd_jax.rewards.worker" in command]
            for pid in c.chance.sample(listed, min(1, len(listed))):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(c.chance.uniform(0.5, 2))
        if start.ended(120) != [0, 0]:
            raise SystemExit(f"graders: {start.said(0)[-3000:]}")
        c.over("graders")
    c.row("a grader killed", killed, f"in {number} runs, all of which came to their end", "graders")


def clocks(c: Campaign, number: int = 4) -> None:
    """The clock of the machine jumps once, in up to three starts of a run, forwards or back; then the run goes on undisturbed."""
    source, library, jump = c.work / "clock.c", c.work / "clock.so", c.work / "jump"
    source.write_text(CLOCK)
    if subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]).returncode:
        return c.row("the clock jumps", 0, "not tried: no C compiler here", "clocks")
    for kind, sign in (("the clock jumps forwards", 1), ("the clock jumps back", -1)):
        jumps, ends = 0, collections.Counter()
        for _ in range(number):
            for _ in range(3):
                jump.write_bytes(bytes(8))
                start = Torn(c.folder(), c.work, environment={"LD_PRELOAD": str(library), "CLOCK_JUMP": str(jump)})
                start.until(lambda: start.phase(0) != "starting")
                start.until(lambda: False, c.chance.uniform(0, c.whole))
                amount = sign * c.chance.choice((10, 60, 3600, 86_400))
                if jumped := start.running():
                    with open(jump, "r+b") as file:  # never shorter: it is mapped
                        file.write(amount.to_bytes(8, sys.byteorder, signed=True))
                    jumps += 1
                try:
                    statuses = start.ended(ENDS)
                except SystemExit:
                    statuses = "hung"
                    for p in start.processes:
                        p.kill()
                    start.ended()
                if jumped:
                    ends[str(statuses)] += 1
                    print(f"{kind} by {amount} s: {statuses}", flush=True)
                if statuses == [0, 0]:
                    break
            c.over(kind) if statuses == [0, 0] else c.finish(kind)
        told = ", ".join(f"{n} × {statuses}" for statuses, n in ends.most_common())
        c.row(kind, jumps, f"10 s to a day; statuses: {told} (the clock that programs read, not that of the kernel's waits)", kind)


def main() -> None:
    from results_file import write_part

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", default="damage,disks,graders,silences,stops,kills,clocks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as work:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{work}/compiled")
        c = Campaign(Path(work), options.seed)
        for name in options.only.split(","):
            globals()[name](c, options.kills) if name == "kills" else globals()[name](c)
    head = f"""
`python benchmarks/faults.py`; 2 CPU cores, two processes of one device each, {STEPS} steps of the embedded task, a checkpoint at each. After every fault the same
command is given again; a run that has come to its end is compared with an undisturbed one: metrics, rollouts, evaluations, and every bit of weights and
moments. None differed, no process was left behind, and none of the processes outlived the fault by {ENDS} seconds (by {MEETING} where the other one had not come
to the meeting yet, for which 300 are allowed): the script ends at the first that does.

| fault | faults | what became of it | runs compared |
| --- | --: | --- | --: |
"""
    write_part("Faults", head + "\n".join(merged(c.rows)))


def merged(rows: list[str]) -> list[str]:
    """With the rows of faults that were not tried this time, as they stand in RESULTS.md."""
    from results_file import PATH

    part = PATH.read_text(encoding="utf-8").partition("# Faults\n")[2].partition("\n# ")[0]
    old = [line for line in part.splitlines() if line.startswith("| ") and not line.startswith(("| fault", "| ---"))]
    return [line for line in old if line.split("|")[1] not in {row.split("|")[1] for row in rows}] + rows


if __name__ == "__main__":
    main()
