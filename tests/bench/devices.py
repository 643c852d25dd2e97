"""What `create` of a container costs that asks for a GPU, by each way of giving it one, side by side in one run.

    devices.py --runtime PATH [--runs 30]

The CDI spec has the shape and size of what `nvidia-ctk cdi generate` writes for one GPU, with device nodes and files
that every machine has: no GPU is needed, and none is measured. NVIDIA's runtime takes part if it is in PATH. The time
is that of `create` alone, a whole process; the container is deleted between.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = 40  # what the spec mounts, with driver 580
CONTAINER = "grit-bench"


def spec(files: Path) -> str:
    """A CDI spec in YAML."""
    lines = ["---", "cdiVersion: 0.5.0", "kind: nvidia.com/gpu", "devices:"]
    for name in ("0", "GPU-11111111-2222-3333-4444-555555555555", "all"):
        lines += [f'- name: "{name}"', "  containerEdits:", "    deviceNodes:"]
        lines += ["    - path: /dev/nvidia0", "      hostPath: /dev/null"]
    lines += ["containerEdits:", "  env:", "  - NVIDIA_VISIBLE_DEVICES=void", "  deviceNodes:"]
    for name, host in (("nvidiactl", "zero"), ("nvidia-uvm", "full"), ("nvidia-uvm-tools", "random")):
        lines += [f"  - path: /dev/{name}", f"    hostPath: /dev/{host}"]
    lines += ["  mounts:"]
    for number in range(LIBRARIES):
        path = files / f"library{number}.so.580"
        path.touch()
        lines += [f"  - hostPath: {path}", f"    containerPath: /usr/lib/nvidia/{path.name}", "    options:"]
        lines += [f"    - {option}" for option in ("ro", "nosuid", "nodev", "rbind", "rprivate")]
    return "\n".join(lines) + "\n"


def bundle(path: Path, busybox: str) -> Path:
    """A bundle that asks for all GPUs."""
    for directory in ("bin", "proc", "dev", "sys", "usr/lib/nvidia"):
        (path / "rootfs" / directory).mkdir(parents=True)
    for number in range(LIBRARIES):
        (path / f"rootfs/usr/lib/nvidia/library{number}.so.580").touch()
    shutil.copy(busybox, path / "rootfs/bin/sh")
    subprocess.run([program("runc"), "spec", "--bundle", path], check=True)
    config = json.loads((path / "config.json").read_text())
    config["process"].update(terminal=False, args=["sh", "-c", "exit 0"], rlimits=[])
    config["process"]["env"].append("NVIDIA_VISIBLE_DEVICES=all")
    (path / "config.json").write_text(json.dumps(config))
    return path


def program(name: str) -> str:
    """A program that must be there."""
    found = shutil.which(name)
    if found is None:
        sys.exit(f"devices: {name} is not in PATH")
    return found


def ways(runtime: str, place: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Name to program and environment; the first is what the others are compared with."""
    (place / "files").mkdir()
    (place / "cdi").mkdir()
    (place / "cdi/nvidia.yaml").write_text(spec(place / "files"))
    found: dict[str, tuple[str, dict[str, str]]] = {"runc, no device": (program("runc"), {})}

    def ours(name: str, **config: object) -> None:
        file = place / f"{name}.yaml"
        values = {"state-dir": place / "state", "log-dir": place / "logs", **config}
        file.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        found[f"grit-runtime, {name}"] = (runtime, {**nvidia, "GRIT_RUNTIME_CONFIG": str(file)})

    toolkit, nvidia = shutil.which("nvidia-container-runtime"), {}
    if toolkit:
        settings = place / "nvidia-container-runtime/config.toml"
        settings.parent.mkdir()
        modes = f'[nvidia-container-runtime.modes.cdi]\ndefault-kind = "nvidia.com/gpu"\nspec-dirs = ["{place}/cdi"]\n'
        settings.write_text(f'[nvidia-container-runtime]\nmode = "cdi"\nruntimes = ["runc"]\n{modes}')
        nvidia = {"XDG_CONFIG_HOME": str(place)}
        found["nvidia-container-runtime, cdi"] = (toolkit, nvidia)
        ours("chain", downstream=toolkit)
    ours("cdi", devices="cdi", **{"cdi-spec-dirs": [str(place / "cdi")]})
    return found


def create(name: str, way: tuple[str, dict[str, str]], place: Path) -> float:
    """Create a container and delete it; the seconds that `create` took."""
    path, more = way
    root = str(place / "root")
    pristine = (place / "bundle/config.json").read_bytes()
    start = time.perf_counter()
    done = subprocess.run(
        [path, "--root", root, "create", "--bundle", str(place / "bundle"), CONTAINER],
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"devices: create by {name} failed")
    edited = json.loads((place / "bundle/config.json").read_text())
    if name != "runc, no device" and len(edited["linux"].get("devices") or []) != 4:
        sys.exit(f"devices: {name} gave no devices")
    subprocess.run([program("runc"), "--root", root, "delete", "--force", CONTAINER], check=True)
    (place / "bundle/config.json").write_bytes(pristine)
    return took


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", required=True, help="the launcher to measure")
    parser.add_argument("--runs", type=int, default=30, help="how often each way runs (default: 30)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="grit-bench-") as name:
        place = Path(name)
        bundle(place / "bundle", program("busybox"))
        rows = ways(os.path.abspath(options.runtime), place)
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(-2, options.runs):
            for name in rows if number % 2 else reversed(rows):
                took = create(name, rows[name], place)
                if number >= 0:
                    seconds[name].append(took)
    base = statistics.median(next(iter(seconds.values())))
    print(f"{'create':32}{'q1 ms':>9}{'median ms':>11}{'q3 ms':>9}{'/ runc':>9}")
    for name, found in seconds.items():
        low, middle, high = (1000 * value for value in statistics.quantiles(found, n=4, method="inclusive"))
        print(f"{name:32}{low:9.2f}{middle:11.2f}{high:9.2f}{middle / base / 1000:9.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
