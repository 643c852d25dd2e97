"""The agent's calls of the runtime, and its turns: none waits for ever, and none ends by failing for long."""

import asyncio
import time

import kopf
import pytest

from grit_runtime.agent import capture, handlers
from grit_runtime.agent.queue import Key, Queue
from grit_runtime.errors import CaptureError


def test_a_recover_that_does_not_end_is_ended() -> None:
    program = capture.Program(argv=("sh", "-c", "exec sleep 60"), timeout=0.2)
    begun = time.monotonic()
    with pytest.raises(CaptureError, match="did not end within 0 s"):
        asyncio.run(capture.recover(program))
    assert time.monotonic() - begun < 10


def test_an_object_that_fails_a_thousand_times_is_looked_at_again() -> None:
    """Its pause doubles, and is bounded: 2**1024 is more than a float holds."""
    turns = 0
    key: Key = ("checkpoints", "default", "x")

    async def look(_: Key) -> float | None:
        nonlocal turns
        turns += 1
        if turns > 1100:
            return None
        raise CaptureError("no")

    async def run() -> None:
        queue = Queue(look, pause=1e-320)  # doubled 16 times it is no pause yet
        queue.wake(key)
        while turns <= 1100:
            await asyncio.sleep(0)
        await queue.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert turns == 1101


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("10.96.0.1", "https://10.96.0.1:443"),
        ("fd00::1", "https://[fd00::1]:443"),
        ("", "https://kubernetes.default.svc"),
    ],
)
def test_in_a_pod_the_api_server_is_found_without_dns(monkeypatch: pytest.MonkeyPatch, host: str, server: str) -> None:
    inside = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="secret")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: inside)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = handlers.info()
    assert (found.server, found.token) == (server, "secret")
    outside = kopf.ConnectionInfo(server="https://elsewhere:6443")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: None)
    monkeypatch.setattr(kopf, "login_with_kubeconfig", lambda **_: outside)
    assert handlers.info() is outside
