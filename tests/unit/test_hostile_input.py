"""Whatever is in a file that somebody else wrote: it is read, or refused by an error of ours. Nothing else is raised.

`examples` beside a test are inputs that were found so, or that are known to have hurt others; hypothesis runs each
every time.
"""

import contextlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grit_runtime import config
from grit_runtime.checkpoint import archive, integrity, manifest, scan, signature
from grit_runtime.criu import credentials
from grit_runtime.errors import CheckpointError, ConfigError, GritError, UsageError
from grit_runtime.oci import argv, bundle
from grit_runtime.workflow import grants, privileges, trust
from tests.fuzz.targets import SEEDS, read_everything

_LOAD = int(os.environ.get("GRIT_TEST_LOAD", "1"))
_MORE = settings(max_examples=200 * _LOAD, deadline=2000)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["..", "/", "\0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


# --- CRIU's images ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint() -> Iterator[Path]:
    """A directory for one image after another."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat"]), st.integers(0, 400), st.binary(min_size=1, max_size=9)
    ),
    max_size=4,
)


def _edited(data: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    for how, at, more in edits:
        place = min(at, len(data))
        if how == "set":
            data = data[:place] + more + data[place + len(more) :]
        elif how == "cut":
            data = data[:place]
        elif how == "insert":
            data = data[:place] + more + data[place:]
        else:
            data = data + data[place:] * 3
    return data


def test_the_seeds_are_a_checkpoint_that_can_be_read(checkpoint: Path) -> None:
    for name, data in SEEDS.items():
        (checkpoint / name).write_bytes(data)
    read_everything(checkpoint)


@settings(max_examples=600 * _LOAD, deadline=2000)
@given(st.sampled_from(sorted(SEEDS)), _EDITS)
@example("pstree.img", [("set", 8, b"\xff\xff\xff\xff")])
@example("pstree.img", [("set", 12, b"\x08\xff\xff\xff\xff\xff\xff\xff\xff")])
@example("inventory.img", [("cut", 8, b"x")])
@example("mountpoints-3.img", [("set", 0, b"\0\0\0\0")])
@example("core-1.img", [("cut", 0, b"x")])
def test_no_bytes_in_an_image_do_more_than_be_refused(
    checkpoint: Path, name: str, edits: list[tuple[str, int, bytes]]
) -> None:
    for other, data in SEEDS.items():
        (checkpoint / other).write_bytes(_edited(data, edits) if other == name else data)
    with contextlib.suppress(CheckpointError):
        read_everything(checkpoint)


# --- what callers and sites write ------------------------------------------------------------------------------------

_WORDS = st.one_of(
    st.sampled_from(
        ["--root", "--root=/x", "-root", "--log", "--log-format=json", "--", "-", "--debug", "create", "restore", "--b"]
    ),
    st.text(max_size=6),
)  # fmt: skip


@_MORE
@given(st.lists(_WORDS, max_size=8))
@example(["--root"])
@example(["--root", "--", "create"])
@example(["\udcff", "--\0"])
def test_no_arguments_do_more_than_be_refused(words: list[str]) -> None:
    with contextlib.suppress(UsageError):
        invocation = argv.scan(words)
        for verb, spec in (("create", argv.CREATE), ("restore", argv.RESTORE), ("checkpoint", argv.CHECKPOINT)):
            with contextlib.suppress(UsageError):
                argv.container_id(verb, argv.read_flags(verb, invocation.args, spec))


@_MORE
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode(errors="replace"))))
@example(b"a: &a [*a, *a]")
@example(b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]")
@example(b"[" * 5000)
@example(b"!!python/object/apply:os.system ['true']")
@example(b"trust: {owners: [-1]}")
def test_no_configuration_does_more_than_be_refused(text: bytes) -> None:
    with contextlib.suppress(ConfigError):
        config.parse(text, "config.yaml")


@_MORE
@given(st.dictionaries(st.sampled_from(["process", "linux", "mounts", "annotations", "root", "hooks"]), _JSON), _JSON)
def test_no_config_json_does_more_than_be_refused(data: dict[str, Any], deep: Any) -> None:
    linux = {"namespaces": deep, "seccomp": deep, "maskedPaths": deep, "readonlyPaths": deep, "devices": deep}
    process = {"user": deep, "capabilities": {"bounding": deep, "permitted": deep}, "noNewPrivileges": deep}
    for config_json in (data, {"linux": linux, "process": process, "mounts": [deep, {"options": deep}]}):
        with contextlib.suppress(GritError):
            made = bundle.parse("/b", json.dumps(config_json).encode())
            found = credentials.Credentials(
                pid=1, users=frozenset({0}), groups=frozenset(), supplementary=frozenset({7}), capabilities=1 << 70,
                bounding=-1 & 0xFF, no_new_privileges=False, seccomp=0, lsm="x",
            )  # fmt: skip
            privileges.problems(made, [found], {"pid": 1}, made.config)
            grants.covered_before(made.config)
            grants.options(made, {})
            trust.wrong_namespace(made.annotations, "x", {})
            trust.foreign_criu_options(made.annotations, "/run", "refuse")


# --- what lies in a checkpoint ---------------------------------------------------------------------------------------


@_MORE
@given(_JSON, _JSON)
@example({"format": 1}, None)
@example({"format": True}, None)
@example({"format": 1, "files": [{"name": "a", "bytes": -1, "checksums": []}], "machine": {"architecture": 1}}, None)
@example({"format": 1, "files": [{"name": "a", "bytes": 1e400}], "machine": {"architecture": "x"}}, None)
def test_no_manifest_does_more_than_be_refused(data: Any, inner: Any) -> None:
    whole = {"format": 1, "files": [inner, {"name": "a", "bytes": inner}], "machine": {"architecture": "x"}}
    known = {**whole, "files": [], "container": inner, "spec": inner, "checksums": inner, "mounts": inner}
    for document in (data, whole, known):
        with contextlib.suppress(CheckpointError):
            found = manifest.checked("grit.json", json.loads(json.dumps(document)))
            integrity.recorded(found.data, "grit.json")
            trust.namespace_of(found)
            grants.covered_before(trust.spec_of(found))
            found.entries("mounts")


_TAR = io.BytesIO()
with tarfile.open(fileobj=_TAR, mode="w") as _tar:
    for _name in ("checkpoint/inventory.img", "checkpoint/pages-1.img", "spec.dump"):
        _entry = tarfile.TarInfo(_name)
        _entry.size = 600
        _entry.pax_headers = {"SCHILY.xattr.user.x": "y"}
        _tar.addfile(_entry, io.BytesIO(b"x" * 600))


@settings(max_examples=300 * _LOAD, deadline=2000)
@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "cut", "insert"]), st.integers(0, 6000), st.binary(min_size=1, max_size=12)),
        max_size=4,
    )
)
@example([("set", 0, b"../../../x\0\0")])
@example([("set", 156, b"2")])
@example([("set", 124, b"77777777777\0")])
@example([("set", 124, b"\x80\0\0\0\0\xff\xff\xff\xff\xff\xff\xff")])
def test_no_archive_does_more_than_be_refused(checkpoint: Path, edits: list[tuple[str, int, bytes]]) -> None:
    base = Path(tempfile.mkdtemp(dir=checkpoint))
    file, target = base / "a.tar", base / "out"
    file.write_bytes(_edited(_TAR.getvalue(), edits))
    target.mkdir()
    scan.scan(str(file), lambda *_: 10, max_bytes=1 << 20, max_entries=50, max_kept=1 << 16)
    with contextlib.suppress(CheckpointError):
        archive.unpack(str(file), str(target), max_bytes=1 << 20, max_entries=50)
    assert {path.name for path in base.iterdir()} == {"a.tar", "out"}
    assert all(path.is_dir() or (path.is_file() and not path.is_symlink()) for path in target.rglob("*"))
    shutil.rmtree(base)


@_MORE
@given(st.binary(max_size=120), st.lists(st.binary(max_size=60), max_size=3))
@example(b"grit-runtime-signature 1\n", [])
@example(b"grit-runtime-signature 1\ned25519 AAAA AAAA\n{}", [])
@example(b"grit-runtime-signature 1\ned25519 = =\n{}", [])
def test_no_signature_does_more_than_be_refused(checkpoint: Path, raw: bytes, words: list[bytes]) -> None:
    base = Path(tempfile.mkdtemp(dir=checkpoint))
    for data in (raw, b"grit-runtime-signature 1\ned25519 " + b" ".join(words)):
        (base / "grit.sig").write_bytes(data)
        with pytest.raises(CheckpointError):
            signature.require_directory(str(base), (), 1)
    shutil.rmtree(base)
