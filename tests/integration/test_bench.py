"""The benchmarks run, and say what they must; what they measure is of no interest here."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.requirements import ROOT, RUNTIME

pytestmark = [pytest.mark.needs("root", "runc", "criu", "cc", "runtime"), pytest.mark.timeout(120)]


def _run(name: str, *options: str) -> str:
    argv = [sys.executable, "-m", f"tests.bench.{name}", *options]
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_looking_at_a_large_checkpoint(tmp_path: Path) -> None:
    figures = tmp_path / "looking.json"
    said = _run("looking", "--runtime", str(RUNTIME), "--rounds", "1", "--entries", "64", "--json", str(figures))
    assert [line.split(":")[0] for line in said.splitlines()[:2]] == [
        "inspect of 30 GiB, 64 entries", "plan of 30 GiB, 64 entries",
    ]  # fmt: skip
    assert json.loads(figures.read_text())["looking"][0]["gib"] == 30


@pytest.mark.needs("docker-registry", "skopeo")
def test_sets_go_to_a_registry_beside_skopeo(tmp_path: Path) -> None:
    figures = tmp_path / "transfer.json"
    said = _run("transfer", "--gib", "0.01", "--rounds", "1", "--json", str(figures))
    assert [line.rpartition(", ")[0].split("  ")[0] for line in said.splitlines()][3:6:2] == [
        "to a registry, agent", "from a registry, agent",
    ]  # fmt: skip
    assert json.loads(figures.read_text())["push"]["MiB/s"] > 0


def test_small_sizes_end_in_a_table_and_a_picture(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    memory, growth, picture = (str(tmp_path / name) for name in ("memory.json", "growth.json", "picture.svg"))
    runtime = ("--runtime", str(RUNTIME), "--rounds", "1")
    _run("memory", *runtime, "--mib", "16", str(1 << 30), "--loaded", "16", "--json", memory)
    _run("growth", *runtime, "--small", "--only", "processes", "mounts", "vmas", "--json", growth)
    table = _run("report", memory, growth, "--svg", picture)
    sizes = {(entry["mib"], entry["loaded"]): entry for entry in json.loads(Path(memory).read_text())["memory"]}
    assert set(sizes[16, False]["share"]) == {"checkpoint", "restore"}, "the log says how long the memory took"
    assert sizes[16, True]["sooner"]["restore"] > 0
    assert "it needs" in sizes[1 << 30, False]["left_out"]
    for title in ("10 mounts", "1000 mappings", "1 processes"):
        assert f"| {title} | restore |" in table
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("grit-bench-")}
