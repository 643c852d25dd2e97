"""Pods through containerd's own CRI plugin: what kubelet does, by the protocol that kubelet speaks.

The client's stubs are generated from the api.proto that Debian packages (tools/deps, install_cri_stubs).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pods import IMAGE, Containerd, Failed, Pod, wait

from tests import requirements
from tests.e2e.images import APPLICATIONS, archive
from tests.requirements import CRI_STUBS, ROOT

sys.path.insert(0, str(CRI_STUBS))
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# Stands in for CNI's plugins: the sandbox has a network namespace of its own, with lo and an address on paper.
_CNI = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
[ "$CNI_IFNAME" != lo ] || nsenter --net="$CNI_NETNS" busybox ip link set lo up
cat <<END
{"cniVersion": "0.4.0", "interfaces": [{"name": "$CNI_IFNAME", "sandbox": "$CNI_NETNS"}],
 "ips": [{"version": "4", "interface": 0, "address": "192.0.2.1/32"}]}
END
"""
_CNI_CONFIG = '{"cniVersion":"0.4.0","name":"grit","plugins":[{"type":"paper"}]}'
_CRI = '[plugins."io.containerd.grpc.v1.cri"'


class Cri(Containerd):
    """A containerd with its CRI plugin, configured as examples/containerd/config.toml says."""

    def __init__(self, runtime: Path, programs: Path) -> None:
        super().__init__(runtime, programs)
        self.version = programs.name
        self._mounts: dict[str, list[tuple[str, str]]] = {}
        self._stub: Any = None

    def serve(self) -> None:
        """Start containerd; the CRI plugin may answer later than the rest."""
        super().serve()
        import api_pb2_grpc
        import grpc

        self._stub = api_pb2_grpc.RuntimeServiceStub(grpc.insecure_channel(f"unix://{self.base}/sock"))
        wait("CRI answers", self._answers)

    def configuration(self) -> str:
        """The example, with the runtime under test for the installed one."""
        for name in ("paper", "loopback"):
            plugin = self.base / "cni" / name
            plugin.parent.mkdir(exist_ok=True)
            plugin.write_text(_CNI)
            plugin.chmod(0o755)
        (self.base / "cni.d").mkdir()
        (self.base / "cni.d/grit.conflist").write_text(_CNI_CONFIG)
        example = (ROOT / "examples/containerd/config.toml").read_text()
        example, found = re.subn(r'BinaryName = ".*"', f'BinaryName = "{self.runtime}"', example)
        assert found == 1
        return "\n".join(
            [
                f'root = "{self.base}/root"\nstate = "{self.base}/state"',
                'disabled_plugins = ["io.containerd.internal.v1.opt"]',
                example,
                f'[grpc]\naddress = "{self.base}/sock"\n[ttrpc]\naddress = "{self.base}/ttrpc"',
                # Without CAP_SYS_RESOURCE, runc cannot lower a score.
                f'{_CRI}]\nsandbox_image = "{IMAGE}"\nrestrict_oom_score_adj = true',
                "netns_mounts_under_state_dir = true",
                f'{_CRI}.cni]\nbin_dir = "{self.base}/cni"\nconf_dir = "{self.base}/cni.d"',
                '[plugins."io.containerd.nri.v1.nri"]\ndisable = true\n',
            ]
        )

    @property
    def cgroup(self) -> str:
        """The cgroup that all pods of this containerd are below."""
        return f"/{self.base.name}"

    def __exit__(self, *_: object) -> None:
        try:
            super().__exit__(*_)
        finally:
            for path in sorted(Path("/sys/fs/cgroup").glob(f"*{self.cgroup}/**/"), reverse=True):
                path.rmdir()

    def remove_all(self) -> None:
        """Remove every pod, and whatever containerd has beside them."""
        for sandbox in self.call("ListPodSandbox").items:
            self._remove_sandbox(sandbox.id)
        super().remove_all()

    def call(self, method: str, **fields: Any) -> Any:
        """Call a method of the runtime service. Raises Failed with what containerd said."""
        import api_pb2
        import grpc

        request = getattr(api_pb2, f"{method}Request")(**fields)
        try:
            return getattr(self._stub, method)(request, timeout=120)
        except grpc.RpcError as err:
            raise Failed(f"{method}: {err.details()}") from None

    def run_pod(self, pod: Pod, **annotations: str) -> None:
        """RunPodSandbox. Annotation names: `checkpoint` and `restore_name` of grit.dev; kubelet passes a pod's here."""
        own = ("/etc/hostname", "/etc/resolv.conf")
        mounts = {**pod.make(), **_volumes(pod)}
        self._mounts[pod.uid] = [(d, str(s)) for d, s in mounts.items() if d not in own]
        said = self.call("RunPodSandbox", config=self._pod_config(pod, annotations), runtime_handler="grit")
        pod.sandbox = said.pod_sandbox_id

    def start(self, pod: Pod, *args: str, **options: Any) -> str:
        """CreateContainer and StartContainer; the container's id."""
        container = self.create(pod, *args, **options)
        self.call("StartContainer", container_id=container)
        return container

    def create(
        self,
        pod: Pod,
        *args: str,
        name: str = "app",
        attempt: int = 0,
        tty: bool = False,
        image: str = IMAGE,
        user: int = 0,
        **annotations: str,
    ) -> str:
        """CreateContainer; the container's id. One word of `args` is a script for the shell."""
        security = {"namespace_options": {"pid": "CONTAINER"}, "run_as_user": {"value": user}}
        config = {
            "metadata": {"name": name, "attempt": attempt},
            "image": {"image": image},
            "command": list(args) if len(args) > 1 else ["/bin/sh", "-c", *args],
            "mounts": [{"container_path": d, "host_path": s} for d, s in self._mounts[pod.uid]],
            "log_path": f"{name}/{attempt}.log",
            "tty": tty,
            "linux": {"security_context": security},
        }
        said = self.call(
            "CreateContainer",
            pod_sandbox_id=pod.sandbox,
            config=config,
            sandbox_config=self._pod_config(pod, annotations),
        )
        pod.container = said.container_id
        self._seen.add(pod.container)
        return pod.container

    def import_applications(self) -> None:
        """Import the image with nginx, redis, PostgreSQL and Python."""
        image = self.base / "applications.tar"
        archive(requirements.APPLICATIONS, image)
        self.ctr("images", "import", str(image))
        image.unlink()
        wait("CRI knows the image", lambda: APPLICATIONS in self.ctr("images", "ls", "--quiet"))

    def unmount_netns(self) -> None:
        """Unmount the network namespaces of sandboxes: containerd leaves that of one whose shim was killed."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if str(self.base) in line and " nsfs " in line:
                subprocess.run(["umount", line.split()[4]], check=True)

    def checkpoint_to_archive(self, container: str, archive: Path) -> None:
        """CheckpointContainer, as kubelet's checkpoint API calls it: containerd 2.x has it."""
        self.call("CheckpointContainer", container_id=container, location=str(archive), timeout=60)

    def exec(self, container: str, *command: str) -> str:
        """ExecSync; what it wrote. Raises Failed if it didn't exit with 0."""
        said = self.call("ExecSync", container_id=container, cmd=command, timeout=20)
        if said.exit_code:
            raise Failed(f"{' '.join(command)} exited with {said.exit_code}: {said.stderr.decode()}")
        return str(said.stdout.decode())

    def stop(self, container: str, grace: int = 10) -> int | None:
        """StopContainer with SIGTERM, and SIGKILL after `grace` seconds; the exit code."""
        self.call("StopContainer", container_id=container, timeout=grace)
        return self.exit_code(container)

    def exit_code(self, container: str) -> int | None:
        """The exit code of ContainerStatus; None before CRI has seen the container's end."""
        status = self.call("ContainerStatus", container_id=container).status
        return status.exit_code if status.state == 2 else None  # CONTAINER_EXITED

    def remove(self, pod: Pod) -> None:
        """StopPodSandbox and RemovePodSandbox; then the directories and the cgroup, as kubelet does."""
        self._remove_sandbox(pod.sandbox)
        shutil.rmtree(pod.directory)
        for path in Path("/sys/fs/cgroup").glob(f"*{self.cgroup}/pod{pod.uid}"):
            path.rmdir()

    def log_lines(self, pod: Pod, name: str = "app", attempt: int = 0) -> list[str]:
        """The container's log, less the time and the stream that CRI writes before each line."""
        log = self._logs(pod) / name / f"{attempt}.log"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return [line.split(" ", 3)[3] for line in lines]

    def numbers(self, pod: Pod, name: str = "app", attempt: int = 0) -> list[int]:
        """The numbers in the container's log; every line must be one."""
        lines = self.log_lines(pod, name, attempt)
        try:
            return [int(line) for line in lines]
        except ValueError:
            raise Failed(f"{name} says: {lines[:10]}") from None

    def _answers(self) -> bool:
        try:
            return bool(self.call("Version").version)
        except Failed:
            return False

    def _remove_sandbox(self, sandbox: str) -> None:
        self._seen.add(sandbox)
        self.call("StopPodSandbox", pod_sandbox_id=sandbox)
        self.call("RemovePodSandbox", pod_sandbox_id=sandbox)

    def _logs(self, pod: Pod) -> Path:
        return self.base / "pod-logs" / f"{pod.namespace}_{pod.name}_{pod.uid}"

    def _pod_config(self, pod: Pod, annotations: dict[str, str]) -> dict[str, Any]:
        return {
            "metadata": {"name": pod.name, "uid": pod.uid, "namespace": pod.namespace},
            "hostname": pod.name,
            "log_directory": str(self._logs(pod)),
            "annotations": {f"grit.dev/{word.replace('_', '-')}": value for word, value in annotations.items()},
            "linux": {"cgroup_parent": f"{self.cgroup}/pod{pod.uid}"},
        }


def give_data(volume: Path, new: Pod) -> None:
    """Give a pod another's /data, as a persistent volume is: the same files, not copies."""
    new.data.joinpath("out").unlink()
    new.data.rmdir()
    volume.rename(new.data)


def _volumes(pod: Pod) -> dict[str, Path]:
    """A configMap and a secret, written as kubelet's atomic writer does."""
    found = {}
    for kind, name, destination in (("configmap", "settings", "/etc/settings"), ("secret", "key", "/etc/key")):
        volume = pod.directory / f"volumes/kubernetes.io~{kind}" / name
        dated = volume / f"..2026_{pod.hash}"
        dated.mkdir(parents=True)
        (dated / "value").write_text(f"{kind} of pod {pod.uid}\n")
        (volume / "..data").symlink_to(dated.name)
        (volume / "value").symlink_to("..data/value")
        found[destination] = volume
    return found
