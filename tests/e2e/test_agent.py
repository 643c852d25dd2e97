"""The agent on a node with real containerd, its CRI plugin and the real runtime: a pod of two containers, as a set.

The API server is simulated, and kubelet is the test: it has CRI do what the API server's objects say, and reports.
"""

import asyncio
import base64
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
from aiohttp.test_utils import TestClient, TestServer
from pods import Failed, Pod, wait

from grit_runtime.agent import outcome, webhook, words
from grit_runtime.agent.capture import Program
from grit_runtime.agent.client import Api
from grit_runtime.agent.reference import Allowed
from tests.e2e.cri import Cri
from tests.registry import DockerRegistry
from tests.requirements import RUNTIME, containerds
from tests.unit import agentobjects as objects
from tests.unit.agentcluster import Cluster, cluster, server_for

pytestmark = pytest.mark.needs("root", "runc", "criu", "containerd 1.7", "cri", "busybox", "runtime")

COUNT = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"
CP, RT = words.CHECKPOINTS, words.RESTORES
NAMES = ("app", "side")
Object = dict[str, Any]


@pytest.fixture(scope="module", params=containerds())
def containerd(request: pytest.FixtureRequest) -> Iterator[Cri]:
    """A containerd with CRI, in place of the one that the other modules use."""
    with Cri(RUNTIME, containerds()[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as made:
        yield made


def _run(cri: Cri, base: Path, do: Callable[[Cluster], Awaitable[None]], registry: str = "none") -> None:
    async def run() -> None:
        async with cluster(base) as made:
            made.registries = (Allowed(host=registry, plain=True),)
            made.only_root = cri.checkpoints
            made.runtime = ("env", f"GRIT_RUNTIME_CONFIG={cri.base}/grit.yaml", str(RUNTIME))
            await made.start("manager", "n1")
            await do(made)

    asyncio.run(run())


def _started(cri: Cri) -> tuple[Pod, Object]:
    """A pod of two containers that count, and as kubelet reports it."""
    pod = Pod(base=cri.base, name="web-0")
    cri.run_pod(pod)
    ids = {name: cri.start(pod, COUNT, name=name) for name in NAMES}
    for name in NAMES:
        wait("it counts", lambda name=name: len(cri.numbers(pod, name)) >= 5)  # type: ignore[misc]
    return pod, _reported(pod, ids)


def _reported(pod: Pod, ids: dict[str, str]) -> Object:
    found = objects.pod(pod.name, *NAMES, uid=pod.uid)
    for status in found["status"]["containerStatuses"]:
        status["containerID"] = f"containerd://{ids[status['name']]}"
    return found


async def _admitted(made: Cluster, pod: Object) -> Object:
    async with Api(server_for(made.server.url, "manager")) as api:
        application = webhook.Webhook(api=api, runtime_class="grit").application()
        async with TestClient(TestServer(application)) as client:
            body = {"request": {"uid": "r", "namespace": "default", "object": pod}}
            answer = (await (await client.post(webhook.PATH, json=body)).json())["response"]
    return dict(jsonpatch.apply_patch(pod, json.loads(base64.b64decode(answer["patch"]))))


@pytest.mark.needs("docker-registry")
def test_a_pod_is_captured_as_a_set_and_restored_as_a_set_by_way_of_a_registry(
    containerd: Cri, tmp_path: Path, registry: DockerRegistry
) -> None:
    cri = containerd
    old, reported = _started(cri)
    kept = {"reference": f"{registry.host}/default/web"}

    async def do(made: Cluster) -> None:
        await made.server.put("pods", reported)
        await made.server.put(CP, objects.checkpoint(autoMigration=True, registry=kept))
        await made.until(lambda: made.phase(CP, "one") == "Submitting", 60)
        status = (made.server.find(CP, "one") or {})["status"]
        assert [entry["name"] for entry in status["containers"]] == list(NAMES)
        assert status["bytes"] == sum(entry["bytes"] for entry in status["containers"]) > 0
        # The containers end where they were captured: the pod was deleted while they were frozen.
        ended = {status["name"]: status["containerID"].split("//")[1] for status in _containers(reported)}
        await made.until(lambda: all(cri.exit_code(one) is not None for one in ended.values()), 60)
        last = {name: cri.numbers(old, name)[-1] for name in NAMES}
        assert abs(last["app"] - last["side"]) < 40  # they began one after the other
        cri.remove(old)
        await made.server.remove("pods", "web-0")
        await made.until(lambda: made.phase(CP, "one") == "Submitted")
        await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True", 60)
        shutil.rmtree(cri.checkpoints / "default/one")  # another node wouldn't have it

        new = Pod(base=cri.base, name="web-1")
        admitted = await _admitted(made, objects.pod("web-1", *NAMES, uid=new.uid))
        assert admitted["metadata"]["annotations"]["grit.dev/restore-name"] == "one"
        annotations = {
            key.removeprefix("grit.dev/").replace("-", "_"): value
            for key, value in admitted["metadata"]["annotations"].items()
        }
        await made.server.put("pods", {**admitted, "status": {"phase": "Pending"}})
        await made.until(lambda: made.condition(RT, "one", "DataAvailable")[0] == "True")
        await asyncio.to_thread(cri.run_pod, new, **annotations)
        ids = {}
        for name in NAMES:
            ids[name] = await asyncio.to_thread(cri.start, new, "echo it starts from scratch", name=name, **annotations)
        for name in NAMES:
            await made.until(lambda name=name: len(cri.numbers(new, name)) >= last[name] + 5)  # type: ignore[misc]
            numbers = cri.numbers(new, name)
            assert numbers == list(range(1, len(numbers) + 1))
        assert made.runtime
        told = await outcome.of(Program(argv=made.runtime), ids)
        assert [(one.name, one.restored) for one in told] == [(name, True) for name in NAMES]
        assert (await outcome.of(Program(argv=made.runtime), {"app": "0" * 64}))[0].restored is None
        await made.server.put("pods", {**admitted, "status": _reported(new, ids)["status"]})
        await made.until(lambda: made.phase(RT, "one") == "Restored")
        cri.remove(new)
        await made.server.change(CP, "one", lambda found: found["metadata"].update(deletionTimestamp="now"))
        await made.until(lambda: made.server.find(CP, "one") is None)
        assert list(cri.checkpoints.iterdir()) == []

    _run(cri, tmp_path, do, registry.host)


def _containers(reported: Object) -> list[Object]:
    return list(reported["status"]["containerStatuses"])


def test_a_pod_of_which_one_container_can_t_be_captured_runs_on(containerd: Cri, tmp_path: Path) -> None:
    cri = containerd
    pod, reported = _started(cri)

    async def do(made: Cluster) -> None:
        await made.server.put("pods", reported)
        # A container that ends between kubelet's report and the capture: the other is frozen by then, or about to be.
        await asyncio.to_thread(cri.stop, _containers(reported)[1]["containerID"].split("//")[1], 1)
        await made.server.put(CP, objects.checkpoint())
        await made.until(lambda: made.phase(CP, "one") == "Failed", 60)
        assert made.condition(CP, "one", "Ready")[1] == "CaptureFailed"
        assert [path for path in cri.checkpoints.rglob("*") if path.name == "checkpoint"] == []
        await made.server.change(CP, "one", lambda found: found["metadata"].update(deletionTimestamp="now"))
        await made.until(lambda: made.server.find(CP, "one") is None)

    _run(cri, tmp_path, do)
    before = len(cri.numbers(pod))
    wait("it counts on", lambda: len(cri.numbers(pod)) >= before + 5)
    assert list(cri.checkpoints.iterdir()) == []
    with pytest.raises(Failed):
        cri.exec(_containers(reported)[1]["containerID"].split("//")[1], "/bin/true")
    cri.remove(pod)
