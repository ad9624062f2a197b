"""What W&B's real client leaves: the files of offline runs, read back, and a server that notes what it is sent."""

import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from wandb.proto import wandb_internal_pb2

from sq.tracker.wandb_client import end

BLOCK = 2**15  # of LevelDB's log format, in which W&B keeps a run
KEY = "0" * 40  # has the shape of an API key


def messages(file):
    """Yield the protocol buffers of an offline run."""
    data, at, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def mirrored(folder):
    """Return what W&B knows of one run: its start, config, summary, exit code and media files."""
    (file,) = folder.glob("*.wandb")
    media = {
        str(f.relative_to(folder / "files")): f
        for f in (folder / "files").rglob("*")
        if f.is_file()
    }
    seen = {"summary": {}, "exit": None, "media": media}
    for message in messages(file):
        kind = message.WhichOneof("record_type")
        if kind == "run":
            seen["run"] = message.run
            seen["config"] = {
                item.key: json.loads(item.value_json) for item in message.run.config.update
            }
        elif kind == "config":
            seen["config"] |= {
                item.key: json.loads(item.value_json) for item in message.config.update
            }
        elif kind == "summary":
            for item in message.summary.update:
                seen["summary"]["/".join([item.key, *item.nested_key]).strip("/")] = json.loads(
                    item.value_json
                )
        elif kind == "exit":
            seen["exit"] = message.exit.exit_code
    return seen


def offline(folder):
    """Return all offline runs below `folder`, in the order in which they began, as `mirrored` has them."""
    return [
        mirrored(f)
        for f in sorted(
            (folder / "wandb").glob("offline-run-*"), key=lambda f: f.stat().st_mtime_ns
        )
    ]


def rows(seen, name):
    """Return columns and rows of table `name` of a run."""
    (file,) = (f for where, f in seen["media"].items() if where.startswith(f"media/table/{name}_"))
    found = json.loads(file.read_text())
    return found["columns"], found["data"]


class Server(ThreadingHTTPServer):
    """As much of W&B's server as uploading takes.

    `runs` has by id what arrived: project, group, tags, the last summary and how often the run was
    begun. Ids in `deleted` are refused as W&B refuses those of deleted runs; after `most` runs, so
    is every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Requests)
        self.runs, self.deleted, self.refuses, self.most = {}, set(), False, 1000

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Requests(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, code, content):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self):
        self.body()
        self.answer(200, {})

    def do_POST(self):
        text = self.body()
        if self.server.refuses:
            self.answer(401, {"errors": [{"message": "invalid key"}]})
        elif found := re.fullmatch(r"/files/\w+/\w+/([^/]+)/file_stream", self.path):
            files = json.loads(text).get("files", {})
            if "wandb-summary.json" in files:
                self.server.runs[found[1]]["summary"] = json.loads(
                    files["wandb-summary.json"]["content"][-1]
                )
            self.answer(200, {"exitcode": None, "limits": {}})
        elif self.path == "/graphql":
            self.graphql(json.loads(text))
        else:  # the client's telemetry
            self.answer(200, {})

    def graphql(self, asked):
        what, values = (
            re.search(r"(?:mutation|query)\s+(\w+)|$", asked["query"])[1],
            asked.get("variables") or {},
        )
        if what == "UpsertBucket":
            self.upsert(values)
        elif what == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in values["files"]
            ]
            self.answer(
                200,
                {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}},
            )
        elif what == "ArtifactType":
            self.answer(200, {"data": {"project": {"artifact": None}}})
        elif what == "CreateArtifact":
            made = {
                "id": "a",
                "state": "COMMITTED",
                "artifactSequence": {"id": "s", "latestArtifact": None},
            }
            self.answer(200, {"data": {"createArtifact": {"artifact": made}}})
        else:
            viewer = dict.fromkeys(("email", "admin", "deletedAt", "apiKeys", "teams"))
            viewer |= {"id": "u", "name": "me", "entity": "me", "username": "me", "flags": "{}"}
            self.answer(200, {"data": {"viewer": viewer, "serverInfo": {"features": []}}})

    def upsert(self, values):
        own, runs = values["name"], self.server.runs
        if own not in runs and len(runs) == self.server.most:
            self.server.refuses = True
            return self.answer(401, {"errors": [{"message": "invalid key"}]})
        if own in self.server.deleted:
            text = f"run me/sq/{own} was previously created and deleted; try a new run id"
            return self.answer(409, {"errors": [{"message": text}], "error": text})
        if values.get("groupName"):  # the first of a run's several
            seen = runs.setdefault(own, {"begun": 0})
            seen |= {
                "begun": seen["begun"] + 1,
                "group": values["groupName"],
                "project": values["project"],
            }
            seen |= {"tags": values.get("tags"), "job_type": values.get("jobType"), "summary": {}}
        project = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": "x",
            "name": own,
            "displayName": own,
            "config": None,
            "historyLineCount": 0,
            "project": project,
        }
        return self.answer(200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})


@contextmanager
def server():
    """Run a `Server` for a while."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@contextmanager
def client(folder, **more):
    """Give W&B's client in this process an environment of its own, and nothing of it to what comes after."""
    import wandb

    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        del os.environ[name]
    os.environ |= {
        f"WANDB_{what}_DIR": str(folder / "wandb_home" / what)
        for what in ("DATA", "CACHE", "CONFIG")
    }
    os.environ |= {"NETRC": str(folder / "netrc"), **more}
    end(wandb)
    try:
        yield
    finally:
        end(wandb)
        os.environ.clear()
        # it has ended
        os.environ |= {name: value for name, value in before.items() if name != "WANDB_SERVICE"}
