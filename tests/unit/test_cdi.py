"""CDI: what a container asks for, which specs are valid, and what is said of those that aren't."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime import cdi
from grit_runtime.cdi import edits
from grit_runtime.cdi import spec as specs
from grit_runtime.errors import CdiError

VALID = {"cdiVersion": "0.5.0", "kind": "v.com/d", "devices": [{"name": "a", "containerEdits": {"env": ["A=1"]}}]}


def _asking(visible: str | None = None, **annotations: str) -> dict[str, Any]:
    env = ["PATH=/bin"] + ([f"NVIDIA_VISIBLE_DEVICES={visible}"] if visible is not None else [])
    return {"process": {"env": env}, "annotations": {f"cdi.k8s.io/{k}": v for k, v in annotations.items()}}


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        (_asking(), []),
        (_asking(""), []),
        (_asking("void"), []),
        (_asking("none"), []),
        (_asking("all"), ["nvidia.com/gpu=all"]),
        (_asking("0, 2"), ["nvidia.com/gpu=0", "nvidia.com/gpu=2"]),
        (_asking("0,all"), ["nvidia.com/gpu=all"]),
        (_asking("0:1"), ["nvidia.com/gpu=0:1"]),
        (_asking("GPU-5f1c,0,0"), ["nvidia.com/gpu=GPU-5f1c", "nvidia.com/gpu=0"]),
        (_asking("nvidia.com/gpu=3"), ["nvidia.com/gpu=3"]),
        (_asking("0", b="x.com/y=2,x.com/y=1", a="x.com/y=0"), ["x.com/y=0", "x.com/y=2", "x.com/y=1"]),
        ({"process": {"env": ["NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_VISIBLE_DEVICES=void"]}}, []),
        ({"process": None, "annotations": ["cdi.k8s.io/a"]}, []),
        ({}, []),
    ],
)
def test_what_a_container_asks_for(config: dict[str, Any], devices: list[str]) -> None:
    assert cdi.requested(config) == devices


@pytest.mark.parametrize("word", ["../../etc", "a b", "x=y", "0\n1", "ä", "v.com/d=", "-"])
def test_what_is_no_name_is_refused(word: str) -> None:
    with pytest.raises(CdiError, match="is no name"):
        cdi.requested(_asking(word))


def test_a_tenant_cannot_ask_for_too_much() -> None:
    with pytest.raises(CdiError, match="1024 are the most"):
        cdi.requested(_asking(",".join(map(str, range(5000)))))


def test_a_device_may_be_named_by_a_number_in_yaml() -> None:
    text = b"cdiVersion: 0.5.0\nkind: v.com/d\ndevices:\n- name: 0\n  containerEdits: {env: [A=1], mounts: null}\n"
    assert list(specs.parse("x.yaml", text).devices) == ["0"]


def _spec(**more: Any) -> bytes:
    return json.dumps({**VALID, **more}).encode()


def _device(**edits: Any) -> bytes:
    return _spec(cdiVersion="1.1.0", devices=[{"name": "a", "containerEdits": edits}])


BAD = {
    "nothing": (b"", "top level"),
    "no JSON or YAML": (b"{", "can't be parsed"),
    "a list": (b"[]", "top level"),
    "a key twice": (b"kind: a\nkind: b\n", "stands twice"),
    "an object of Python": (b"!!python/object/apply:os.system [id]", "can't be parsed"),
    "aliases that unfold": (
        b"a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)),
        "unfolds to too much",
    ),
    "depth": (b"[" * 5000 + b"]" * 5000, "can't be parsed"),
    "a bad version": (_spec(cdiVersion="7"), "unknown cdiVersion '7'"),
    "a bad kind": (_spec(kind="nvidia"), "kind 'nvidia' is not vendor/class"),
    "a bad name": (_spec(devices=[{"name": "a b", "containerEdits": {"env": ["A=1"]}}]), "invalid name of a device"),
    "a name twice": (_spec(devices=VALID["devices"] * 2), "device a stands twice"),
    "no devices": (_spec(devices=[]), "devices"),
    "no edits": (_device(), "has no edits"),
    "a new field in an old version": (
        _spec(devices=[{"name": "a", "containerEdits": {"additionalGids": [5]}}]),
        "needs cdiVersion 0.7.0",
    ),
    "an unknown hook": (_device(hooks=[{"hookName": "later", "path": "/x"}]), "hookName"),
    "a negative gid": (_device(additionalGids=[-1]), "additionalGids"),
    "text for a number": (_device(deviceNodes=[{"path": "/dev/x", "major": "1"}]), "major"),
    "a closID that is a path": (_device(intelRdt={"closID": "a/b"}), "closID"),
    "a network interface twice": (
        _device(netDevices=[{"hostInterfaceName": "e", "name": n} for n in ("a", "b")]),
        "one hostInterfaceName",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_spec_is_one_line_that_names_it(case: str) -> None:
    text, why = BAD[case]
    with pytest.raises(CdiError) as failed:
        specs.parse("/etc/cdi/x.yaml", text)
    assert why in str(failed.value)
    assert "/etc/cdi/x.yaml" in str(failed.value)
    assert len(str(failed.value)) < 800


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_no_bytes_do_more_than_be_refused(text: bytes) -> None:
    with contextlib.suppress(CdiError):
        specs.parse("x.yaml", text)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["cdiVersion", "kind", "devices", "containerEdits", "annotations"]), _json, _json)
def test_no_value_in_a_valid_spec_does_either(key: str, value: Any, inner: Any) -> None:
    for text in (_spec(**{key: value}), _device(env=inner, hooks=value), _device(mounts=[inner])):
        with contextlib.suppress(CdiError):
            made = specs.parse("x.json", text)
            edits.apply({}, [made.edits, *made.devices.values()], edits.look)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    (tmp_path / "c.yaml").mkdir()
    (tmp_path / "d.json").write_bytes(_spec())
    assert cdi.inject({}, ["v.com/d=a"], [str(tmp_path)])["process"]["env"] == ["A=1"]
    with pytest.raises(CdiError, match="no regular file"):
        cdi.inject({}, ["v.com/d=b"], [str(tmp_path)])


def test_who_asks_for_what_is_not_there_is_told_what_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(_spec())
    with pytest.raises(CdiError, match=r"unresolvable CDI devices v\.com/d=z \(known are v\.com/d=a\)"):
        cdi.inject({}, ["v.com/d=z"], [str(tmp_path)])
    with pytest.raises(CdiError, match=r"there is no spec of w\.com/d in"):
        cdi.inject({}, ["w.com/d=z"], [str(tmp_path), "/nowhere"])
