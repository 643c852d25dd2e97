"""Sets as OCI images: how they are laid out. References, and who we are to a registry."""

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.agent import credentials, image, imagecheck, reference
from grit_runtime.agent.credentials import Credentials
from grit_runtime.agent.image import Facts, Index, Layer, Part
from grit_runtime.agent.reference import Allowed, NoReferenceError, Repository
from grit_runtime.errors import CheckpointError, ConfigError

FACTS = Facts(
    created="2026-01-01T00:00:00Z", uid="u", namespace="default", pod="web-0", pod_uid="p", containers=("a", "b"),
    architecture="aarch64",
)  # fmt: skip
_FILES = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b"]), st.text("xyz", min_size=1, max_size=3)).map("/checkpoint/".join),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3000)), max_size=3),
    min_size=1,
    max_size=8,
)


def _ranges(gaps: list[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
    made, end = [], 0
    for gap, size in gaps:
        made.append((end + gap, size))
        end += gap + size
    return end, made


@settings(max_examples=60, deadline=None, derandomize=True)
@given(_FILES, st.integers(100, 2000))
def test_every_byte_that_is_no_hole_is_in_one_layer_once(files: dict[str, list[tuple[int, int]]], piece: int) -> None:
    found = {path: _ranges(gaps) for path, gaps in files.items()}
    index = image.plan({path: size for path, (size, _) in found.items()}, {p: r for p, (_, r) in found.items()}, piece)
    seen: dict[str, set[int]] = {path: set() for path in files}
    for layer in index.layers:
        assert layer.data <= piece
        assert len({image.container(part.path) for part in layer.parts}) == 1
        data = b"".join(one if isinstance(one, bytes) else b"\1" * one.size for one in image.segments(index, layer))
        assert len(data) == layer.size
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member, part in zip(tar, layer.parts, strict=True):
                assert (member.offset_data, member.size, member.type) == (part.at, part.size, tarfile.REGTYPE)
                assert member.name.partition(".part-")[0] == part.path
        for part in layer.parts:
            bytes_ = set(range(part.offset, part.offset + part.size))
            assert not bytes_ & seen[part.path]
            seen[part.path] |= bytes_
    for path, (_, ranges) in found.items():
        assert seen[path] == {number for offset, size in ranges for number in range(offset, offset + size)}
    _require_read_back(index)


def _require_read_back(index: Index) -> None:
    digests = [f"sha256:{number:064x}" for number in range(len(index.layers))]
    config = image.config(index, digests, FACTS)
    described, layers = imagecheck.manifest(image.manifest(index, digests, (digests[0], len(config)), FACTS))
    assert described == (digests[0], len(config))
    assert imagecheck.index(config, layers, ["a", "b"]) == index


def test_what_lies_beside_a_large_file_changes_nothing_of_its_layers() -> None:
    def layers(small: int) -> list[Layer]:
        index = image.plan(
            {"a/a": small, "a/b": 350, "a/c": 9}, {"a/a": [(0, small)], "a/b": [(0, 350)], "a/c": [(0, 9)]}, 100
        )
        return [layer for layer in index.layers if layer.parts[0].path == "a/b"]

    assert layers(10)[:3] == layers(99)[:3]
    assert [layer.data for layer in layers(10)] == [100, 100, 100, 59]


def test_a_set_of_any_size_has_a_manifest_that_registries_take() -> None:
    size = 2 << 40
    index = image.plan({"a/checkpoint/pages": size}, {"a/checkpoint/pages": [(0, size)]})
    assert len(index.layers) <= image.MOST_LAYERS
    digests = [f"sha256:{number:064x}" for number in range(len(index.layers))]
    assert len(image.manifest(index, digests, (digests[0], 1), FACTS)) < imagecheck.MOST_BYTES
    thirty = image.plan({"a/p": 30 << 30}, {"a/p": [(0, 30 << 30)]})
    assert len(thirty.layers) == 240


def test_what_is_said_of_a_set() -> None:
    index = Index({"a/f": 1}, (Layer((Part("a/f", 0, 1, 512),), 2048),))
    document = json.loads(image.manifest(index, [f"sha256:{'0' * 64}"], (f"sha256:{'1' * 64}", 2), FACTS))
    assert document["annotations"][image.CONTAINER] == "a,b"
    assert document["annotations"]["org.criu.checkpoint.pod.id"] == "p"
    assert "org.criu.checkpoint.criu.version" not in document["annotations"], "it isn't known"
    assert document["layers"][0]["annotations"] == {image.CONTAINER: "a"}
    config = json.loads(image.config(index, [f"sha256:{'0' * 64}"], FACTS))
    assert (config["architecture"], config["os"]) == ("arm64", "linux")
    assert config["rootfs"]["diff_ids"] == [f"sha256:{'0' * 64}"]


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": 1},
        {"mediaType": "application/vnd.oci.image.index.v1+json"},
        {"config": {"mediaType": image.CONFIG, "digest": f"sha256:{'0' * 64}", "size": 1 << 30}},
        {"config": {"mediaType": "application/json", "digest": f"sha256:{'0' * 64}", "size": 1}},
        {"layers": [{"mediaType": image.LAYER + "+gzip", "digest": f"sha256:{'0' * 64}", "size": 1}]},
        {"layers": [{"mediaType": image.LAYER, "digest": "sha256:../../x", "size": 1}]},
        {"layers": [{"mediaType": image.LAYER, "digest": f"sha256:{'0' * 64}", "size": True}]},
        {"layers": [{}] * (image.MOST_LAYERS + 1)},
        {"layers": None},
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(change: dict[str, Any]) -> None:
    index = Index({"a/f": 1}, (Layer((Part("a/f", 0, 1, 512),), 2048),))
    document = json.loads(image.manifest(index, [f"sha256:{'0' * 64}"], (f"sha256:{'1' * 64}", 2), FACTS))
    imagecheck.manifest(json.dumps(document).encode())
    with pytest.raises(CheckpointError, match="no checkpoint that can be restored"):
        imagecheck.manifest(json.dumps({**document, **change}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{" * 100_000, b"\xff", b'{"grit": {"format": 1}}'])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint that can be restored"):
        imagecheck.manifest(data)
    with pytest.raises(CheckpointError, match="no checkpoint that can be restored"):
        imagecheck.index(data, [], ["a"])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.sampled_from(["a/f", "a/g/h", "../x", "b"]) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["files", "layers"]), inner, max_size=2)
    ),
    max_leaves=20,
)
_INDEX = st.fixed_dictionaries({
    "format": st.just(image.FORMAT),
    "files": _JSON | st.lists(st.tuples(st.sampled_from(["a/f", "a/g", "a/f/x"]), st.integers(0, 9)), max_size=3),
    "layers": _JSON | st.lists(st.lists(st.tuples(*[st.integers(-1, 9)] * 4), max_size=2), max_size=2),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(_INDEX, st.integers(0, 2))
def test_whatever_is_in_an_index_no_byte_goes_where_it_should_not(found: Any, count: int) -> None:
    try:
        made = imagecheck.index(json.dumps({"grit": found}).encode(), [(f"sha256:{'0' * 64}", 5)] * count, ["a"])
    except CheckpointError:
        return
    seen: set[tuple[str, int]] = set()
    for layer in made.layers:
        for part in layer.parts:
            assert part.at + part.size <= layer.size
            assert part.offset + part.size <= made.files[part.path]
            assert part.path.startswith("a/")
            assert ".." not in part.path
            bytes_ = {(part.path, part.offset + number) for number in range(part.size)}
            assert not bytes_ & seen
            seen |= bytes_


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("registry.example.com", Allowed(host="registry.example.com")),
        ("r.example.com:5000/team/cp", Allowed(host="r.example.com:5000", prefix="team/cp")),
        ("http://registry.example.com/", Allowed(host="registry.example.com", plain=True)),
        ("localhost:5000", Allowed(host="localhost:5000", plain=True)),
        ("127.0.0.1:5000/x", Allowed(host="127.0.0.1:5000", prefix="x", plain=True)),
        ("[::1]:5000", Allowed(host="[::1]:5000", plain=True)),
        ("https://localhost:5000", Allowed(host="localhost:5000")),
    ],
)  # fmt: skip
def test_registries_of_the_configuration(word: str, expected: Allowed) -> None:
    assert reference.allowed(word) == expected


