"""The example's objects for the agent, its certificate, and kubectl's plugin: no cluster; kubectl is a stand-in."""

import asyncio
import base64
import json
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonpatch
import jsonschema
import pytest
import yaml
from aiohttp import ClientSession, TCPConnector

from grit_runtime.agent import credentials, plugin, reference, webhook, words
from grit_runtime.agent.__main__ import _parser
from grit_runtime.agent.client import Api, Server
from tests.requirements import ROOT
from tests.unit import agentobjects as objects
from tests.unit.test_agent_resources import _schema

EXAMPLES = ROOT / "examples/kubernetes/agent"
Object = dict[str, Any]


def _objects() -> list[Object]:
    files = [file for file in sorted(EXAMPLES.glob("*.yaml")) if file.name != "kustomization.yaml"]
    return [found for file in files for found in yaml.safe_load_all(file.read_text()) if found]


def _named(kind: str, name: str) -> Object:
    (found,) = [one for one in _objects() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.needs("kubernetes-validate")
@pytest.mark.parametrize("version", ["1.31", "1.35"])
def test_the_objects_are_valid(version: str) -> None:
    """Unknown keys are mistakes."""
    import kubernetes_validate

    for found in _objects():
        kubernetes_validate.validate(found, version, strict=True)


def test_every_file_is_in_the_base() -> None:
    base = yaml.safe_load((EXAMPLES / "kustomization.yaml").read_text())
    assert {*base["resources"], "kustomization.yaml"} == {file.name for file in EXAMPLES.glob("*.yaml")}


@pytest.mark.needs("kubernetes-validate")
def test_the_overlay_gives_the_agent_a_registry_and_its_credentials() -> None:
    overlay = yaml.safe_load((ROOT / "examples/kubernetes/agent-registry/kustomization.yaml").read_text())
    assert overlay["resources"] == ["../agent"]
    ((patch,), found) = overlay["patches"], _named("DaemonSet", "grit-agent")
    assert patch["target"] == {"kind": found["kind"], "name": found["metadata"]["name"]}
    made = jsonpatch.apply_patch(found, yaml.safe_load(patch["patch"]))
    spec = made["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    options = _parser().parse_args(container["args"])
    assert [reference.allowed(word) for word in options.registry] == [
        reference.Allowed(host="registry.example.com", prefix="checkpoints")
    ]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (volume,) = [entry for entry in spec["volumes"] if "secret" in entry]
    (item,) = volume["secret"]["items"]
    assert credentials.path(environment) == f"{mounted[volume['name']]}/{item['path']}"
    import kubernetes_validate

    kubernetes_validate.validate(made, "1.35", strict=True)


def test_nobody_may_read_secrets_or_everything() -> None:
    rules = [rule for found in _objects() if found["kind"] == "ClusterRole" for rule in found["rules"]]
    for rule in rules:
        assert not {"secrets", "*", "pods/exec", "nodes/proxy"} & {
            *rule["resources"],
            *rule["verbs"],
            *rule["apiGroups"],
        }
    # Nobody but the agents writes a status, and a tenant's Checkpoint can't be changed: its finalizer would go.
    for name in ("grit-edit", "grit-view"):
        (rule,) = _named("ClusterRole", name)["rules"]
        assert rule["resources"] == ["checkpoints", "restores"]
        assert not {"patch", "update", "deletecollection"} & set(rule["verbs"])
    assert "delete" not in {verb for rule in _named("ClusterRole", "grit-agent")["rules"] for verb in rule["verbs"]}


def test_the_webhook_is_asked_about_pods_that_want_it_and_fails_closed() -> None:
    (found,) = _named("MutatingWebhookConfiguration", "grit")["webhooks"]
    assert found["failurePolicy"] == "Fail"
    assert found["objectSelector"] == {"matchLabels": {words.OPT_IN: "true"}}
    assert found["clientConfig"]["service"]["path"] == webhook.PATH


@pytest.mark.parametrize(("kind", "name"), [("DaemonSet", "grit-agent"), ("Deployment", "grit-manager")])
def test_the_arguments_are_the_program_s(kind: str, name: str) -> None:
    (container,) = _named(kind, name)["spec"]["template"]["spec"]["containers"]
    options = _parser().parse_args(container["args"])
    if kind == "DaemonSet":
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert options.root in mounts
        assert options.runtime.split()[-1] == "/usr/local/bin/grit-runtime"
    else:
        assert str(options.webhook_port) == str(container["ports"][0]["containerPort"])


KUBECTL = """#!{python}
import json, os, sys
from pathlib import Path
base = Path(os.environ["STAND_IN"])
words = [word for word in sys.argv[1:]]
(base / "calls").open("a").write(json.dumps(words) + "\\n")
if "secret" in words:
    for word in ("--cert", "--key"):
        (base / word[2:]).write_text(Path(words[words.index(word) + 1]).read_text())
    print("{{}}")
elif words[-3:-1] == ["create", "-f"]:
    (base / "made").write_text(sys.stdin.read())
elif "pods" in words:
    print((base / "pods").read_text())
elif "get" in words and "-o" in words:
    phases = (base / "phases").read_text().split()
    (base / "phases").write_text(" ".join(phases[1:] or phases))
    found = json.loads((base / "made").read_text())
    phase, _, stored = phases[0].partition("/")
    conditions = [{{"type": "Ready", "status": "True", "reason": "Because", "message": "so it is"}}]
    if stored:
        kept = {{"type": "Stored", "status": str(stored == "Stored"), "reason": stored, "message": "so far"}}
        conditions.append(kept)
    found["status"] = {{"phase": phase, "conditions": conditions}}
    print(json.dumps(found))
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in in PATH, which writes down what it was asked."""
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    (tmp_path / "phases").write_text("Created Checkpointing Checkpointed")
    return tmp_path


def _calls(base: Path) -> list[list[str]]:
    return [json.loads(line) for line in (base / "calls").read_text().splitlines()]


@pytest.mark.needs("openssl")
def test_the_certificate_is_what_the_api_server_asks_for(kubectl: Path) -> None:
    subprocess.run([EXAMPLES / "certificate", "--context", "there"], check=True, stdout=subprocess.DEVNULL)
    patch = json.loads(_calls(kubectl)[-1][-1])
    assert patch[0]["path"] == "/webhooks/0/clientConfig/caBundle"
    bundle = base64.b64decode(patch[0]["value"]).decode()

    async def run() -> str:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(kubectl / "cert", kubectl / "key")
        async with Api(Server(url="http://127.0.0.1:1")) as api:
            served = webhook.Webhook(api=api, runtime_class="grit")
            runner = await webhook.serve(served, "127.0.0.1", 0, context)
            try:
                port = runner.addresses[0][1]
                trusting = ssl.create_default_context(cadata=bundle)
                async with (
                    ClientSession(connector=TCPConnector(ssl=trusting)) as session,
                    session.get(
                        f"https://127.0.0.1:{port}/healthz", server_hostname="grit-manager.grit-system.svc"
                    ) as answer,
                ):
                    return await answer.text()
            finally:
                await runner.cleanup()

    assert asyncio.run(run()) == "ok\n"


@pytest.mark.parametrize(
    ("argv", "spec"),
    [
        (["checkpoint", "web-0"], {"podName": "web-0"}),
        (["checkpoint", "web-0", "--migrate", "--claim", "c", "--ttl", "60"],
         {"podName": "web-0", "volumeClaim": {"claimName": "c"}, "autoMigration": True, "ttlSecondsAfterFinished": 60}),
        (["checkpoint", "web-0", "--registry", "r:5000/cp/team/web:one"],
         {"podName": "web-0", "registry": {"reference": "r:5000/cp/team/web:one"}}),
        (["checkpoint", "web-0", "--stop"], {"podName": "web-0", "leaveRunning": False}),
        (["restore", "web-0", "-l", "app=web,tier=front"],
         {"checkpointName": "web-0", "selector": {"matchLabels": {"app": "web", "tier": "front"}}}),
        (["restore", "web-0", "-l", "app=web", "--cold-start"],
         {"checkpointName": "web-0", "selector": {"matchLabels": {"app": "web"}}, "onFailure": "ColdStart"}),
    ],
)  # fmt: skip
def test_the_plugin_makes_what_one_would_apply(kubectl: Path, argv: list[str], spec: Object) -> None:
    assert plugin.main([*argv, "-n", "team", "--name", "mine"]) == 0
    made = json.loads((kubectl / "made").read_text())
    assert (made["spec"], made["metadata"]) == (spec, {"name": "mine"})
    jsonschema.validate(made, _schema(made["kind"]))
    assert _calls(kubectl) == [["--namespace=team", "create", "-f", "-"]]


@pytest.mark.parametrize(("phases", "code"), [("Created Checkpointed", 0), ("Failed", 1), ("Checkpointing", 124)])
def test_the_plugin_waits_and_says_how_it_ended(
    kubectl: Path, capsys: pytest.CaptureFixture[str], phases: str, code: int
) -> None:
    (kubectl / "phases").write_text(phases)
    assert plugin.main(["checkpoint", "web-0", "--wait", "--timeout", "2"]) == code
    if code != 124:
        assert "Ready=True Because: so it is" in capsys.readouterr().out


def test_the_plugin_waits_until_another_node_can_have_the_data(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that was drained may be switched off at once."""
    argv = ["checkpoint", "web-0", "--migrate", "--claim", "c", "--wait", "--timeout"]
    (kubectl / "phases").write_text("Submitted/Copying")
    assert plugin.main([*argv, "2"]) == 124
    assert "web-0: Submitted, Copying: so far\n" in capsys.readouterr().err
    (kubectl / "phases").write_text("Submitting Submitted/Copying Submitted/Stored")
    assert plugin.main([*argv, "30"]) == 0
    assert "Stored=True Stored: so far" in capsys.readouterr().out


def test_the_plugin_says_how_one_stands(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "made").write_text(json.dumps({"kind": "Restore", "metadata": {"name": "one"}}))
    assert plugin.main(["status", "restore", "one"]) == 0
    assert capsys.readouterr().out == "Restore one: Created\n  Ready=True Because: so it is\n"
    assert plugin.main(["status"]) == 0
    assert _calls(kubectl)[-1] == ["get", "checkpoints.grit.dev,restores.grit.dev"]


@pytest.mark.parametrize(
    ("phases", "code", "word", "kept"),
    [
        ("Pending Checkpointed Submitted/Stored", 0, "--claim=c", {"volumeClaim": {"claimName": "c"}}),
        ("Failed", 1, "--claim=c", {"volumeClaim": {"claimName": "c"}}),
        ("Submitted/DataLost", 1, "--claim=c", {"volumeClaim": {"claimName": "c"}}),
        (
            "Submitted/Copying Submitted/Stored",
            0,
            "--registry=r:5000/cp",
            {"registry": {"reference": "r:5000/cp/default"}},
        ),
    ],
)
def test_the_plugin_drains_what_its_owner_replaces(
    kubectl: Path, capsys: pytest.CaptureFixture[str], phases: str, code: int, word: str, kept: Object
) -> None:
    (kubectl / "phases").write_text(phases)
    listed = [
        objects.pod("web-0"), objects.pod("alone", ownerReferences=[]), objects.pod("going", deletionTimestamp="now"),
        objects.pod("agent", ownerReferences=[{**objects.OWNER, "kind": "DaemonSet"}]),
    ]  # fmt: skip
    (kubectl / "pods").write_text(json.dumps({"items": listed}))
    assert plugin.main(["drain", "n1", word, "--timeout", "30"]) == code
    calls = _calls(kubectl)
    assert calls[0] == ["cordon", "n1"]
    assert "spec.nodeName=n1,status.phase=Running" in calls[1]
    assert [call for call in calls if "create" in call] == [["--namespace=default", "create", "-f", "-"]]
    made = json.loads((kubectl / "made").read_text())
    assert made["spec"] == {"podName": "web-0", "autoMigration": True, **kept}
    jsonschema.validate(made, _schema("Checkpoint"))
    assert ("has stayed" if code else "now kubectl drain n1") in capsys.readouterr().err


def test_the_documentation_has_every_reason() -> None:
    """And says nothing of reasons that there are not."""
    sources = ROOT / "grit_runtime/agent"
    text = "".join(
        (sources / f"{name}.py").read_text() for name in ("checkpoints", "restores", "pods", "node", "stores")
    )
    known = set(re.findall(r'"([A-Z][a-z]+(?:[A-Z][a-z]+)+|Copying|Captured|Capturing|Stored)"', text)) - {
        "PodScheduled"
    }
    table = (ROOT / "docs/kubernetes.md").read_text().partition("## What the status says")[2].partition("\n## ")[0]
    documented = {
        word for line in table.splitlines() if line.startswith("|") for word in re.findall(r"`([A-Z]\w+)`", line)
    }
    assert documented - {"ColdStart", "Ready"} == known - {"ColdStart"}
