"""The agent's two programs with kopf, against a simulated API server and a simulated runtime: no cluster, no CRIU."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.agent import words
from tests.requirements import ROOT
from tests.simulated.apiserver import Fault
from tests.unit import agentobjects as objects
from tests.unit.agentcluster import RUNTIME, Cluster, admitted, cluster

CP, RT = words.CHECKPOINTS, words.RESTORES
Object = dict[str, Any]


def _run(base: Path, do: Callable[[Cluster], Awaitable[None]], *parts: str) -> None:
    async def run() -> None:
        async with cluster(base, *parts) as made:
            await do(made)

    asyncio.run(run())


def _captured(made: Cluster, name: str = "one") -> bool:
    return made.phase(CP, name) == "Checkpointed"


def test_a_pod_is_captured_as_a_set_and_its_data_goes_with_the_checkpoint(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod("web-0", "front", "back"))
        await made.server.put(CP, objects.checkpoint(volumeClaim={"claimName": "store"}))
        await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")
        found = made.server.find(CP, "one")
        assert found is not None
        status = found["status"]
        assert (status["phase"], status["nodeName"], status["bytes"]) == ("Checkpointed", "n1", 6 << 20)
        assert [entry["name"] for entry in status["containers"]] == ["front", "back"]
        assert status["storedBytes"] == status["bytes"]
        assert made.calls() == ["capture one id-front id-back"]
        assert made.calls("n2") == []
        assert found["metadata"]["finalizers"] == ["grit.dev/data", "grit.dev/restores"]
        for root in (made.root("n1"), made.volume):
            assert (root / "default/one/back/checkpoint/grit.json").exists()
        told = {"WaitingForAgent", "Capturing", "Captured", "Stored"}
        await made.until(lambda: told <= {reason for reason, _ in made.server.events()})
        # The API server chooses: no agent is sent another node's pods, nor pods that no Restore means.
        watched = [asked for asked in made.server.requests if "/pods?" in asked and "watch=true" in asked]
        assert all("labelSelector=grit.dev/restore" in asked.replace("%2F", "/") for asked in watched)
        assert sum("spec.nodeName" in asked for asked in watched) >= 2

        def mark(one: Object) -> None:
            one["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

        await made.server.change(CP, "one", mark)
        await made.until(lambda: made.server.find(CP, "one") is None)
        assert list(made.volume.iterdir()) == []
        assert not (made.root("n1") / "default").exists()

    _run(tmp_path, do, "manager", "n1", "n2")


def test_a_capture_that_fails_leaves_the_pod_and_says_why(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        (made.root("n1") / "fault").write_text("fail")
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint(autoMigration=True))
        await made.until(lambda: made.phase(CP, "one") == "Failed")
        expected = ("False", "CaptureFailed", "cannot dump container id-app: it holds a mqueue")
        assert made.condition(CP, "one", "Ready") == expected
        pod = made.server.find("pods", "web-0")
        assert pod is not None
        assert "deletionTimestamp" not in pod["metadata"]
        assert made.server.find(RT, "one") is None
        await made.until(lambda: ("CaptureFailed", expected[2]) in made.server.events())

    _run(tmp_path, do, "manager", "n1")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(r"PATCH .*/one/status", 409, times=2),
        Fault(r"PATCH .*/one/status", 503, times=3),
        Fault(r"PATCH .*/one/status", times=3),
        Fault(r"PATCH .*/one/status", after=True, times=3),
        Fault(r"PATCH .*/one/status", hang=2, status=504),
        Fault(r"GET .*/pods/web-0", 429, times=5),
        Fault(r"GET .*watch=true", 410, times=4),
        Fault(r"GET .*watch=true", 500, times=4),
    ],
    ids=lambda fault: f"{fault.pattern}-{fault.status}{'-after' * fault.after}{'-hang' * bool(fault.hang)}",
)
def test_faults_of_the_api_server_change_nothing_of_the_end(tmp_path: Path, fault: Fault) -> None:
    async def do(made: Cluster) -> None:
        made.server.faults.append(fault)
        await made.start("manager", "n1")
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint())
        await made.until(lambda: _captured(made))
        assert fault.times < 4
        assert made.calls() == ["capture one id-app"]

    _run(tmp_path, do)


@pytest.mark.parametrize("how", ["compacted", "restarted"])
def test_a_watch_goes_on_from_where_the_api_server_is(tmp_path: Path, how: str) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        await (made.server.compact() if how == "compacted" else made.server.restart())
        await made.server.put(CP, objects.checkpoint())
        await made.until(lambda: _captured(made))

    _run(tmp_path, do, "manager", "n1")


@pytest.mark.parametrize("when", ["in the capture", "before it is said"])
def test_an_agent_that_is_restarted_in_the_middle_goes_on(tmp_path: Path, when: str) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        fault = made.root("n1") / "fault"
        if when == "in the capture":
            fault.write_text("hang")
        else:
            # `Checkpointing` is said, and `Checkpointed` not.
            made.server.faults.append(Fault(r"PATCH .*/one/status", 503, times=0))
        await made.server.put(CP, objects.checkpoint())
        await made.until(made.calls)
        if when != "in the capture":
            made.server.faults[0].times = 1000
            await made.until(lambda: (made.root("n1") / "default/one").exists())
        await made.kill("n1")
        await made.kill("manager")
        assert made.phase(CP, "one") == "Checkpointing"
        fault.unlink(missing_ok=True)
        made.server.faults.clear()
        await made.start("n1", "manager")
        await made.until(lambda: _captured(made))
        assert made.calls().count("capture one id-app") == (2 if when == "in the capture" else 1)
        found = made.server.find(CP, "one")
        assert found is not None
        assert found["status"]["bytes"] == 3 << 20

    _run(tmp_path, do, "manager", "n1")


def test_a_pod_migrates_to_another_node(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod("web-0", "front", "back"))
        await made.server.put(CP, objects.checkpoint(autoMigration=True, volumeClaim={"claimName": "store"}))
        # Frozen containers end only when their pod is being deleted, and the Restore is there by then.
        await made.until(lambda: made.calls()[-1:] == ["answer stop"])
        old = made.server.find("pods", "web-0")
        assert old is not None
        assert old["metadata"]["deletionTimestamp"]
        assert made.server.find(RT, "one") is not None
        await made.server.remove("pods", "web-0")
        await made.until(lambda: made.phase(CP, "one") == "Submitted")

        new = await admitted(made, objects.pod("web-1", "front", "back"))
        assert new["metadata"]["annotations"] == {"grit.dev/restore-name": "one", "grit.dev/on-restore-failure": "fail"}
        assert new["metadata"]["labels"]["grit.dev/restore"] == "one"
        assert (new["spec"]["nodeSelector"], new["spec"]["runtimeClassName"]) == ({"grit.dev/restore": "true"}, "grit")
        assert "affinity" not in new["spec"]
        second = await admitted(made, objects.pod("web-2", "front", "back"))
        assert "it has just chosen a pod that isn't there yet" in second["status"]["message"]

        await made.server.put("pods", new)
        second = await admitted(made, objects.pod("web-2", "front", "back"))
        assert "annotations" not in second["metadata"]  # the Restore is taken
        await made.until(lambda: made.phase(RT, "one") == "Pending")
        starting = objects.pod("web-1", "front", "back", node="n2", running=False)
        await made.server.put("pods", {**new, "spec": {**new["spec"], "nodeName": "n2"}, "status": starting["status"]})
        await made.until(lambda: made.condition(RT, "one", "DataAvailable")[0] == "True")
        assert (made.root("n2") / "default/one/back/checkpoint/grit.json").exists()
        assert made.phase(RT, "one") == "Restoring"
        running = objects.pod("web-1", "front", "back")["status"]
        await made.server.change("pods", "web-1", lambda found: found.update(status=running))
        await made.until(lambda: made.phase(RT, "one") == "Restored")
        # The Checkpoint's end is its data's, on every node.
        await made.server.change(CP, "one", lambda found: found["metadata"].update(deletionTimestamp="now"))
        await made.until(lambda: made.server.find(CP, "one") is None)
        await made.until(lambda: not (made.root("n2") / "default").exists())

    _run(tmp_path, do, "manager", "n1", "n2")


def test_a_checkpoint_goes_at_its_end_but_not_from_under_a_pod(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint(ttlSecondsAfterFinished=0))
        made.server.graceful = False
        new = objects.pod("web-1", annotations={"grit.dev/restore-name": "one"}, labels={"grit.dev/restore": "gone"})
        await made.server.put("pods", new)
        await made.until(lambda: _captured(made))
        listed = [asked for asked in made.server.requests if "/pods?labelSelector" in asked and "watch" not in asked]
        assert listed
        await asyncio.sleep(0.3)
        assert made.server.find(CP, "one") is not None
        await made.server.remove("pods", "web-1")
        await made.server.change(CP, "one", lambda found: found["metadata"].update(labels={"look": "again"}))
        await made.until(lambda: made.server.find(CP, "one") is None)
        assert not (made.root("n1") / "default").exists()

    _run(tmp_path, do, "manager", "n1")


def test_containers_run_on_if_their_pod_is_not_deleted_in_time(tmp_path: Path) -> None:
    """No manager is there to delete it."""

    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint(leaveRunning=False))
        await made.until(lambda: made.phase(CP, "one") == "Pending")
        await made.kill("manager")
        await made.start("n1")
        await made.until(lambda: made.calls()[-1:] == ["answer go on"])
        assert _captured(made)
        await made.start("manager")
        await made.until(lambda: "deletionTimestamp" in (made.server.find("pods", "web-0") or {})["metadata"])
        assert made.phase(CP, "one") == "Submitting"

    _run(tmp_path, do, "manager")


@pytest.mark.parametrize("status", [403, 503])
def test_nothing_runs_after_its_checkpoint_though_the_api_server_is_restarted(tmp_path: Path, status: int) -> None:
    """One that starts forbids everything until it has read the roles (kube-apiserver 1.36)."""

    async def do(made: Cluster) -> None:
        fault = made.root("n1") / "fault"
        fault.write_text("hang")
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint(leaveRunning=False))
        await made.until(made.calls)
        away = [Fault(".* .*/one/status", status, times=8), Fault("GET .*/pods/web-0", status, times=8)]
        made.server.faults.extend(away)
        fault.unlink()
        await made.until(lambda: made.calls()[-1:] == ["answer stop"])
        assert [one.times for one in away] == [0, 0]
        assert "deletionTimestamp" in (made.server.find("pods", "web-0") or {})["metadata"]

    _run(tmp_path, do, "manager", "n1")


@pytest.mark.parametrize("what", ["no such volume", "damaged", "changed"])
def test_nothing_that_is_not_what_was_captured_comes_to_a_node(tmp_path: Path, what: str) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        claim = "other" if what == "no such volume" else "store"
        await made.server.put(CP, objects.checkpoint(volumeClaim={"claimName": claim}))
        if what == "no such volume":
            await made.until(lambda: made.condition(CP, "one", "Stored")[1] == "VolumeUnknown")
            assert "has no volume other (it has: store)" in made.condition(CP, "one", "Stored")[2]
            return
        await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")
        images = made.volume / "default/one/app/checkpoint"
        file = images / ("pages-1.img" if what == "damaged" else "grit.json")
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:] if what == "damaged" else content + b" ")
        await made.server.put(RT, objects.restore())
        new = await admitted(made, objects.pod("web-1"))
        starting = objects.pod("web-1", node="n2", running=False)["status"]
        await made.server.put("pods", {**new, "spec": {**new["spec"], "nodeName": "n2"}, "status": starting})
        await made.until(lambda: made.condition(RT, "back", "DataAvailable")[1] == "CopyFailed")
        said = made.condition(RT, "back", "DataAvailable")[2]
        assert ("by its checksum" if what == "damaged" else "its manifest is another") in said
        assert [path for path in made.root("n2").rglob("*") if path.name == "checkpoint"] == []

    _run(tmp_path, do, "manager", "n1", "n2")


def test_a_checkpoint_stays_while_its_data_can_t_be_removed(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        stored = {"type": "Stored", "status": "True", "reason": "Stored", "message": "", "lastTransitionTime": "now"}
        found = objects.stored(
            objects.checkpoint(volumeClaim={"claimName": "gone"}), "Checkpointed", nodeName="n1", conditions=[stored]
        )
        found["metadata"]["deletionTimestamp"] = "now"
        await made.server.put(CP, found)
        await made.until(lambda: "VolumeUnknown" in {reason for reason, _ in made.server.events()})
        assert made.server.find(CP, "one") is not None

    _run(tmp_path, do, "manager", "n1")


def test_the_data_is_not_removed_from_under_a_restore(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint(volumeClaim={"claimName": "store"}))
        await made.until(lambda: made.condition(CP, "one", "Stored")[0] == "True")
        await made.server.put(RT, objects.restore())
        new = await admitted(made, objects.pod("web-1"))
        await made.server.change(CP, "one", lambda found: found["metadata"].update(deletionTimestamp="now"))
        await made.until(lambda: made.condition(CP, "one", "InUse")[1] == "RestoreInProgress")
        starting = objects.pod("web-1", node="n2", running=False)["status"]
        await made.server.put("pods", {**new, "spec": {**new["spec"], "nodeName": "n2"}, "status": starting})
        await made.until(lambda: made.condition(RT, "back", "DataAvailable")[0] == "True")
        assert made.server.find(CP, "one") is not None
        running = objects.pod("web-1", node="n2")["status"]
        await made.server.change("pods", "web-1", lambda found: found.update(status=running))
        await made.until(lambda: made.phase(RT, "back") == "Restored")
        await made.until(lambda: made.server.find(CP, "one") is None)
        assert list(made.volume.iterdir()) == []

    _run(tmp_path, do, "manager", "n1", "n2")


@pytest.mark.parametrize(("back", "reason"), [("ok", "AllRestored"), ("failed", "StartedCold"), ("", "NoRecord")])
def test_a_restore_says_which_containers_have_started_from_scratch(tmp_path: Path, back: str, reason: str) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod("web-0", "front", "back"))
        await made.server.put(CP, objects.checkpoint())
        await made.until(lambda: _captured(made))
        for name, outcome in (("front", "ok"), ("back", back)):
            record = {"operation": "create", "container": f"id-{name}", "outcome": outcome, "error": "no such mount"}
            if outcome:
                (made.root("n1") / f"report-id-{name}").write_text(json.dumps({"operations": [record]}))
        await made.server.put(RT, objects.restore(onFailure="ColdStart"))
        new = await admitted(made, objects.pod("web-1", "front", "back"))
        running = objects.pod("web-1", "front", "back")["status"]
        await made.server.put("pods", {**new, "spec": {**new["spec"], "nodeName": "n1"}, "status": running})
        await made.until(lambda: made.condition(RT, "back", "FromCheckpoint")[1] == reason)
        told = {"ok": "all go on from the checkpoint", "failed": "from scratch: back: no such mount"}
        assert made.condition(RT, "back", "FromCheckpoint")[2] == told.get(back, "the runtime has no record of: back")
        found = made.server.find(RT, "back")
        assert found is not None
        assert found["status"]["containers"] == [
            {"name": "front", "restored": True}, {"name": "back", **({"restored": back == "ok"} if back else {})},
        ]  # fmt: skip
        await made.until(lambda: made.phase(RT, "back") == "Restored")

    _run(tmp_path, do, "manager", "n1")


def test_two_pods_that_come_at_once_do_not_get_one_restore(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint())
        await made.until(lambda: _captured(made))
        await made.server.put(RT, objects.restore())
        dry = await admitted(made, objects.pod("web-9"), dryRun=True)
        assert dry["metadata"]["annotations"]["grit.dev/restore-name"] == "one"
        pods = [admitted(made, objects.pod(f"web-{number}")) for number in range(1, 4)]
        answers = await asyncio.gather(*pods)
        chosen = [one for one in answers if "annotations" in one.get("metadata", {})]
        assert len(chosen) == 1
        for other in (one for one in answers if one is not chosen[0]):
            assert "it has just chosen a pod" in other["status"]["message"]  # none starts from scratch

    _run(tmp_path, do, "manager", "n1")


def test_a_restore_that_changes_meanwhile_is_asked_again(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        await made.server.put("pods", objects.pod())
        await made.server.put(CP, objects.checkpoint())
        await made.until(lambda: _captured(made))
        await made.server.put(RT, objects.restore())
        made.server.faults.append(Fault("PATCH .*/restores/back$", 409, times=4))
        assert (await admitted(made, objects.pod("web-1")))["metadata"]["annotations"]["grit.dev/restore-name"] == "one"
        await made.until(lambda: made.phase(RT, "back") == "Created")
        made.server.faults.append(Fault("PATCH .*/restores/back$", 409, times=5))
        await made.server.remove(RT, "back")
        await made.server.put(RT, objects.restore())
        assert (await admitted(made, objects.pod("web-2")))["allowed"] is False

    _run(tmp_path, do, "manager", "n1")


def test_without_an_answer_of_the_api_server_no_pod_starts_by_accident(tmp_path: Path) -> None:
    async def do(made: Cluster) -> None:
        made.server.faults.append(Fault("GET .*/restores", 500, times=100))
        answer = await admitted(made, objects.pod())
        assert answer["allowed"] is False
        assert "can't look for Restores" in answer["status"]["message"]

    _run(tmp_path, do)


def test_the_programs_serve_by_a_kubeconfig_and_end_at_a_signal(tmp_path: Path) -> None:
    """As they are installed: `grit-agent manager` and `grit-agent node`, ended in the middle of a capture."""

    async def do(made: Cluster) -> None:
        config = tmp_path / "kubeconfig"
        config.write_text(
            json.dumps(
                {
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": made.server.url}}],
                    "users": [{"name": "u", "user": {"token": "both"}}],
                }
            )
        )
        made.server.roles["both"] = [*made.server.roles["node"], *made.server.roles["manager"]]
        runtime = f"env PYTHONPATH={ROOT} {sys.executable} {RUNTIME} {made.root('n1')}"
        arguments = ["node", "--node", "n1", "--root", str(made.root("n1")), "--runtime", runtime]
        env = {**os.environ, "KUBECONFIG": str(config), "PYTHONPATH": str(ROOT)}
        log = (tmp_path / "log").open("wb")

        async def program(*words: str) -> asyncio.subprocess.Process:
            argv = [sys.executable, "-m", "grit_runtime.agent", *words]
            return await asyncio.create_subprocess_exec(*argv, env=env, stdout=log, stderr=log)

        (made.root("n1") / "fault").write_text("hang")
        programs = [await program("manager"), await program(*arguments)]
        try:
            await made.server.put("pods", objects.pod())
            await made.server.put(CP, objects.checkpoint())
            await made.until(lambda: "capture one id-app" in made.calls(), 30)
            assert made.calls()[0] == "recover"
            programs[1].terminate()
            assert await asyncio.wait_for(programs[1].wait(), 20) == 0
            assert made.calls()[-1] == "terminated"
            (made.root("n1") / "fault").unlink()
            programs.append(await program(*arguments))
            await made.until(lambda: _captured(made), 30)
        finally:
            for one in programs:
                if one.returncode is None:
                    one.terminate()
                    await asyncio.wait_for(one.wait(), 20)
            log.close()
        assert programs[0].returncode == 0

    _run(tmp_path, do)