@pytest.mark.parametrize(
    "word", ["", "/x", "ftp://host", "host/Upper", "host/../x", "user@host", "host:port/x", "host/x?y"]
)
def test_what_is_no_registry_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--registry"):
        reference.allowed(word)


KNOWN = (Allowed(host="r:5000", prefix="cp"), Allowed(host="other"))


@pytest.mark.parametrize(
    "said", ["r:5000/cp/default", "r:5000/cp/default/web:tag", "r:5000/cp/default/a/b", "other/default/x"]
)
def test_a_namespace_has_what_lies_below_its_name(said: str) -> None:
    found = reference.repository(said, "default", KNOWN)
    assert said.startswith(str(found))


@pytest.mark.parametrize(
    "said",
    [
        "r:5000/cp/other/web", "r:5000/cp/default2", "r:5000/cp", "r:5000/default/web", "r:5001/cp/default/web",
        "elsewhere/cp/default/web", "other/cp/default/web", "r:5000/cp/default/../other", "default/web", "",
        "r:5000/cp/default/web@sha256:0", "r:5000/cp/default/web:" + "t" * 129, "r:5000/cp/default/web\n",
        "r:5000/" + "a" * 600,
    ],
)  # fmt: skip
def test_and_nothing_else(said: str) -> None:
    with pytest.raises(NoReferenceError):
        reference.repository(said, "default", KNOWN)


