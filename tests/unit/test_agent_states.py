"""The states of Checkpoints and Restores, and what the webhook decides: pure, without a cluster."""

from typing import Any

import pytest

from grit_runtime.agent import admission, checkpoints, pods, restores, words
from grit_runtime.agent.checkpoints import Data
from grit_runtime.agent.model import Condition, Do, Step, merged, moment, patched, seconds
from tests.unit import agentobjects as objects
from tests.unit.agentobjects import checkpoint, pod, restore, stored

NOW = 1_790_000_000.0
Object = dict[str, Any]


def _manage(found: Object, there: Object | None, **more: Any) -> Step:
    return checkpoints.manage(checkpoints.Seen(checkpoint=found, pod=there, now=NOW, **more))


def _why(step: Step) -> str:
    return step.conditions[0].reason if step.conditions else ""


def _with(found: Object, **metadata: Any) -> Object:
    return {**found, "metadata": {**found["metadata"], **metadata}}


def test_a_time_is_read_as_it_was_written() -> None:
    assert seconds(moment(NOW)) == NOW


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = merged([], [Condition(type="Ready", status=False, reason="A", message="a")], NOW, 1)
    second = merged(first, [Condition(type="Ready", status=False, reason="B", message="b")], NOW + 9, 1)
    third = merged(second, [Condition(type="Ready", status=True, reason="C", message="c")], NOW + 9, 1)
    assert [one[0]["lastTransitionTime"] for one in (first, second, third)] == [
        moment(NOW), moment(NOW), moment(NOW + 9),
    ]  # fmt: skip
    found = {"metadata": {"generation": 1}, "status": {"conditions": first}}
    same = Step(conditions=(Condition(type="Ready", status=False, reason="A", message="a"),))
    assert patched(found, same, NOW + 99) == {}


# --- Checkpoint: the manager ----------------------------------------------------------------------------------------


def test_the_finalizer_comes_first() -> None:
    found = stored(checkpoint())
    found["metadata"]["finalizers"] = []
    step = _manage(found, pod())
    assert (step.do, step.status) == ((Do.ADD_FINALIZER,), {})


def test_a_running_pod_is_handed_to_its_node() -> None:
    there = pod("web-0", "front", "back")
    status = _manage(stored(checkpoint()), there).status
    assert (status["phase"], status["nodeName"], status["podUID"]) == ("Pending", "n1", pods.uid(there))
    assert status["containers"] == [{"name": "front"}, {"name": "back"}]
    assert (status["dataPath"], status["podSpecHash"]) == ("default/one", pods.spec_hash(there["spec"]))


@pytest.mark.parametrize(
    ("there", "spec", "reason"),
    [
        (None, {}, "PodNotFound"),
        (pod(deletionTimestamp="now"), {}, "PodIsEnding"),
        ({**pod(), "status": {"phase": "Succeeded"}}, {}, "PodEnded"),
        ({**pod(), "spec": {**pod()["spec"], "initContainers": [{"name": "i"}]}}, {}, "InitContainers"),
        (pod(ownerReferences=[]), {"autoMigration": True}, "NoOwner"),
        (pod(labels={}), {"autoMigration": True}, "NotRestorable"),
    ],
)
def test_what_can_never_be_captured_has_failed(there: Object | None, spec: Object, reason: str) -> None:
    step = _manage(stored(checkpoint(**spec)), there)
    assert (step.status["phase"], _why(step), step.do) == ("Failed", reason, ())
    assert step.status["completionTime"] == moment(NOW)


@pytest.mark.parametrize("there", [pod(node=""), pod(running=False)])
def test_what_does_not_run_yet_is_waited_for(there: Object) -> None:
    step = _manage(stored(checkpoint()), there)
    assert (step.status, _why(step)) == ({"phase": "Created"}, "PodNotRunning")
    assert step.after


