"""`cuda.mode: criu-plugin` by the SIMULATED driver and a SIMULATED cuda_plugin.so (tests/simulated); the real one is
in tests/gpu.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from grit_runtime.criu import images
from grit_runtime.host import proc
from tests.integration.machine import Bundle, Ran
from tests.simulated.driver import SimulatedGpu, expected, lines

pytestmark = [pytest.mark.needs("root", "runc", "criu", "busybox", "cc"), pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _by_plugin(gpu: SimulatedGpu) -> None:
    gpu.by_plugin()


def _copy_goes_on(gpu: SimulatedGpu, new: Bundle) -> None:
    """As `goes_on`. Between the end of CRIU's dump and its kill the source went some steps that the copy goes again."""
    seen = len(lines(new))
    gpu.machine.wait(lambda: len(lines(new)) >= seen + 3)
    once = list(dict.fromkeys(lines(new)))
    assert once == expected(len(once)), "what was on the GPU is not what it was"


@pytest.mark.parametrize("mode", ["driver", "cuda-checkpoint"])
@pytest.mark.parametrize("paused", [False, True])
def test_a_container_comes_back_without_the_plugin(gpu: SimulatedGpu, mode: str, paused: bool) -> None:
    old = gpu.start("old")
    if paused:
        gpu.machine.runc("pause", "old").ok()
    gpu.capture().ok()
    assert gpu.machine.status("old") == "gone"
    assert gpu.used() == 0
    c = gpu.machine.checkpoints / "c"
    manifest = json.loads((c / "grit.json").read_text())["cuda"]
    assert manifest["mode"] == "criu-plugin"
    assert [sum(p["memory"].values()) >> 20 for p in manifest["processes"]] == [64]
    assert images.read(str(c)).plugins == ("cuda_plugin",)
    gpu.configure(mode=mode, program=str(gpu.built / "cuda-checkpoint"))
    new = gpu.copy_of(old)
    gpu.restore(new).ok()
    assert gpu.used() == 64
    _copy_goes_on(gpu, new)


@pytest.mark.parametrize("paused", [False, True])
def test_leave_running_brings_the_gpu_back(gpu: SimulatedGpu, paused: bool) -> None:
    old = gpu.start("old", two=True)
    gpu.machine.wait(lambda: len(lines(old, "out.")) > 3)
    if paused:
        gpu.machine.runc("pause", "old").ok()
    gpu.capture("--leave-running").ok()
    assert gpu.used() == 128
    if paused:
        assert gpu.machine.status("old") == "paused"
        gpu.machine.runc("resume", "old").ok()
    gpu.goes_on(old)
    gpu.goes_on(old, "out.")


