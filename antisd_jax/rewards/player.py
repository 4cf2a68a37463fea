"""The process that holds a program under test: `python -m antisd_jax.rewards.player`, locked up before the program is read.

It is told what to do by the referee (code.py) over one socket and never sees a test, an expected value or a verdict: it gets
arguments and gives back what the program made of them. Frames are a length (four bytes) and JSON. Requests carry a nonce that
the answer must repeat, so that nothing written to the socket ahead of time passes for an answer.
"""

import atexit
import contextlib
import json
import operator
import os
import resource
import socket
import struct
import sys
import tempfile
import threading
import time
import types

from antisd_jax.rewards.isolate import lock_up
from antisd_jax.rewards.values import allow_long_integers, decode, encode

MAX_FRAME = 256 << 20  # bytes
MAX_NESTING = 3000


def send(channel: socket.socket, message: dict) -> None:
    data = json.dumps(message).encode()
    channel.sendall(struct.pack("!I", len(data)) + data)


def receive(channel: socket.socket, deadline: float | None = None) -> dict:
    """The next frame, before the deadline (of time.monotonic) where there is one.

    Raises OSError when the other side is gone or late, ValueError or RecursionError when the frame is no answer of ours.
    """
    (size,) = struct.unpack("!I", _exactly(channel, 4, deadline))
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes")
    data, limit = _exactly(channel, size, deadline), sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(min(limit, MAX_NESTING))  # a test may have raised it: a deep frame would overflow the C stack
        message = json.loads(data)
    finally:
        sys.setrecursionlimit(limit)
    if not isinstance(message, dict):
        raise ValueError("no object")
    return message


def _exactly(channel: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = []
    while size:
        if deadline is not None:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
        part = channel.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionError("closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def load(program: str, prelude: str, run: bool) -> dict:
    """The program's names. Raises whatever it raises, SyntaxError among it.

    prelude stands before the program where the two compile together. run: only compile it, for `run_text` to run.
    """
    code = None
    if prelude:
        try:
            code = compile(f"{prelude}\n{program}", "program.py", "exec")
        except (SyntaxError, ValueError):
            pass
    if code is None:
        code = compile(program, "program.py", "exec")
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and pickle look there
    if not run:
        exec(code, module.__dict__)
    return module.__dict__ | {"__code__": code}


def run_text(code, text: str, source, printed) -> str:
    """What the program prints when it is run on `text` as standard input; two open files stand for the streams."""
    for file, content in ((source, text), (printed, "")):
        file.seek(0)
        file.truncate()
        file.write(content.encode())
        file.flush()
        file.seek(0)
    os.dup2(source.fileno(), 0)
    os.dup2(printed.fileno(), 1)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as e:
        if e.code not in (None, 0):
            raise
    finally:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        for stream in {sys.stdout, sys.__stdout__}:
            with contextlib.suppress(ValueError):  # closed by the program
                stream.flush()
    printed.seek(0)
    return printed.read(MAX_FRAME // 8).decode(errors="replace")


class Player:
    """The program's objects: plain ones cross, the others stay here under a number."""

    def __init__(self, names: dict, streams: tuple):
        self.names, self.streams = names, streams
        self.kept = []

    def keep(self, x) -> dict:
        self.kept.append(x)
        return {"remote": len(self.kept) - 1}

    def do(self, request: dict):
        what, args = request["do"], [decode(a, self.kept.__getitem__) for a in request["args"]]
        named = {k: decode(v, self.kept.__getitem__) for k, v in request.get("named", {}).items()}
        if what == "name":
            return {"value": self.keep(self.names[args[0]])}
        if what == "run":
            return {"value": run_text(self.names["__code__"], args[0], *self.streams)}
        if what == "call":
            value = args[0](*args[1:], **named)
            changed = {"args": [encode(a, self.keep) for a in args[1:]]} if value is None else {}
            return {"value": encode(value, self.keep)} | changed
        if what == "equal":
            return {"value": bool(args[0] == args[1])}
        verbs = {
            "getattr": getattr,
            "setattr": setattr,
            "getitem": operator.getitem,
            "setitem": operator.setitem,
            "repr": repr,
            "len": len,
            "iter": iter,
            "next": next,
            "str": str,
            "bool": bool,
        }
        return {"value": encode(verbs[what](*args), self.keep)}


def main() -> None:
    channel, order = socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2])
    allow_long_integers()
    streams = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    send(channel, {"held": lock_up(tuple(order["layers"]), order["seconds"], order["memory_mb"])})
    request = receive(channel)
    try:
        player = Player(load(request["program"], request["prelude"], request["run"]), streams)
        answer = {"ok": True}
    except BaseException as e:
        answer = _raised(e)
    send(channel, answer | {"nonce": request["nonce"]})
    while True:
        request = receive(channel)
        try:
            answer = player.do(request)
        except BaseException as e:
            answer = _raised(e)
        send(channel, answer | {"nonce": request["nonce"]})


def _raised(e: BaseException) -> dict:
    """Its name, the nearest of Python's own exceptions among its bases, and its arguments where they are plain."""
    base = next((k.__name__ for k in type(e).__mro__ if k.__module__ == "builtins"), "Exception")
    try:
        return {"raised": type(e).__name__, "base": base, "args": encode(list(e.args))}
    except BaseException:
        return {"raised": type(e).__name__, "base": base, "args": []}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