@pytest.mark.parametrize("spec", [{"autoMigration": True}, {"leaveRunning": False}])
def test_a_pod_is_deleted_only_after_its_replacement_would_be_chosen(spec: Object) -> None:
    there = pod()
    step = _manage(stored(checkpoint(**spec), words.CHECKPOINTED, podUID=pods.uid(there)), there)
    assert (step.status["phase"], step.do) == ("Submitting", ())
    step = _manage(stored(checkpoint(**spec), words.SUBMITTING, podUID=pods.uid(there)), there)
    assert step.do == ((Do.CREATE_RESTORE, Do.DELETE_POD) if spec.get("autoMigration") else (Do.DELETE_POD,))
    ending = _with(there, deletionTimestamp="now")
    assert Do.DELETE_POD not in _manage(stored(checkpoint(**spec), "Submitting", podUID=pods.uid(there)), ending).do
    for gone in (None, pod()):  # another of that name has taken its place
        step = _manage(stored(checkpoint(**spec), words.SUBMITTING, podUID=pods.uid(there)), gone)
        assert (step.status["phase"], step.do) == ("Submitted", ())


def test_one_that_is_to_run_on_is_left_alone() -> None:
    assert _manage(stored(checkpoint(), words.CHECKPOINTED), pod()).do == ()


@pytest.mark.parametrize(("age", "do"), [(59, ()), (60, (Do.DELETE,))])
@pytest.mark.parametrize("phase", [words.CHECKPOINTED, words.FAILED, words.SUBMITTED])
def test_a_finished_one_goes_at_the_end_of_its_time(phase: str, age: float, do: tuple[Do, ...]) -> None:
    found = stored(checkpoint(ttlSecondsAfterFinished=60), phase, completionTime=moment(NOW - age))
    step = _manage(found, None)
    assert (step.do, step.after) == (do, None if do else 1)


def test_one_from_which_a_pod_runs_stays() -> None:
    """kubelet restores a container that has ended from there again, and it would fail for ever."""
    found = stored(checkpoint(ttlSecondsAfterFinished=60), words.SUBMITTED, completionTime=moment(NOW - 99))
    assert _manage(found, None).do == (Do.DELETE,)
    step = _manage(found, None, in_use=True)
    assert (step.do, bool(step.after)) == ((), True)


@pytest.mark.parametrize(("status", "there", "dropped"), [({}, True, True), ({"nodeName": "n1"}, True, False),
                                                          ({"nodeName": "n1"}, False, True)])  # fmt: skip
def test_data_is_waited_for_only_where_somebody_can_remove_it(status: Object, there: bool, dropped: bool) -> None:
    found = _with(stored(checkpoint(), words.FAILED, **status), deletionTimestamp="now", finalizers=["grit.dev/data"])
    step = _manage(found, None, node_there=there)
    assert step.do == ((Do.DROP_FINALIZER,) if dropped else ())
    assert bool(step.after) is not dropped  # nobody tells the manager that a node goes


def test_the_data_stays_while_a_restore_from_it_is_in_progress() -> None:
    found = _with(stored(checkpoint(), words.SUBMITTED, nodeName="n1"), deletionTimestamp="now")
    step = _manage(found, None, restoring=("back",))
    assert (step.do, _why(step), bool(step.after)) == ((), "RestoreInProgress", True)
    assert "Restore back" in step.conditions[0].message
    assert checkpoints.on_node(found, "n1", Data.WHOLE, NOW).do == ()
    assert checkpoints.on_node(found, "n2", Data.WHOLE, NOW).do == ()
    assert _manage(found, None).do == (Do.DROP_HOLD,)
    assert _manage(found, None, node_there=False).do == (Do.DROP_HOLD,)


@pytest.mark.parametrize(
    ("phase", "chosen", "busy"),
    [(words.CREATED, 0, False), (words.CREATED, 10, True), (words.CREATED, 99, False), (words.PENDING, 0, True),
     (words.RESTORING, 0, True), (words.RESTORED, 10, False), (words.FAILED, 10, False)],
)  # fmt: skip
def test_a_restore_is_in_progress_from_the_choice_of_its_pod_on(phase: str, chosen: float, busy: bool) -> None:
    marks = {words.POD_SELECTED: moment(NOW - chosen)} if chosen else {}
    assert restores.in_progress(_with(stored(restore(), phase), annotations=marks), NOW) is busy