def test_a_prefix_is_no_namespace_of_a_shorter_one() -> None:
    both = (Allowed(host="r"), Allowed(host="r", prefix="cp"))
    assert reference.repository("r/cp/team/web", "team", both).path == "cp/team/web"
    assert reference.repository("r/team/web", "team", both).path == "team/web"
    with pytest.raises(NoReferenceError):
        reference.repository("r/cp/team/web", "cp", both)


def test_a_pinned_reference_has_a_digest() -> None:
    digest = f"sha256:{'a' * 64}"
    assert reference.pinned(f"r:5000/cp/default/web@{digest}") == ("r:5000/cp/default/web", digest)
    for wrong in ("r:5000/cp/default/web:tag", f"r:5000/cp/../x@{digest}", "r/x@sha256:00", ""):
        with pytest.raises(NoReferenceError):
            reference.pinned(wrong)


def _encoded(word: str) -> str:
    return base64.b64encode(word.encode()).decode()


def _known(base: Path, auths: Any, path: str = "cp/default/web", host: str = "r:5000") -> Credentials:
    (base / "config.json").write_text(json.dumps({"auths": auths}))
    return credentials.of(Repository(host=host, path=path), {"DOCKER_CONFIG": str(base)})


def test_the_credentials_of_the_longest_path_are_taken(tmp_path: Path) -> None:
    auths = {
        "https://r:5000/v2/": {"auth": _encoded("host:a:b")},
        "r:5000/cp": {"username": "team", "password": "p"},
        "r:5000/cp/default/web/other": {"username": "no", "password": "p"},
        "other": {"identitytoken": "refresh"},
    }
    assert _known(tmp_path, auths) == Credentials(username="team", password="p")
    found = _known(tmp_path, auths, path="x")
    assert (found.username, found.password) == ("host", "a:b")
    assert found.basic() == f"Basic {_encoded('host:a:b')}"
    assert "a:b" not in repr(found)
    assert _known(tmp_path, auths, host="other").identity == "refresh"
    assert _known(tmp_path, auths, host="third") == Credentials()
    assert _known(tmp_path, auths, host="third").basic() == ""


def test_where_the_credentials_are() -> None:
    assert credentials.path({}) == ""
    assert credentials.path({"DOCKER_CONFIG": "/d"}) == "/d/config.json"
    assert credentials.path({"DOCKER_CONFIG": "/d", "REGISTRY_AUTH_FILE": "/f"}) == "/f"
    assert credentials.of(Repository(host="h", path="p"), {}) == Credentials()


@pytest.mark.parametrize("auths", [{"r:5000": {"auth": "?"}}, {"r:5000": {"username": 7}}])
def test_credentials_that_can_t_be_are_said(tmp_path: Path, auths: Any) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        _known(tmp_path, auths)


def test_a_file_of_credentials_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the registries' credentials"):
        credentials.of(Repository(host="h", path="p"), {"DOCKER_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (['Basic realm="r"'], [("basic", {"realm": "r"})]),
        (
            ['Bearer realm="https://a/token",service="s, t",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": "https://a/token", "service": "s, t", "scope": "repository:a/b:pull,push"})],
        ),
        (['Negotiate, Basic realm="a \\"b\\""'], [("negotiate", {}), ("basic", {"realm": 'a "b"'})]),
        (["Bearer realm=x", "Basic realm=y"], [("bearer", {"realm": "x"}), ("basic", {"realm": "y"})]),
        ([""], []),
        (["=,="], []),
    ],
)
def test_challenges(header: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert credentials.challenges(header) == expected


@given(st.lists(st.text(max_size=200), max_size=3))
def test_any_challenge_is_read_in_time(header: list[str]) -> None:
    assert isinstance(credentials.challenges(header), list)
