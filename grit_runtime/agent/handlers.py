"""What kopf watches, and whom it wakes. The one module that knows kopf.

kopf lists and watches, follows streams through time-outs and `410 Gone`, and calls us for each event. Nothing is
decided here and nothing is kept of an event: it says which object to look at, and looking asks for the object as it is
then. So it does no harm if an event is missed, comes twice, or comes from before a restart. (kopf's other handlers keep
their progress in an object's annotations: the agents of all nodes, which watch one object, would write over each
other's.)
"""

import asyncio
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from grit_runtime.agent import words
from grit_runtime.agent.client import Server
from grit_runtime.agent.queue import Key
from grit_runtime.errors import ConfigError

Wake = Callable[[Key], None]


def registered(
    wake: Wake, kinds: tuple[str, ...], node: str, concerns: Callable[[Mapping[str, Any]], bool]
) -> kopf.OperatorRegistry:
    """The handlers: of our resources, and of the pods with the label of a Restore.

    Args:
        wake: called with the key of an object of which there is an event.
        kinds: which of our resources.
        concerns: which of them, by what they were at the event.
        node: whose pods alone, each under its own name; without one, all, under the name of their Restore.
    """
    registry = kopf.OperatorRegistry()

    async def on_event(
        namespace: str | None, name: str | None, resource: kopf.Resource, body: Mapping[str, Any], **_: Any
    ) -> None:
        if concerns(body):
            wake((resource.plural, namespace or "", name or ""))

    async def on_pod(namespace: str | None, name: str | None, labels: Mapping[str, str], **_: Any) -> None:
        if node:
            wake(("pods", namespace or "", name or ""))
        elif labels.get(words.RESTORE_LABEL):
            wake((words.RESTORES, namespace or "", labels[words.RESTORE_LABEL]))

    for kind in kinds:
        kopf.on.event(words.GROUP, words.VERSION, kind, registry=registry)(on_event)
    kopf.on.event("", "v1", "pods", registry=registry)(on_pod)
    return registry


def settings(node: str) -> kopf.OperatorSettings:
    """kopf's settings: what is watched is chosen by the API server."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False  # we post our own
    made.scanning.disabled = True  # we may not list CRDs and namespaces, and need not
    made.watching.label_selectors["", "v1", "pods"] = words.RESTORE_LABEL
    if node:
        made.watching.field_selectors["", "v1", "pods"] = f"spec.nodeName={node}"
    return made


async def watch(
    info: Callable[[], kopf.ConnectionInfo],
    wake: Wake,
    kinds: tuple[str, ...],
    *,
    node: str = "",
    concerns: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    stop: asyncio.Event | None = None,
    ready: asyncio.Event | None = None,
    liveness: str | None = None,
    tuned: kopf.OperatorSettings | None = None,
) -> None:
    """Watch until SIGTERM, SIGINT or `stop`.

    Args:
        info: how to reach the API server; asked again when it doesn't know us any more.
        concerns: which objects of ours are looked at.
        ready: set once it watches.
        liveness: a URL such as `http://0.0.0.0:8080/healthz` to be served.
        tuned: in place of `settings(node)`.
    """
    registry = registered(wake, kinds, node, concerns)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:  # or kopf would start a thread for it
        return info()

    await kopf.operator(
        registry=registry,
        settings=tuned or settings(node),
        clusterwide=True,
        standalone=True,
        stop_flag=stop,
        ready_flag=ready,
        liveness_endpoint=liveness,
    )


def info() -> kopf.ConnectionInfo:
    """The API server: of `KUBECONFIG`, or of the pod's service account, by the address that kubelet tells every pod: a
    cluster's DNS may be what is being moved (client-go, rest.InClusterConfig).

    Raises:
        ConfigError: there is neither.
    """
    plain = kopf.OperatorSettings()
    inside = kopf.login_with_service_account(settings=plain)
    found = inside or kopf.login_with_kubeconfig(settings=plain)
    if found is None:
        raise ConfigError("no API server is known", hint="run it in a pod, or set KUBECONFIG")
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if inside and host and port:
        return dataclasses.replace(found, server=f"https://{f'[{host}]' if ':' in host else host}:{port}")
    return found


def server(known: Callable[[], kopf.ConnectionInfo]) -> Server:
    """The same, for our own requests."""
    first = known()

    def headers() -> Mapping[str, str]:
        return known().as_http_headers()

    secure = first.server.startswith("https:")
    return Server(url=first.server.rstrip("/"), headers=headers, context=first.as_ssl_context() if secure else None)
