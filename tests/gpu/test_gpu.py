"""The whole chain on a real GPU: captured, gone, restored as another container with other mounts."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu.conftest import PYTHON, GpuMachine, References, lines
from tests.integration.machine import BOOT

pytestmark = [pytest.mark.needs("root", "runc", "criu", "gpu"), pytest.mark.timeout(900)]


def _used() -> int:
    """MiB of GPU memory in use."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def _total() -> int:
    """MiB of memory that the GPU has."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def _seconds(images: Path) -> str:
    manifest = json.loads((images / "grit.json").read_text())
    cuda = manifest["cuda"]
    memory = sum(sum(p["memory"].values()) for p in cuda["processes"]) >> 20
    return f"{memory} MiB {cuda['seconds']} {manifest['seconds']}"


@pytest.mark.parametrize("mode", ["seeded", "training", "graphs", "tokens", "cupy", "jax"])
def test_a_program_goes_on_as_if_nothing_had_been(gpu: GpuMachine, references: References, mode: str) -> None:
    old = gpu.begin("old", mode)
    images = gpu.capture("old")
    assert gpu.status("old") == "gone"
    begun = time.monotonic()
    new = gpu.bring_back(images, "new", old)
    print(mode, _seconds(images), f"restore {time.monotonic() - begun:.2f}")
    gpu.goes_on(new)
    got = lines(new)
    if mode == "seeded":
        # A new CUDA context and NVML work inside.
        inside = "import torch; print(int(torch.ones(8, device='cuda').sum()))"
        python = os.environ.get("GRIT_TEST_GPU_PYTHON", "python3")
        assert gpu.runc("exec", "new", python, "-c", inside).ok().out.strip() == "8"
        assert "NVIDIA" in gpu.runc("exec", "new", "nvidia-smi").ok().out
    references.check(mode, got)


def test_two_processes(gpu: GpuMachine, references: References) -> None:
    old = gpu.begin("old", "two")
    gpu.wait(lambda: len(lines(old, "out.second")) > 3, timeout=60)
    images = gpu.capture("old")
    new = gpu.bring_back(images, "new", old)
    print("two", _seconds(images))
    gpu.goes_on(new)
    references.check("seeded", lines(new))
    references.check("seeded", lines(new, "out.second"))


def test_forty_gib(gpu: GpuMachine, references: References) -> None:
    references.ended()
    old = gpu.begin("old", "big")
    values = {line.partition(" ")[2] for line in lines(old)}
    before = _used()
    images = gpu.capture("old")
    assert _used() < before - 40000
    begun = time.monotonic()
    new = gpu.bring_back(images, "new", old)
    print("big", _seconds(images), f"restore {time.monotonic() - begun:.2f}", before, _used())
    gpu.goes_on(new, 2)
    assert {line.partition(" ")[2] for line in lines(new)} == values


def test_three_generations(gpu: GpuMachine, references: References) -> None:
    bundle = gpu.begin("g0", "training")
    for number in range(3):
        images = gpu.capture(f"g{number}")
        bundle = gpu.bring_back(images, f"g{number + 1}", bundle)
        gpu.goes_on(bundle)
    references.check("training", lines(bundle))


def test_restores_in_a_row(gpu: GpuMachine) -> None:
    """As many as GRIT_TEST_GPU_ROUNDS says; each time every byte is compared."""
    bundle = gpu.begin("g0", "whole")
    values = {line.partition(" ")[2] for line in lines(bundle)}
    assert len(values) == 1
    rounds, took = int(os.environ.get("GRIT_TEST_GPU_ROUNDS", "3")), list[float]()
    for number in range(rounds):
        images = gpu.capture(f"g{number}")
        assert json.loads((images / "grit.json").read_text())["cuda"]["processes"][0]["staging"]
        begun = time.monotonic()
        bundle = gpu.bring_back(images, f"g{number + 1}", bundle)
        took.append(time.monotonic() - begun)
        assert "staging memory were mapped" in (gpu.path / "log.json").read_text()
        gpu.goes_on(bundle, 2)
        assert {line.partition(" ")[2] for line in lines(bundle)} == values
        shutil.rmtree(images)
    print(f"{rounds} in a row, a restore took {min(took):.2f} to {max(took):.2f} s")


@pytest.mark.parametrize("paused", [False, True])
def test_leave_running(gpu: GpuMachine, references: References, paused: bool) -> None:
    old = gpu.begin("old", "training")
    if paused:
        gpu.runc("pause", "old").ok()
    images = gpu.capture("old", "--leave-running")
    if paused:
        assert gpu.status("old") == "paused"
        gpu.runc("resume", "old").ok()
    gpu.goes_on(old)
    references.check("training", lines(old))
    assert (images / "grit.json").exists()


def test_create_holds_everything_back_until_start(gpu: GpuMachine, references: References) -> None:
    """The GPU memory is there before `start`, and no line is written."""
    references.ended()
    old = gpu.begin("old", "training")
    gpu.runc("pause", "old").ok()
    images = gpu.checkpoints / "ns/first/app/checkpoint"
    gpu.grit("checkpoint", "--image-path", str(images), "old").ok()
    free = _used()
    new = gpu.gpu_bundle("new", "none")
    new.annotate(type="container", name="app", namespace="ns", restore_name="first")
    for file in old.data.iterdir():
        (new.data / file.name).write_bytes(file.read_bytes())
    before = lines(new)
    gpu.grit("create", "--bundle", str(new.path), "new").ok()
    assert _used() > free + 400
    time.sleep(1)
    assert lines(new) == before
    gpu.grit("start", "new").ok()
    gpu.goes_on(new)
    references.check("training", lines(new))


def test_what_an_operator_asks(gpu: GpuMachine, references: References) -> None:
    """`doctor` finds the GPU, `plan` foresees the restore, `report` has both calls."""
    found = json.loads(gpu.grit("doctor", "--node", "--json").out)
    checks = {check["id"]: check for check in found["checks"]}
    for name, check in checks.items():
        if name.startswith("gpu."):
            print(name, check["state"], check["found"])
            assert check["state"] != "fail", check
    assert checks["gpu.api"]["state"] == "ok"
    old = gpu.begin("old", "training")
    images = gpu.capture("old")
    new = gpu.gpu_bundle("new", "none")
    for file in old.data.iterdir():
        (new.data / file.name).write_bytes(file.read_bytes())
    planned = gpu.grit("plan", "--bundle", str(new.path), "--image-path", str(images)).ok()
    print(planned.out)
    assert "CUDA" in planned.out
    gpu.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new").ok()
    gpu.goes_on(new)
    references.check("training", lines(new))
    print(gpu.grit("report", "old").ok().out, gpu.grit("report", "new").ok().out)


def test_the_whole_way_by_one_command(gpu: GpuMachine) -> None:
    program = gpu.path / "grit-runtime"  # the launcher needs a compiler and an installation
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {BOOT} "$@"\n')
    program.chmod(0o755)
    # e2e's pod has a network namespace of its own; a kernel without xt_mark can't hold back packets there.
    gpu.configure(criu={"dump": {"network-lock": "skip"}, "restore": {"network-lock": "skip"}})
    tried = gpu.grit("e2e", "--runtime", str(program))
    print(tried.out, tried.err)
    assert tried.code == 0


def test_work_that_does_not_end_leaves_the_container_running(gpu: GpuMachine) -> None:
    gpu.configure(cuda={"lock-timeout": 3})
    bundle = gpu.gpu_bundle("c", "endless")
    gpu.runc("run", "-d", "--bundle", str(bundle.path), "c").ok()
    gpu.wait(lambda: bool(lines(bundle)), timeout=60)
    time.sleep(1)
    failed = gpu.grit("checkpoint", "--image-path", str(gpu.checkpoints / "x"), "c")
    assert failed.code != 0
    assert "did not end within 3 s" in failed.err
    assert gpu.status("c") == "running"


def test_managed_memory_is_refused_and_the_container_goes_on(gpu: GpuMachine) -> None:
    bundle = gpu.begin("c", "managed")
    failed = gpu.grit("checkpoint", "--image-path", str(gpu.checkpoints / "x"), "c")
    assert failed.code != 0
    assert "managed memory" in failed.err
    gpu.goes_on(bundle)


def test_cuda_ipc_is_refused_and_both_processes_go_on(gpu: GpuMachine) -> None:
    bundle = gpu.begin("c", "shared")
    failed = gpu.grit("checkpoint", "--image-path", str(gpu.checkpoints / "x"), "c")
    print(failed.err)
    assert failed.code != 0
    assert "as users of CUDA IPC do" in failed.err
    gpu.goes_on(bundle)


def test_too_little_free_gpu_memory_is_refused_before_anything(gpu: GpuMachine, references: References) -> None:
    references.ended()
    gpu.begin("old", "big", env=["GIB=24"])
    images = gpu.capture("old")
    manifest = images / "grit.json"
    other = gpu.gpu_bundle("other", "big")
    other.edit(lambda config: config["process"]["env"].append(f"GIB={_total() // 1024 - 16}"))
    gpu.runc("run", "-d", "--bundle", str(other.path), "other").ok()
    gpu.wait(lambda: len(lines(other)) >= 1, timeout=90)
    new = gpu.gpu_bundle("new", "none")
    failed = gpu.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new")
    assert failed.code != 0
    assert "MiB free" in failed.err
    assert "nothing was touched" in failed.err
    assert gpu.status("new") == "gone"
    assert manifest.exists()


@pytest.mark.needs("cuda-plugin", "cuda-checkpoint")
@pytest.mark.parametrize("mode", ["driver", "cuda-checkpoint"])
def test_the_seeds_failure(gpu: GpuMachine, references: References, mode: str) -> None:
    """Dumped by runc with CRIU's plugin, restored into a config.json without NVIDIA's device rules."""
    plugins = os.environ["GRIT_TEST_CRIU_PLUGINS"]
    references.ended()
    old = gpu.begin("old", "training")
    images = gpu.checkpoints / "by-plugin"
    conf = gpu.path / "criu.conf"
    conf.write_text(f"libdir {plugins}\ntimeout 120\n")
    free = _used()
    gpu.runc("checkpoint", "--image-path", str(images), "old", CRIU_CONFIG_FILE=str(conf)).ok()
    empty = _used()
    assert empty < free
    bare = gpu.gpu_bundle("bare", "none", devices=False)
    for file in old.data.iterdir():
        (bare.data / file.name).write_bytes(file.read_bytes())
    gpu.runc(
        "restore", "-d", "--image-path", str(images), "-b", str(bare.path), "bare", CRIU_CONFIG_FILE=str(conf)
    ).ok()
    time.sleep(1)
    print("plain runc with the plugin: MiB", empty, _used())
    assert _used() < empty + 100, "plain runc brought it back: the seed's failure isn't there"
    gpu.runc("delete", "--force", "bare").ok()

    gpu.configure(cuda={"mode": mode, "program": os.environ.get("GRIT_TEST_CUDA_CHECKPOINT", "cuda-checkpoint")})
    new = gpu.gpu_bundle("new", "none", devices=False)
    for file in old.data.iterdir():
        (new.data / file.name).write_bytes(file.read_bytes())
    gpu.grit("restore", "-d", "--image-path", str(images), "--bundle", str(new.path), "new").ok()
    gpu.goes_on(new)
    assert "NVIDIA" in gpu.runc("exec", "new", "nvidia-smi").ok().out
    references.check("training", lines(new))


@pytest.mark.needs("cuda-plugin")
def test_the_plugin_as_the_owner(gpu: GpuMachine, references: References) -> None:
    plugins = os.environ["GRIT_TEST_CRIU_PLUGINS"]
    gpu.configure(cuda={"mode": "criu-plugin", "plugin-dir": plugins})
    old = gpu.begin("old", "training")
    images = gpu.capture("old")
    new = gpu.bring_back(images, "new", old)
    gpu.goes_on(new)
    # The source ran on for the milliseconds between the end of CRIU's dump and its kill: these steps are there twice.
    got = lines(new)
    once = list(dict.fromkeys(got))
    print("steps that the source and the copy both went:", len(got) - len(once))
    assert [int(line.split()[0]) for line in once] == list(range(len(once)))
    references.check("training", once)


@pytest.mark.needs("cuda-checkpoint")
def test_the_program_as_the_back_end(gpu: GpuMachine, references: References) -> None:
    program = os.environ["GRIT_TEST_CUDA_CHECKPOINT"]
    gpu.configure(cuda={"mode": "cuda-checkpoint", "program": program})
    old = gpu.begin("old", "training")
    images = gpu.capture("old")
    new = gpu.bring_back(images, "new", old)
    gpu.goes_on(new)
    references.check("training", lines(new))


def test_a_runtime_killed_in_a_cuda_phase_costs_nothing(gpu: GpuMachine, references: References) -> None:
    old = gpu.begin("old", "seeded")
    for delay in (0.0, 0.5):
        images = str(gpu.checkpoints / f"killed-{delay}")
        argv = gpu.argv("checkpoint", "--image-path", images, "old")
        process = subprocess.Popen(argv, env=gpu.environment(), cwd=gpu.path, stdin=subprocess.DEVNULL)
        gpu.wait_for_effect("cuda")
        time.sleep(delay)
        process.kill()
        process.wait()
        assert "could not" not in gpu.grit("recover").ok().out
        gpu.goes_on(old)
    images_of = gpu.capture("old")
    new = gpu.gpu_bundle("new", "none")
    for file in old.data.iterdir():
        (new.data / file.name).write_bytes(file.read_bytes())
    restore = ("restore", "-d", "--image-path", str(images_of), "--bundle", str(new.path), "new")
    argv = gpu.argv(*restore)
    process = subprocess.Popen(
        argv, env=gpu.environment(), cwd=gpu.path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    time.sleep(3)
    process.kill()
    print("restore ended by itself" if process.wait() == 0 else "restore killed", gpu.status("new"))
    gpu.grit("recover").ok()
    if gpu.status("new") == "gone":
        gpu.grit(*restore).ok()
    gpu.goes_on(new)
    references.check("seeded", lines(new))


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    """A directory with the CDI spec of this machine, as NVIDIA's own program writes it."""
    made = tmp_path / "cdi"
    made.mkdir()
    search = ["--library-search-path", "/usr/local/nvidia/lib64"] if os.path.isdir("/usr/local/nvidia") else []
    hook = ["--nvidia-cdi-hook-path", shutil.which("nvidia-cdi-hook") or ""]
    generate = ["nvidia-ctk", "cdi", "generate", "--output", str(made / "nvidia.yaml"), *search, *hook]
    subprocess.run(generate, check=True, capture_output=True)
    return made