FAULTS = {
    "Lock 304": "PAUSE_DEVICES of process",
    "Checkpoint 999": "CHECKPOINT_DEVICES of process",
    # The plugin's own way back from these is a restore, which is refused.
    "Checkpoint 801": "operation not supported",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dump_that_fails_in_the_plugin_leaves_the_container_running(gpu: SimulatedGpu, fault: str) -> None:
    old = gpu.start("old", two=True)
    gpu.machine.wait(lambda: len(lines(old, "out.")) > 3)
    gpu.faults(fault)
    failed = gpu.capture()
    assert failed.code != 0
    assert FAULTS[fault] in failed.err
    assert gpu.machine.status("old") == "running"
    assert not (gpu.machine.checkpoints / "c").exists()
    assert gpu.used() == 128
    gpu.goes_on(old)
    gpu.goes_on(old, "out.")


def test_a_gpu_that_the_plugin_did_not_bring_back(gpu: SimulatedGpu) -> None:
    """CRIU hears nothing of it, and reports success."""
    old = gpu.start("old")
    gpu.faults("Restore 304")
    failed = gpu.capture("--leave-running")
    assert failed.code != 0
    assert "the checkpoint is complete, but CUDA of container old could not be brought back" in failed.err
    assert "CUDA_ERROR_OPERATING_SYSTEM (304)" in failed.err
    assert (gpu.machine.checkpoints / "c/grit.json").exists()
    gpu.faults()
    assert "could not" not in gpu.grit("recover").ok().out
    assert gpu.used() == 64
    gpu.goes_on(old)


def test_a_memory_limit_that_the_gpu_memory_does_not_fit_into(gpu: SimulatedGpu) -> None:
    bundle = gpu.bundle("old", mib=512)
    bundle.edit(lambda c: c["linux"]["resources"].update(memory={"limit": 256 << 20}))
    gpu.machine.runc("run", "-d", "--bundle", str(bundle.path), "old").ok()
    gpu.machine.wait(lambda: len(lines(bundle)) >= 3)
    failed = gpu.capture()
    assert failed.code != 0
    assert "512 MiB on the GPU do not fit" in failed.err
    gpu.goes_on(bundle)


@pytest.mark.parametrize("absent", ["cuda_plugin.so", "cuda-checkpoint"])
def test_a_plugin_that_is_not_there_is_named(gpu: SimulatedGpu, absent: str) -> None:
    old = gpu.start("old")
    if absent == "cuda_plugin.so":
        gpu.configure(mode="criu-plugin", plugin_dir=str(gpu.machine.checkpoints))
    else:
        gpu.more.clear()
    failed = gpu.capture()
    assert failed.code != 0
    assert absent in failed.err
    gpu.goes_on(old)


class TestTheSeedsFailure:
    """Plain runc with the plugin: exit code 0, and nothing on the GPU (criu#2993)."""

    def _runc(self, gpu: SimulatedGpu, *args: str, **env: str) -> Ran:
        conf = gpu.machine.path / "criu.conf"
        conf.write_text(f"libdir {gpu.built}/plugins\n")
        environment = {**gpu.environment, "CRIU_CONFIG_FILE": str(conf), **env}
        return gpu.machine.runc(*args, "--image-path", str(gpu.machine.checkpoints / "c"), **environment)

    def _restored_by_runc(self, gpu: SimulatedGpu, bundle: Bundle, **env: str) -> None:
        self._runc(gpu, "restore", "-d", "--bundle", str(bundle.path), "bare", **env).ok()

    def _state(self, gpu: SimulatedGpu, name: str) -> str:
        argv = [str(gpu.built / "cuda-checkpoint"), "--get-state", "--pid", str(gpu.machine.state_of(name)["pid"])]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    @pytest.mark.parametrize("why", ["no device rule", "no program"])
    def test_runc_reports_success_and_we_bring_it_back(self, gpu: SimulatedGpu, why: str) -> None:
        gpu.device()
        old = gpu.start("old")
        self._runc(gpu, "checkpoint", "old").ok()
        assert gpu.used() == 0
        bare = gpu.copy_of(old, "bare")
        if why == "no device rule":
            self._restored_by_runc(gpu, bare)
        else:
            gpu.allow_device(bare)
            self._restored_by_runc(gpu, bare, PATH=os.environ["PATH"])
        assert gpu.machine.status("bare") == "running"
        assert gpu.used() == 0
        assert self._state(gpu, "bare") == "checkpointed"
        gpu.machine.runc("delete", "--force", "bare").ok()

        gpu.configure()
        new = gpu.copy_of(old)
        gpu.restore(new).ok()
        assert gpu.used() == 64
        gpu.goes_on(new)

    def test_without_a_driver_it_is_refused(self, gpu: SimulatedGpu) -> None:
        old = gpu.start("old")
        self._runc(gpu, "checkpoint", "old").ok()
        gpu.configure(library_path=[])
        failed = gpu.restore(gpu.copy_of(old))
        assert failed.code != 0
        assert "the checkpoint has CUDA processes, and no CUDA driver" in failed.err
        assert gpu.machine.status("new") == "gone"

    def test_the_plugin_works_where_its_program_does(self, gpu: SimulatedGpu) -> None:
        """Or the others would prove nothing."""
        gpu.device()
        old = gpu.start("old")
        self._runc(gpu, "checkpoint", "old").ok()
        bare = gpu.copy_of(old, "bare")
        gpu.allow_device(bare)
        self._restored_by_runc(gpu, bare)
        assert gpu.used() == 64
        gpu.goes_on(bare)


def _programs(gpu: SimulatedGpu, action: str) -> list[int]:
    """The plugin's programs that are at it on this machine's GPU."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            argv = (entry / "cmdline").read_text().split("\0")
            environment = (entry / "environ").read_text(errors="replace").split("\0")
        except (OSError, ValueError):
            continue
        if argv[:3] == ["cuda-checkpoint", "--action", action] and f"SIMULATED_GPU={gpu.directory}" in environment:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("victims", ["runtime", "runtime, runc", "runtime, runc, CRIU"])
@pytest.mark.parametrize("phase", ["lock", "checkpoint", "restore"])
def test_a_kill_within_the_plugin_leaves_the_container_running(gpu: SimulatedGpu, phase: str, victims: str) -> None:
    old = gpu.start("old")
    gpu.faults(f"{phase.capitalize()} slow")
    process = subprocess.Popen(
        gpu.machine.argv("checkpoint", "--image-path", str(gpu.machine.checkpoints / "c"), "old"),
        env={**gpu.machine.environment(), **gpu.environment},
        cwd=gpu.machine.path,
    )
    gpu.machine.wait(lambda: bool(_programs(gpu, phase)))
    criu = proc.parent(_programs(gpu, phase)[0])
    process.kill()
    process.wait()
    if victims != "runtime":
        assert criu
        assert proc.thread_name(criu, criu) == "criu"
        runc = proc.parent(criu)
        assert runc
        os.kill(runc, signal.SIGKILL)
    if "CRIU" in victims:
        assert criu
        os.kill(criu, signal.SIGKILL)
    assert "could not" not in gpu.grit("recover").ok().out
    assert gpu.machine.status("old") == "running"
    assert gpu.used() == 64
    gpu.goes_on(old)
