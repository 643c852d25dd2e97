"""Debian's docker-registry on loopback, for tests and benchmarks."""

import base64
import hashlib
import json
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.requirements import DOCKER_REGISTRY

PASSWORD = "secret"


@dataclass(slots=True)
class DockerRegistry:
    """A registry with its storage in a directory; a context manager."""

    base: Path
    auth: dict[str, Any] = field(default_factory=dict)
    """The section `auth` of its configuration."""
    tls: dict[str, str] = field(default_factory=dict)
    """The section `http.tls`."""
    deletes: bool = True
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def __enter__(self) -> "DockerRegistry":
        if not self.port:
            with socket.socket() as one:
                one.bind(("127.0.0.1", 0))
                self.port = one.getsockname()[1]
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        self.base.mkdir(parents=True, exist_ok=True)
        config = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.base / "data")},
                "delete": {"enabled": self.deletes},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": self.host, **({"tls": self.tls} if self.tls else {})},
            **({"auth": self.auth} if self.auth else {}),
        }
        (self.base / "config.yml").write_text(json.dumps(config))
        with (self.base / "log").open("ab") as log:
            argv = [str(DOCKER_REGISTRY), "serve", str(self.base / "config.yml")]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.base / "log").read_text()
                assert self.process.poll() is None, (self.base / "log").read_text()
                time.sleep(0.02)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def blobs(self) -> set[str]:
        """The digests of what it has."""
        found = (self.base / "data/docker/registry/v2/blobs/sha256").glob("*/*/data")
        return {f"sha256:{path.parent.name}" for path in found}

    def blob(self, digest: str) -> Path:
        """The file of one."""
        name = digest.removeprefix("sha256:")
        return self.base / "data/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def put(self, path: str, data: bytes, kind: str = "") -> str:
        """Put a blob there, or a manifest of that kind, as anybody could; its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if kind:
            self._ask("PUT", f"/v2/{path}/manifests/{digest}", data, kind)
            return digest
        where = self._ask("POST", f"/v2/{path}/blobs/uploads/", b"", "text/plain")
        self._ask("PUT", f"{where}&digest={digest}", data, "application/octet-stream")
        return digest

    def _ask(self, method: str, where: str, data: bytes, kind: str) -> str:
        url = where if where.startswith("http") else f"http://{self.host}{where}"
        request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.headers.get("Location", ""))


def docker_config(directory: Path, host: str, user: str = "agent", password: str = PASSWORD) -> dict[str, str]:
    """A docker `config.json`; the environment that names it."""
    word = base64.b64encode(f"{user}:{password}".encode()).decode()
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"auths": {host: {"auth": word}}}))
    return {"DOCKER_CONFIG": str(directory)}
