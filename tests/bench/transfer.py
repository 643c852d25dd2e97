"""How quick a set goes to a volume and to a registry and comes from there, beside what does nothing else.

    python -m tests.bench.transfer [--gib 1] [--rounds 5] [--json FILE]

In turn, on the file system of build/bench: the agent's copy to a directory and `cp -r` with `sync`; its push to
docker-registry on loopback and `skopeo copy` of the same image from an OCI layout; its pull and `skopeo copy` into an
OCI layout with `sync`. The agent's copy is read once more, and compared with its checksums; its push is compared with
them; what it pulls is compared with the image's digests, as skopeo does. The registry begins empty for each push.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grit_runtime.agent import copies, pull, sets, transfer
from grit_runtime.agent.image import Facts
from grit_runtime.agent.reference import Repository
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.agent.transfer import Remote
from tests.registry import DockerRegistry
from tests.requirements import ROOT
from tests.simulated import runtime

NAMES = ("front", "back")
TITLES = {
    "cp": "to a directory, cp -r and sync",
    "copy": "to a directory, agent",
    "skopeo push": "to a registry, skopeo copy",
    "push": "to a registry, agent",
    "skopeo pull": "from a registry, skopeo copy and sync",
    "pull": "from a registry, agent",
}
_FACTS = Facts(
    created="2026-01-01T00:00:00Z", uid="u", namespace="default", pod="web-0", pod_uid="p", containers=NAMES,
    architecture="x86_64",
)  # fmt: skip


class Bench:
    """A set on this machine's disk, and a registry."""

    def __init__(self, work: Path, registry: DockerRegistry) -> None:
        self.work, self.registry = work, registry
        self.source = Place(root=str(work / "node"), namespace="default", name="one", uid="u")
        sets.claim(self.source)
        for name in NAMES:
            runtime.write(work / "node", "one", name)
        (work / "node/default/.grit-set-one").rename(self.source.path)
        self.expected = sets.contents(self.source, NAMES)
        self.remote = Remote(repository=Repository(host=registry.host, path="default/one", plain=True))
        self.digest = ""
        self.image = f"docker://{registry.host}/default/one"

    def prepare(self) -> None:
        """The same image as an OCI layout."""
        self.push()
        self._skopeo(f"{self.image}:one", f"oci:{self.work}/layout:one")

    def round(self) -> dict[str, float]:
        """Seconds of each."""
        found = {"cp": self._timed(self.cp), "copy": self._timed(self.copy)}
        self.empty()
        found["skopeo push"] = self._timed(self.skopeo_push)
        self.empty()
        found["push"] = self._timed(self.push)
        found["skopeo pull"] = self._timed(self.skopeo_pull)
        found["pull"] = self._timed(self.pull)
        return found

    def _timed(self, do: Callable[[], Any]) -> float:
        for name in ("cp", "volume", "pulled", "other"):
            shutil.rmtree(self.work / name, ignore_errors=True)
        subprocess.run(["sync", "--file-system", self.work], check=True)
        begun = time.monotonic()
        do()
        return time.monotonic() - begun

    def cp(self) -> None:
        subprocess.run(["cp", "-r", "--reflink=never", self.source.path, self.work / "cp"], check=True)
        subprocess.run(["sync", "--file-system", self.work / "cp"], check=True)

    def copy(self) -> None:
        os.makedirs(self.work / "volume")
        copies.copy(self.source, self.source.below(str(self.work / "volume")), self.expected, Progress())

    def empty(self) -> None:
        self.registry.kill()
        shutil.rmtree(self.registry.base / "data", ignore_errors=True)
        self.registry.start()

    def push(self) -> None:
        self.digest = transfer.push(self.source, self.expected, self.remote, "one", _FACTS, Progress())

    def pull(self) -> None:
        target = self.source.below(str(self.work / "pulled"))
        os.makedirs(target.root)
        pull.pull(self.remote, self.digest, target, self.expected, Progress())

    def skopeo_push(self) -> None:
        self._skopeo("--preserve-digests", f"oci:{self.work}/layout:one", f"{self.image}:one")

    def skopeo_pull(self) -> None:
        self._skopeo(f"{self.image}@{self.digest}", f"oci:{self.work}/other:one")
        subprocess.run(["sync", "--file-system", self.work], check=True)

    def _skopeo(self, *words: str) -> None:
        argv = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false", *words]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench/transfer.json")
    options = parser.parse_args()
    work = ROOT / "build/bench/transfer"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    runtime.SIZE = int(options.gib * (1 << 30)) // 2
    try:
        with DockerRegistry(work / "registry") as registry:
            bench = Bench(work, registry)
            bench.prepare()
            rounds = [bench.round() for _ in range(options.rounds)]
    finally:
        shutil.rmtree(work)
    made: dict[str, Any] = {}
    for name, title in TITLES.items():
        values = [found[name] for found in rounds]
        median = statistics.median(values)
        rate = 2 * runtime.SIZE / median / (1 << 20)
        made[name] = {"seconds": values, "median": median, "MiB/s": rate}
        print(f"{title:38} {median:6.2f} s ({min(values):.2f} to {max(values):.2f}), {rate:5.0f} MiB/s")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"bytes": 2 * runtime.SIZE, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