def test_a_capture_on_a_node_that_is_gone_has_failed() -> None:
    assert _manage(stored(checkpoint(), words.CHECKPOINTING, nodeName="n1"), None).after
    step = _manage(stored(checkpoint(), words.CHECKPOINTING, nodeName="n1"), None, node_there=False)
    assert (step.status["phase"], _why(step)) == ("Failed", "NodeGone")


# --- Checkpoint: the node -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "data", "spec", "wanted", "do"),
    [
        (words.CREATED, Data.NONE, {}, None, ()),
        (words.PENDING, Data.NONE, {}, words.CHECKPOINTING, (Do.CAPTURE,)),
        (words.PENDING, Data.FOREIGN, {}, words.FAILED, ()),
        (words.CHECKPOINTING, Data.NONE, {}, None, (Do.CAPTURE,)),
        (words.CHECKPOINTING, Data.WHOLE, {}, words.CHECKPOINTED, ()),
        (words.CHECKPOINTED, Data.WHOLE, {}, None, ()),
        (words.CHECKPOINTED, Data.WHOLE, {"volumeClaim": {"claimName": "c"}}, None, (Do.STORE,)),
        (words.SUBMITTED, Data.WHOLE, {"volumeClaim": {"claimName": "c"}}, None, (Do.STORE,)),
        (words.CHECKPOINTED, Data.NONE, {"volumeClaim": {"claimName": "c"}}, None, ()),
        (words.FAILED, Data.NONE, {}, None, ()),
    ],
)
def test_what_the_agent_of_the_node_does(
    phase: str, data: Data, spec: Object, wanted: str | None, do: tuple[Do, ...]
) -> None:
    found = stored(checkpoint(**spec), phase, nodeName="n1", podUID="u")
    step = checkpoints.on_node(found, "n1", data, NOW)
    assert (step.status.get("phase"), step.do) == (wanted, do)
    assert checkpoints.on_node(found, "n2", data, NOW) == Step()


def test_the_data_goes_before_the_finalizer() -> None:
    found = _with(
        stored(checkpoint(), words.CHECKPOINTED, nodeName="n1"), deletionTimestamp="now", finalizers=["grit.dev/data"]
    )
    assert checkpoints.on_node(found, "n1", Data.WHOLE, NOW).do == (Do.REMOVE, Do.DROP_FINALIZER)
    assert checkpoints.on_node(found, "n2", Data.WHOLE, NOW).do == (Do.REMOVE_LOCAL,)
    assert checkpoints.on_node(found, "n2", Data.NONE, NOW).do == ()


# --- Restore --------------------------------------------------------------------------------------------------------


def _restored(found: Object, *there: Object, known: Object | None = None) -> Step:
    return restores.manage(restores.Seen(restore=found, checkpoint=known, pods=there, now=NOW))


DONE = stored(checkpoint(), words.CHECKPOINTED, nodeName="n1", podSpecHash=pods.spec_hash(pod()["spec"]))


@pytest.mark.parametrize(
    ("known", "phase", "reason"),
    [
        (None, "Created", "CheckpointNotFound"),
        (stored(checkpoint(), words.CHECKPOINTING), "Created", "CheckpointNotComplete"),
        (DONE, "Created", "WaitingForPod"),
        (stored(checkpoint(), words.FAILED), "Failed", "CheckpointFailed"),
    ],
)
def test_a_restore_without_a_pod_says_what_it_waits_for(known: Object | None, phase: str, reason: str) -> None:
    step = _restored(stored(restore()), known=known)
    assert (step.status["phase"], _why(step)) == (phase, reason)


@pytest.mark.parametrize(
    ("there", "phase", "reason"),
    [
        (pod(node="", running=False), "Pending", "PodPending"),
        (pod(running=False), "Restoring", "PodStarting"),
        (pod(), "Restored", "PodRuns"),
    ],
)
def test_a_restore_follows_its_pod(there: Object, phase: str, reason: str) -> None:
    step = _restored(stored(restore()), there, known=DONE)
    assert (step.status["phase"], _why(step), step.status["targetPod"]) == (phase, reason, "web-0")


FAILED_START = {"terminated": {"reason": "StartError", "exitCode": 128, "message": "no such checkpoint: ..."}}


