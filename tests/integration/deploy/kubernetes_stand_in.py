"""As much of a Kubernetes API as kubectl needs to create, read, list and delete RayJobs; it plays KubeRay's part too.

Usage: kubernetes_stand_in.py FOLDER [without-kuberay]. Writes its port to FOLDER/port and every RayJob that it was sent
to FOLDER/created.jsonl. What becomes of them stands in FOLDER/endings.json: a list of statuses, one for each RayJob in
turn; each shows `Running` once before it has that status.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOME = Path(sys.argv[1])
GROUPS = [] if "without-kuberay" in sys.argv else ["ray.io"]
RESOURCES = [
    {"name": "rayjobs", "singularName": "rayjob", "namespaced": True, "kind": "RayJob",
     "verbs": ["create", "delete", "get", "list"]}
]  # fmt: skip
# From this kubectl sees that the server checks fields itself.
OPEN_API = {
    "openapi": "3.0.0",
    "info": {"title": "stand-in", "version": "1"},
    "paths": {
        "/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": "ray.io", "version": "v1", "kind": "RayJob"},
            }
        }
    },
}
JOBS: dict[str, dict[str, Any]] = json.loads((HOME / "there.json").read_text())
ENDINGS: list[dict[str, Any]] = json.loads((HOME / "endings.json").read_text())


class Api(BaseHTTPRequestHandler):
    """Answers one request."""

    def answer(self, body: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def missing(self) -> None:
        self.answer({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/").split("/")
        versions = [{"groupVersion": f"{group}/v1", "version": "v1"} for group in GROUPS]
        if path == ["api"]:
            self.answer({"kind": "APIVersions", "versions": ["v1"]})
        elif path == ["api", "v1"]:
            self.answer({"kind": "APIResourceList", "groupVersion": "v1", "resources": []})
        elif path == ["apis"]:
            groups = [{"name": name, "versions": [version], "preferredVersion": version}
                      for name, version in zip(GROUPS, versions, strict=True)]  # fmt: skip
            self.answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        elif path == ["openapi", "v3"]:
            self.answer({"paths": {"apis/ray.io/v1": {"serverRelativeURL": "/openapi/v3/apis/ray.io/v1"}}})
        elif path == ["openapi", "v3", "apis", "ray.io", "v1"]:
            self.answer(OPEN_API)
        elif path == ["apis", "ray.io", "v1"] and GROUPS:
            self.answer({"kind": "APIResourceList", "groupVersion": "ray.io/v1", "resources": RESOURCES})
        elif path[-1] == "rayjobs" and GROUPS:
            items = list(JOBS.values())
            self.answer({"kind": "RayJobList", "apiVersion": "ray.io/v1", "metadata": {}, "items": items})
        elif path[-2:-1] == ["rayjobs"] and path[-1] in JOBS:
            job = JOBS[path[-1]]
            self.answer(job)
            if "status" not in job:
                job["status"] = {"jobDeploymentStatus": "Running"}
            elif job["status"]["jobDeploymentStatus"] == "Running":
                job["status"] = ENDINGS.pop(0)
        else:
            self.missing()

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (HOME / "created.jsonl").open("a") as log:
            log.write(json.dumps(job) + "\n")
        name = f"{job['metadata']['generateName']}{len(JOBS):05d}"
        job["metadata"].update(name=name, namespace="nightread", uid=name, resourceVersion="1")
        JOBS[name] = job
        self.answer(job, 201)

    def do_DELETE(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        with (HOME / "deleted").open("a") as log:
            log.write(f"{name}\n")
        JOBS.pop(name, None)
        self.answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
(HOME / "port.part").write_text(str(server.server_address[1]))
(HOME / "port.part").rename(HOME / "port")
server.serve_forever()
