"""A hub on loopback with one data set, o/n, whose main moves when it is told to: enough for huggingface_hub and datasets.

As a program: starts the hub, runs the code on its standard input with HUB (move, requests) at hand, in a process that has not
imported either library yet.
"""

import http.server
import json
import os
import sys
import threading

COMMITS = ("a" * 40, "b" * 40)


class Hub:
    def __init__(self):
        self.at, self.requests = 0, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def move(self):
        """main gets a new commit, with one problem more."""
        self.at = 1

    def files(self, commit: str) -> dict[str, bytes]:
        splits = "".join(f"  - split: {s}\n    path: {s}.jsonl\n" for s in ("train", "test"))
        rows = [{"question": f"What is {i} + {i}?", "answer": f"It is.\n#### {2 * i}"} for i in range(2 + COMMITS.index(commit))]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        readme = f"---\nconfigs:\n- config_name: main\n  data_files:\n{splits}---\n".encode()
        return {"README.md": readme, "train.jsonl": lines, "test.jsonl": lines[: lines.index(b"\n") + 1]}

    def answer(self, request, body: bool = True):
        path = request.path.partition("?")[0]
        self.requests.append(path)
        head = "/api/datasets/o/n"
        asked = path.rpartition("/")[2] if path.startswith(head + "/revision/") else path.split("/")[5] if "/resolve/" in path else ""
        commit = asked if asked in COMMITS else COMMITS[self.at]
        files = self.files(commit)
        if path == head or path.startswith(head + "/revision/"):
            info = {"id": "o/n", "sha": commit, "siblings": [{"rfilename": f} for f in files], "private": False, "gated": False}
            return self.send(request, json.dumps(info | {"disabled": False, "downloads": 0, "likes": 0, "tags": []}).encode(), body)
        if path.startswith(head + "/tree/"):
            tree = [{"type": "file", "path": f, "size": len(c), "oid": "c" * 40} for f, c in files.items()]
            return self.send(request, json.dumps(tree).encode(), body)
        name = path.rpartition("/")[2]
        if "/resolve/" in path and path.startswith("/datasets/o/n/") and name in files:
            return self.send(request, files[name], body, {"X-Repo-Commit": commit, "ETag": f'"{name}{commit}"'})
        request.send_response(404)
        request.send_header("X-Error-Code", "EntryNotFound" if path.startswith(("/datasets/o/n", head)) else "RepoNotFound")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def send(self, request, content: bytes, body: bool, headers: dict | None = None):
        request.send_response(200)
        for key, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(content)


if __name__ == "__main__":
    HUB = Hub()
    os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HOME": sys.argv[1], "HF_HUB_DISABLE_XET": "1"}
    exec(sys.stdin.read())