@pytest.mark.parametrize(
    ("state", "last", "said"),
    [
        ({"waiting": {"reason": "RunContainerError", "message": "no such ..."}}, {}, "RunContainerError: no such ..."),
        # As kubelet 1.36 reports it between two attempts.
        (
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container=app"}},
            FAILED_START,
            "CrashLoopBackOff: no such checkpoint: ...",
        ),
        (
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s ..."}},
            {"terminated": {"reason": "Error", "exitCode": 1}},
            "CrashLoopBackOff: back-off 20s ...",
        ),
    ],
)
def test_what_kubelet_says_of_a_pod_is_said_of_its_restore(state: Object, last: Object, said: str) -> None:
    there = pod(running=False)
    there["status"]["containerStatuses"][0].update(state=state, lastState=last)
    step = _restored(stored(restore()), there, known=DONE)
    assert step.conditions[0].message == f"container app: {said}"


def test_why_a_pod_failed_that_is_started_once_is_said() -> None:
    there = {**pod(), "status": {"phase": "Failed", "containerStatuses": [{"name": "app", "state": FAILED_START}]}}
    step = _restored(stored(restore(), words.RESTORING, targetPod="web-0"), there, known=DONE)
    assert (step.status["phase"], _why(step)) == ("Created", "WaitingForPod")
    assert step.conditions[0].message == "pod web-0 has ended: container app: StartError: no such checkpoint: ..."


def test_a_pod_that_has_run_to_its_end_was_restored() -> None:
    step = _restored(stored(restore(), words.RESTORING), {**pod(), "status": {"phase": "Succeeded"}}, known=DONE)
    assert (step.status["phase"], step.status["targetPod"]) == ("Restored", "web-0")


@pytest.mark.parametrize("running", [True, False])
def test_a_choice_is_forgotten_once_its_pod_is_there(running: bool) -> None:
    found = _with(stored(restore()), annotations={words.POD_SELECTED: moment(NOW - 1)})
    step = _restored(found, pod(running=running), known=DONE)
    assert step.do == (() if running else (Do.RELEASE,))  # a Restored one means no pod any more


@pytest.mark.parametrize("gone", [(), (pod(deletionTimestamp="now"),), ({**pod(), "status": {"phase": "Failed"}},)])
def test_the_next_pod_is_chosen_if_the_first_goes_before_it_runs(gone: tuple[Object, ...]) -> None:
    step = _restored(stored(restore(), words.RESTORING, targetPod="web-0"), *gone, known=DONE)
    assert (step.status["phase"], step.status["targetPod"]) == ("Created", "")


@pytest.mark.parametrize(("age", "do"), [(30, ()), (61, (Do.RELEASE,)), (-999, (Do.RELEASE,))])
def test_a_choice_holds_until_the_pod_should_be_there(age: float, do: tuple[Do, ...]) -> None:
    found = _with(stored(restore()), annotations={words.POD_SELECTED: moment(NOW - age)})
    step = _restored(found, known=DONE)
    assert step.do == do
    assert step.after == (0 if do else 30)


@pytest.mark.parametrize(
    ("known", "there", "reason", "do"),
    [
        (DONE, True, "OnNode", ()),
        (DONE, False, "OnAnotherNode", ()),
        (None, False, "NoCheckpoint", ()),
        (stored(checkpoint(volumeClaim={"claimName": "c"}), words.CHECKPOINTED), False, "NotStored", ()),
        (
            stored(
                checkpoint(volumeClaim={"claimName": "c"}),
                words.CHECKPOINTED,
                conditions=[{"type": "Stored", "status": "True"}],
            ),
            False,
            "Copying",
            (Do.FETCH,),
        ),
    ],
)
def test_what_the_agent_of_the_new_node_does(
    known: Object | None, there: bool, reason: str, do: tuple[Do, ...]
) -> None:
    step = restores.on_node(stored(restore(), words.RESTORING), known, "n2", there=there)
    assert (_why(step), step.do) == (reason, do)


# --- the webhook ----------------------------------------------------------------------------------------------------


def _decided(asked: Object, found: Object, known: Object | None, *there: Object) -> admission.Answer:
    by_name = {known["metadata"]["name"]: known} if known else {}
    return admission.decide(asked, [stored(found)], by_name, there, runtime_class="grit", now=NOW)


