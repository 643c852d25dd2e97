"""Checkpoints that are kept in a registry: the agent's programs with kopf, a simulated API server and runtime, and
Debian's docker-registry.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.agent import words
from grit_runtime.agent.reference import Allowed
from tests.cutter import UP, Cutter
from tests.registry import DockerRegistry, docker_config
from tests.unit import agentobjects as objects
from tests.unit.agentcluster import Cluster, admitted, cluster

pytestmark = pytest.mark.needs("docker-registry")

CP, RT = words.CHECKPOINTS, words.RESTORES
Object = dict[str, Any]


def _run(
    base: Path, host: str, do: Callable[[Cluster], Awaitable[None]], *parts: str, environment: Object | None = None
) -> None:
    async def run() -> None:
        async with cluster(base) as made:
            made.registries = (Allowed(host=host, prefix="checkpoints", plain=True),)
            made.environment = environment or {}
            await made.start(*parts)
            await do(made)

    asyncio.run(run())


def _checkpoint(host: str, path: str = "checkpoints/default/web", **spec: Any) -> Object:
    return objects.checkpoint(registry={"reference": f"{host}/{path}"}, **spec)


def _tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


async def _starts(made: Cluster, name: str = "web-1", *containers: str) -> None:
    """A pod that is to be restored is bound to n2."""
    new = await admitted(made, objects.pod(name, *containers))
    starting = objects.pod(name, *containers, node="n2", running=False)["status"]
    await made.server.put("pods", {**new, "spec": {**new["spec"], "nodeName": "n2"}, "status": starting})


def _deleted(found: Object) -> None:
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


# bcrypt of tests.registry.PASSWORD
HTPASSWD = "agent:$2b$05$i2qApXuTKlGEdPJrR3wpLOrVLHZ/i8Vrn.zSQUy/WP52fOsS/X9aS\n"


def test_a_pod_goes_to_another_node_by_way_of_a_registry(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}
    with DockerRegistry(tmp_path / "registry", auth=auth) as registry:

        async def do(made: Cluster) -> None:
            await made.server.put("pods", objects.pod("web-0", "front", "back"))
            await made.server.put(CP, _checkpoint(registry.host))
            await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")
            status = (made.server.find(CP, "one") or {})["status"]
            name, _, digest = status["image"].partition("@")
            assert name == f"{registry.host}/checkpoints/default/web"
            assert status["storedBytes"] == status["bytes"] == 6 << 20
            document = json.loads(registry.blob(digest).read_bytes())
            assert document["annotations"]["org.criu.checkpoint.pod.name"] == "web-0"
            assert made.condition(CP, "one", "Stored")[2] == f"registry {registry.host} has the data"

            await made.server.put(RT, objects.restore())
            await _starts(made, "web-1", "front", "back")
            await made.until(lambda: made.condition(RT, "back", "DataAvailable")[0] == "True")
            assert _tree(made.root("n2") / "default/one") == _tree(made.root("n1") / "default/one")
            running = objects.pod("web-1", "front", "back", node="n2")["status"]
            await made.server.change("pods", "web-1", lambda found: found.update(status=running))
            await made.until(lambda: made.phase(RT, "back") == "Restored")

            await made.server.change(CP, "one", _deleted)
            await made.until(lambda: made.server.find(CP, "one") is None)
            assert (
                not (registry.base / "data/docker/registry/v2/repositories/checkpoints/default/web/_manifests")
                .joinpath("revisions/sha256", digest.removeprefix("sha256:"), "link")
                .exists()
            )
            await made.until(lambda: not (made.root("n2") / "default").exists())

        environment = docker_config(tmp_path / "docker", registry.host)
        _run(tmp_path, registry.host, do, "manager", "n1", "n2", environment=environment)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("checkpoints/other/web", "a Checkpoint of namespace default can't be kept in"),
        ("checkpoints/defaults/web", "it may be in: HOST/checkpoints/default"),
        ("default/web", "can't be kept in"),
    ],
)
def test_no_tenant_writes_to_another_s_repository(tmp_path: Path, path: str, why: str) -> None:
    with DockerRegistry(tmp_path / "registry") as registry:

        async def do(made: Cluster) -> None:
            await made.server.put("pods", objects.pod())
            await made.server.put(CP, _checkpoint(registry.host, path))
            await made.until(lambda: made.condition(CP, "one", "Stored")[1] == "RegistryUnknown")
            assert why.replace("HOST", registry.host) in made.condition(CP, "one", "Stored")[2]
            assert registry.blobs() == set()
            await made.server.change(CP, "one", _deleted)
            await made.until(lambda: made.server.find(CP, "one") is None)

        _run(tmp_path, registry.host, do, "manager", "n1")


def test_an_image_of_a_status_that_is_not_of_the_spec_s_repository_is_not_asked_for(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "registry") as registry:

        async def do(made: Cluster) -> None:
            await made.server.put("pods", objects.pod())
            await made.server.put(CP, _checkpoint(registry.host))
            await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")

            def forged(found: Object) -> None:
                found["status"]["image"] = found["status"]["image"].replace("default/web", "other/web")

            await made.server.change(CP, "one", forged)
            await made.server.put(RT, objects.restore())
            await _starts(made)
            await made.until(lambda: made.condition(RT, "back", "DataAvailable")[1] == "CopyFailed")
            assert "isn't in the repository" in made.condition(RT, "back", "DataAvailable")[2]

        _run(tmp_path, registry.host, do, "manager", "n1", "n2")


def test_a_registry_that_is_away_is_waited_for(tmp_path: Path) -> None:
    registry = DockerRegistry(tmp_path / "registry")
    with registry:

        async def do(made: Cluster) -> None:
            registry.kill()
            await made.server.put("pods", objects.pod())
            await made.server.put(CP, _checkpoint(registry.host))
            await made.until(lambda: made.condition(CP, "one", "Stored")[1] == "CopyFailed")
            assert f"http://{registry.host}/v2/" in made.condition(CP, "one", "Stored")[2]
            await asyncio.to_thread(registry.start)
            await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")
            registry.kill()
            await made.server.change(CP, "one", _deleted)
            told = "RemovalFailed"
            await made.until(lambda: told in {reason for reason, _ in made.server.events()})
            assert made.server.find(CP, "one") is not None
            await asyncio.to_thread(registry.start)
            await made.until(lambda: made.server.find(CP, "one") is None)

        _run(tmp_path, registry.host, do, "manager", "n1")


def test_a_registry_that_deletes_nothing_keeps_no_checkpoint_from_going(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "registry", deletes=False) as registry:

        async def do(made: Cluster) -> None:
            await made.server.put("pods", objects.pod())
            await made.server.put(CP, _checkpoint(registry.host))
            await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")
            await made.server.change(CP, "one", _deleted)
            await made.until(lambda: made.server.find(CP, "one") is None)
            assert "DataKept" in {reason for reason, _ in made.server.events()}

        _run(tmp_path, registry.host, do, "manager", "n1")


def test_an_agent_that_is_ended_in_the_middle_of_a_push_goes_on(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "registry") as registry, Cutter(registry.port, pace=4 << 20) as slow:

        async def do(made: Cluster) -> None:
            await made.server.put("pods", objects.pod())
            await made.server.put(CP, _checkpoint(slow.host))
            await made.until(lambda: slow.moved[UP] > 1 << 20)
            begun = time.monotonic()
            await made.kill("n1")
            assert time.monotonic() - begun < 5
            assert made.condition(CP, "one", "Stored")[1] == "Copying"
            slow.pace = 0
            await made.start("n1")
            await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")
            assert made.calls() == ["capture one id-app"]

        _run(tmp_path, slow.host, do, "manager", "n1")


def test_both_a_volume_and_a_registry_are_refused_where_the_schema_did_not(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, _checkpoint("127.0.0.1:1", volumeClaim={"claimName": "store"}))
        await made.until(lambda: made.condition(CP, "one", "Ready")[1] == "TwoPlaces")
        assert made.phase(CP, "one") == "Failed"

    _run(tmp_path, "127.0.0.1:1", do, "manager", "n1")
