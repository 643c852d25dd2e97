"""The manager and the agents of nodes, against the simulated API server and the simulated runtime."""

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonpatch
import kopf
import yaml
from aiohttp.test_utils import TestClient, TestServer

from grit_runtime.agent import handlers, webhook, words
from grit_runtime.agent.capture import Program
from grit_runtime.agent.client import Api, Server
from grit_runtime.agent.exchange import Patience
from grit_runtime.agent.manager import Manager
from grit_runtime.agent.node import Node
from grit_runtime.agent.queue import Key, Queue
from grit_runtime.agent.reference import Allowed
from grit_runtime.agent.stores import Stores
from tests.requirements import ROOT
from tests.simulated.apiserver import ApiServer

RUNTIME = ROOT / "tests/simulated/runtime.py"
EXAMPLES = ROOT / "examples/kubernetes/agent"
Object = dict[str, Any]
PATIENCE = Patience(attempts=3, pause=0.05, longest=0.2, connect=2, silent=5)


def role(file: str, name: str) -> list[Object]:
    """The rules of a ClusterRole of the examples."""
    found = yaml.safe_load_all((EXAMPLES / file).read_text())
    (rules,) = [one["rules"] for one in found if (one["kind"], one["metadata"]["name"]) == ("ClusterRole", name)]
    return list(rules)


def server_for(url: str, token: str) -> Server:
    """The API server, for one that is known to it as `token`."""
    return Server(url=url, headers=lambda: {"Authorization": f"Bearer {token}"})


@dataclass(slots=True)
class Cluster:
    """The server, and what runs of the agent."""

    server: ApiServer
    base: Path
    running: dict[str, "Part"] = field(default_factory=dict)
    runtime: tuple[str, ...] = ()
    """What is called in place of the simulated runtime."""
    registries: tuple[Allowed, ...] = ()
    """Which registries the agents use."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of the agents, for the registries' credentials."""
    only_root: Path | None = None
    """The checkpoint root of that."""

    def root(self, node: str) -> Path:
        """A node's checkpoint root."""
        made = self.only_root or self.base / node
        made.mkdir(exist_ok=True)
        return made

    @property
    def volume(self) -> Path:
        """What every node has mounted."""
        made = self.base / "volume"
        made.mkdir(exist_ok=True)
        return made

    def calls(self, node: str = "n1") -> list[str]:
        """What the simulated runtime was asked."""
        file = self.root(node) / "calls"
        return file.read_text().splitlines() if file.exists() else []

    async def start(self, *names: str) -> None:
        """Start the manager (`manager`) or the agents of nodes."""
        for name in names:
            self.running[name] = part = Part()
            await part.start(self, "" if name == "manager" else name)

    async def kill(self, name: str) -> None:
        """End a part in the middle of whatever it does."""
        await self.running.pop(name).stop()

    async def until(self, what: Callable[[], object], timeout: float = 15) -> None:
        """Wait for something."""
        deadline = time.monotonic() + timeout
        while not what():
            assert time.monotonic() < deadline, {
                "/".join(key): found.get("status") for key, found in self.server.objects.items() if key[0] != "events"
            }
            await asyncio.sleep(0.02)

    def phase(self, kind: str, name: str) -> str:
        """An object's phase."""
        found = self.server.find(kind, name) or {}
        return str((found.get("status") or {}).get("phase", ""))

    def condition(self, kind: str, name: str, wanted: str) -> tuple[str, str, str]:
        """A condition's status, reason and message."""
        found = self.server.find(kind, name) or {}
        listed = (found.get("status") or {}).get("conditions") or []
        one = next((entry for entry in listed if entry["type"] == wanted), None)
        return (one["status"], one["reason"], one["message"]) if one else ("", "", "")


@dataclass(slots=True)
class Part:
    """The manager or the agent of a node, with kopf watching."""

    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    task: "asyncio.Task[None] | None" = None
    queue: Queue | None = None

    async def start(self, cluster: Cluster, node: str) -> None:
        """Start, and wait until it watches."""
        url = cluster.server.url
        token = "node" if node else "manager"
        api = await self.stack.enter_async_context(Api(server_for(url, token), timeout=1, pause=0.05))
        if node:
            simulated = ("env", f"PYTHONPATH={ROOT}", sys.executable, str(RUNTIME), str(cluster.root(node)))
            volumes = {"store": str(cluster.volume)}
            stores = Stores(
                volumes=volumes, registries=cluster.registries, patience=PATIENCE, environment=cluster.environment
            )
            agent = Node(
                api=api, name=node, root=str(cluster.root(node)), stores=stores,
                program=Program(argv=cluster.runtime or simulated), goes=5,
            )  # fmt: skip
            self.queue = Queue(agent.look, pause=0.05)
            for key in agent.known():
                self.queue.wake(key)
        else:
            self.queue = Queue(Manager(api=api, wake=self._wake).look, pause=0.05)
        concerns = agent.concerns if node else lambda _: True
        tuned = handlers.settings(node)
        tuned.watching.reconnect_backoff = 0.05
        tuned.networking.error_backoffs = [0.05] * 40
        tuned.queueing.exit_timeout = tuned.queueing.idle_timeout = 0.1
        kinds = (words.CHECKPOINTS,) if node else (words.CHECKPOINTS, words.RESTORES)
        ready = asyncio.Event()
        watching = handlers.watch(
            lambda: kopf.ConnectionInfo(server=url, token=token),
            self._wake,
            kinds,
            node=node,
            ready=ready,
            tuned=tuned,
            concerns=concerns,
        )
        self.task = asyncio.create_task(watching)
        await asyncio.wait_for(ready.wait(), 10)

    def _wake(self, key: Key) -> None:
        assert self.queue is not None
        self.queue.wake(key)

    async def stop(self) -> None:
        """Cancel it."""
        assert self.task is not None
        assert self.queue is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.queue.close()
        await self.stack.aclose()


@asynccontextmanager
async def cluster(base: Path, *parts: str) -> AsyncIterator[Cluster]:
    """A cluster with nodes n1 and n2, and these parts of the agent."""
    roles = {"node": role("node.yaml", "grit-agent"), "manager": role("manager.yaml", "grit-manager")}
    async with ApiServer(roles=roles) as server:
        made = Cluster(server, base)
        for name in ("n1", "n2"):
            await server.put("nodes", {"metadata": {"name": name}, "spec": {}})
        try:
            await made.start(*parts)
            yield made
        finally:
            for name in list(made.running):
                await made.kill(name)


async def admitted(made: Cluster, pod: Object, **review: Any) -> Object:
    """The pod as the webhook has it, or its answer if it isn't allowed."""
    async with Api(server_for(made.server.url, "manager"), timeout=1, pause=0.05) as api:
        application = webhook.Webhook(api=api, runtime_class="grit").application()
        async with TestClient(TestServer(application)) as client:
            pod["status"] = {}
            pod["spec"].pop("nodeName", None)
            body = {"request": {"uid": "r", "namespace": "default", "object": pod, **review}}
            answer = (await (await client.post(webhook.PATH, json=body)).json())["response"]
    assert answer["uid"] == "r"
    if not answer["allowed"]:
        return dict(answer)
    patch = json.loads(base64.b64decode(answer.get("patch", base64.b64encode(b"[]"))))
    return dict(jsonpatch.apply_patch(pod, patch))