def _chosen(name: str = "web-1", **more: Any) -> Object:
    made = pod(name, **more)
    made["metadata"]["labels"][words.RESTORE_LABEL] = "back"
    return made


WAIT, COLD = restore(), restore(onFailure="ColdStart")
OTHER = {**DONE, "status": {**DONE["status"], "podSpecHash": "1"}}
MIGRATING = stored(checkpoint(autoMigration=True), words.CHECKPOINTING, podSpecHash=DONE["status"]["podSpecHash"])


@pytest.mark.parametrize(
    ("found", "known", "allowed", "chosen", "said"),
    [
        (WAIT, DONE, True, True, ""),
        (COLD, DONE, True, True, ""),
        (WAIT, None, False, False, "there is no Checkpoint one; the pod waits"),
        (COLD, None, True, False, "the pod starts from scratch"),
        (WAIT, stored(checkpoint(), words.FAILED), False, False, "has failed"),
        (COLD, stored(checkpoint(), words.FAILED), True, False, "the pod starts from scratch"),
        (WAIT, stored(checkpoint(), words.CHECKPOINTING), False, False, "isn't complete"),
        (COLD, stored(checkpoint(), words.CHECKPOINTING), False, False, "the pod waits for it"),
        (WAIT, OTHER, True, False, "this pod's spec is not the captured pod's"),
        (WAIT, MIGRATING, True, False, ""),  # a replica more, while the pod is captured
    ],
)
def test_a_pod_starts_from_scratch_only_where_that_is_said(
    found: Object, known: Object | None, allowed: bool, chosen: bool, said: str
) -> None:
    answer = _decided(pod(), found, known)
    assert (answer.allowed, answer.restore is not None) == (allowed, chosen)
    assert said in answer.message + "".join(answer.warnings)
    assert bool(answer.patch) == chosen


@pytest.mark.parametrize(
    "metadata",
    [
        {"ownerReferences": []},
        {"ownerReferences": [{**objects.OWNER, "uid": "another"}]},
        {"annotations": {"grit.dev/checkpoint": "/by/hand"}},
        {"annotations": {"grit.dev/restore-name": "by-hand"}},
    ],
)
def test_a_pod_that_no_restore_means_is_left_alone(metadata: Object) -> None:
    assert _decided(pod(**metadata), WAIT, DONE) == admission.Answer()


CHOSEN = _with(stored(WAIT), annotations={words.POD_SELECTED: moment(NOW - 1)})


@pytest.mark.parametrize(
    ("found", "there"),
    [
        (CHOSEN, _chosen()),
        (stored(WAIT, words.RESTORING), _chosen(running=False)),
        (stored(WAIT, words.RESTORED), _chosen(deletionTimestamp="now")),
        (stored(WAIT, words.RESTORED), pod()),
        (_with(WAIT, deletionTimestamp="now"), pod()),
    ],
)
def test_a_restore_means_one_pod(found: Object, there: Object) -> None:
    assert _decided(pod(), found, DONE, there) == admission.Answer()


@pytest.mark.parametrize("phase", ["", words.CREATED])
def test_nobody_starts_from_scratch_while_the_chosen_pod_may_still_come(phase: str) -> None:
    found = {**CHOSEN, "status": {"phase": phase}} if phase else CHOSEN
    answer = _decided(pod(), found, DONE)
    assert (answer.allowed, answer.message) == (False, "Restore back: it has just chosen a pod that isn't there yet")
    assert _decided(pod(), found, OTHER).allowed  # another program, which the Restore doesn't mean


@pytest.mark.parametrize(
    ("found", "gone"),
    [
        (_with(stored(WAIT), annotations={words.POD_SELECTED: moment(NOW - 99)}), pod()),  # never came
        (stored(WAIT, words.CREATED), {**_chosen(), "status": {"phase": "Failed"}}),
        # The owner makes another one before the manager has seen that the first is gone.
        (stored(WAIT, words.RESTORING), _chosen(deletionTimestamp="now")),
        (stored(WAIT, words.PENDING), pod()),
        # Chosen for another Restore that had this name.
        (_with(stored(WAIT), creationTimestamp=moment(NOW)), _chosen(creationTimestamp=moment(NOW - 1))),
    ],
)  # fmt: skip
def test_the_next_pod_is_chosen_once_the_first_is_gone(found: Object, gone: Object) -> None:
    assert _decided(pod(), found, DONE, gone).restore is not None