def _devices_come_with_the_container(gpu: GpuMachine, references: References, **env: str) -> None:
    """Nothing of NVIDIA is in config.json: devices, libraries and their links are somebody else's, twice."""
    old = gpu.gpu_bundle("old", "training", devices=False, driver=False)
    gpu.create("old", old, **env)
    images = gpu.capture("old")
    new = gpu.bring_back(images, "new", old, env=env, devices=False, driver=False)
    gpu.goes_on(new)
    inside = "import torch; print(int(torch.ones(8, device='cuda').sum()))"
    assert gpu.runc("exec", "new", PYTHON, "-c", inside).ok().out.strip() == "8"
    again = gpu.capture("new")
    third = gpu.bring_back(again, "third", new, env=env, devices=False, driver=False)
    gpu.goes_on(third)
    references.check("training", lines(third))


@pytest.mark.needs("nvidia-ctk")
def test_devices_by_a_cdi_spec_alone(gpu: GpuMachine, references: References, specs: Path) -> None:
    gpu.configure(devices="cdi", cdi_spec_dirs=[str(specs)])
    _devices_come_with_the_container(gpu, references)


@pytest.mark.needs("nvidia-container-runtime")
def test_devices_by_nvidias_runtime(gpu: GpuMachine, references: References, specs: Path) -> None:
    runtime = shutil.which("nvidia-container-runtime")
    settings = gpu.path / "nvidia-container-runtime/config.toml"
    settings.parent.mkdir()
    settings.write_text(
        '[nvidia-container-runtime]\nmode = "cdi"\nruntimes = ["runc"]\n'
        f'[nvidia-container-runtime.modes.cdi]\ndefault-kind = "nvidia.com/gpu"\nspec-dirs = ["{specs}"]\n'
    )
    gpu.configure(downstream=runtime)
    _devices_come_with_the_container(gpu, references, XDG_CONFIG_HOME=str(gpu.path))