@pytest.mark.parametrize(
    ("policy", "claim", "warned"), [("Never", True, True), ("Never", False, False), ("Always", True, False)]
)
def test_a_pod_that_is_started_once_is_told_that_it_does_not_wait_on_its_node(
    policy: str, claim: bool, warned: bool
) -> None:
    spec = {"volumeClaim": {"claimName": "c"}} if claim else {}
    asked = pod()
    asked["spec"]["restartPolicy"] = policy
    known = stored(checkpoint(**spec), words.CHECKPOINTED, nodeName="n1", podSpecHash=pods.spec_hash(asked["spec"]))
    answer = _decided(asked, WAIT, known)
    assert answer.restore is not None
    assert bool(answer.warnings) is warned
    assert all(len(text) <= 256 for text in answer.warnings)


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "other"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({}, False),
    ],
)
def test_a_selector_selects_as_kubernetes_does_but_never_everything(selector: Object, selected: bool) -> None:
    found = restore(selector=selector)
    del found["spec"]["ownerRef"]
    assert (_decided(pod(ownerReferences=[]), found, DONE).restore is not None) == selected


def _value(answer: admission.Answer, path: str) -> Any:
    return next((entry["value"] for entry in answer.patch if entry["path"] == path), None)


@pytest.mark.parametrize(
    ("found", "spec", "pinned"),
    [
        (WAIT, {}, True),
        (WAIT, {"volumeClaim": {"claimName": "c"}}, False),
        (COLD, {"volumeClaim": {"claimName": "c"}}, True),
    ],
)
def test_a_pod_is_bound_to_the_node_that_alone_has_its_data_in_time(found: Object, spec: Object, pinned: bool) -> None:
    known = {**DONE, "spec": {**DONE["spec"], **spec}}
    answer = _decided(pod(), found, known)
    affinity = _value(answer, "/spec/affinity")
    assert (affinity is not None) == pinned
    if pinned:
        terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms == [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]
    policy = "cold-start" if found is COLD else "fail"
    assert _value(answer, "/metadata/annotations")["grit.dev/on-restore-failure"] == policy


# --- the hash -------------------------------------------------------------------------------------------------------


def test_two_pods_of_one_template_have_one_hash() -> None:
    first, second = pod("web-0", "front"), pod("web-1", "front", node="n2")
    assert first["spec"] != second["spec"]
    assert pods.spec_hash(first["spec"]) == pods.spec_hash(second["spec"])
    second["spec"]["containers"][0]["image"] = "another"
    assert pods.spec_hash(first["spec"]) != pods.spec_hash(second["spec"])


@pytest.mark.parametrize("affinity", [None, {"podAntiAffinity": {"x": [1]}}, {"nodeAffinity": {
    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a"}]}]}
}}])  # fmt: skip
def test_a_restored_pod_has_the_hash_of_the_captured_one(affinity: Object | None) -> None:
    there = pod()
    if affinity:
        there["spec"]["affinity"] = affinity
    known = {**DONE, "status": {**DONE["status"], "podSpecHash": pods.spec_hash(there["spec"])}}
    answer = _decided(there, WAIT, known)
    added = {entry["path"]: entry["value"] for entry in answer.patch}
    inside = {path.removeprefix("/spec/"): value for path, value in added.items() if path.startswith("/spec/")}
    made = {**there["spec"], **inside}
    assert made != there["spec"]
    assert pods.spec_hash(made) == pods.spec_hash(there["spec"])


def test_the_hash_is_fnv_1a() -> None:
    """Of the JSON `{}`: the 32-bit FNV-1a of two bytes, by its definition."""
    value = 2166136261
    for byte in b"{}":
        value = ((value ^ byte) * 16777619) % 2**32
    assert pods.spec_hash({}) == str(value)
