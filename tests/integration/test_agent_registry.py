"""Sets to Debian's docker-registry on loopback and back, through a proxy that cuts connections; and skopeo's view."""

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from grit_runtime.agent import copies, image, pull, sets, transfer
from grit_runtime.agent.checkpoints import Data
from grit_runtime.agent.credentials import Credentials
from grit_runtime.agent.errors import TransferError
from grit_runtime.agent.exchange import Patience
from grit_runtime.agent.reference import Repository
from grit_runtime.agent.sets import Place, Progress
from grit_runtime.agent.transfer import Remote
from grit_runtime.checkpoint import integrity, manifest
from grit_runtime.errors import CheckpointError
from tests.cutter import DOWN, UP, Cutter
from tests.registry import PASSWORD, DockerRegistry
from tests.requirements import ROOT
from tests.tokens import TokenServer, certificate

pytestmark = pytest.mark.needs("docker-registry")

NAMES = ["back", "front"]
PIECE = 64 << 10
PATIENCE = Patience(attempts=3, pause=0.02, longest=0.1, connect=2, silent=3)
ONCE = Patience(attempts=1, pause=0.02, longest=0.1, connect=2, silent=3)
FACTS = image.Facts(
    created="2026-01-01T00:00:00Z", uid="u1", namespace="default", pod="web-0", pod_uid="p1", containers=tuple(NAMES),
    architecture="x86_64", kernel="6.1", criu="4.2", images=("docker.io/library/busybox:1",),
)  # fmt: skip
_PATHS = itertools.count()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A set of two containers: files of odd sizes, one with holes, an empty one, one below a directory."""
    place = Place(root=str(tmp_path_factory.mktemp("node")), namespace="default", name="one", uid="u1")
    sets.claim(place)
    for name in NAMES:
        images = Path(place.path) / name / "checkpoint"
        (images / "below").mkdir(parents=True)
        (images / "pages-1.img").write_bytes(random.randbytes(3 * PIECE + 1))
        (images / "core-1.img").write_bytes(random.randbytes(777))
        (images / "empty.img").touch()
        (images / "below/file").write_bytes(b"below")
        with (images / "pages-2.img").open("wb") as stream:
            stream.truncate(4 << 20)
            stream.seek(1 << 20)
            stream.write(random.randbytes(5000))
        listed = ["pages-1.img", "pages-2.img", "core-1.img", "empty.img"]
        sizes = {file: (images / file).stat().st_size for file in listed}
        sums = integrity.of_files(str(images), sizes, {}, 1)
        data = {
            "machine": {"architecture": "x86_64"},
            "files": [{"name": file, "bytes": size, "checksums": sums[file]} for file, size in sizes.items()],
            "checksums": {"algorithm": integrity.ALGORITHM, "chunk": integrity.CHUNK},
        }
        (images / "grit.json").write_bytes(manifest.encode(data))
    return place


@pytest.fixture
def target(captured: Place, tmp_path: Path) -> Place:
    return captured.below(str(tmp_path / "target"))


def _remote(host: str, patience: Patience = PATIENCE, path: str = "", **more: Any) -> Remote:
    repository = Repository(host=host, path=path or f"default/r{next(_PATHS)}", plain=True)
    return Remote(repository=repository, patience=patience, piece=PIECE, streams=3, **more)


def _tree(place: Place) -> dict[str, bytes]:
    base = Path(place.path)
    return {str(file.relative_to(base)): file.read_bytes() for file in base.rglob("*") if file.is_file()}


def _entries(place: Place) -> list[dict[str, object]]:
    return sets.contents(place, NAMES)


def _push(place: Place, remote: Remote) -> str:
    return transfer.push(place, _entries(place), remote, "one", FACTS, Progress())


def test_what_comes_back_is_what_was_pushed_holes_and_all(
    registry: DockerRegistry, captured: Place, target: Place
) -> None:
    remote, sent, got = _remote(registry.host), Progress(), Progress()
    digest = transfer.push(captured, _entries(captured), remote, "one", FACTS, sent)
    assert sent.done >= sent.total > 8 << 20
    pull.pull(remote, digest, target, _entries(captured), got)
    assert (got.done, got.total) == (sent.done, sent.total)
    assert _tree(target) == _tree(captured)
    assert sets.look(target, NAMES) is Data.WHOLE
    assert (Path(target.path) / "front/checkpoint/pages-2.img").stat().st_blocks * 512 < 1 << 20
    modes = {path.stat().st_mode & 0o777 for path in Path(target.path).rglob("*")}
    assert modes == {0o600, 0o700}
    assert {path.name for path in Path(target.path).iterdir()} == set(NAMES)
    assert {path.name for path in Path(target.root, "default").iterdir()} == {"one", ".grit-agent-one.json"}


@pytest.mark.needs("skopeo")
def test_skopeo_takes_it_for_an_image_and_copies_it(registry: DockerRegistry, captured: Place, tmp_path: Path) -> None:
    remote = _remote(registry.host)
    digest = _push(captured, remote)
    source = f"docker://{remote.repository}@{digest}"
    said = subprocess.run(
        ["skopeo", "inspect", "--tls-verify=false", source], check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(said)["Digest"] == digest
    assert json.loads(said)["Architecture"] == "amd64"
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", source], check=True, capture_output=True, text=True
    ).stdout
    document = json.loads(raw)
    assert document["annotations"]["org.criu.checkpoint.pod.name"] == "web-0"
    assert document["annotations"]["io.kubernetes.cri-o.annotations.checkpoint.name"] == "back,front"
    assert {layer["annotations"][image.CONTAINER] for layer in document["layers"]} == set(NAMES)
    assert max(layer["size"] for layer in document["layers"]) < PIECE + (20 << 10)
    mirror = f"127.0.0.1:{registry.port}/mirror/default"
    argv = ["skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"]
    subprocess.run([*argv, source, f"docker://{mirror}:one"], check=True, capture_output=True)
    there = captured.below(str(tmp_path / "mirrored"))
    pull.pull(_remote(registry.host, path="mirror/default"), digest, there, _entries(captured), Progress())
    assert _tree(there) == _tree(captured)
    # What others unpack has every file, a large one in parts.
    subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", source, f"dir:{tmp_path}/dir"], check=True, capture_output=True
    )
    for layer in document["layers"]:
        blob = tmp_path / "dir" / layer["digest"].removeprefix("sha256:")
        (tmp_path / "unpacked").mkdir(exist_ok=True)
        subprocess.run(["tar", "-xf", blob, "-C", tmp_path / "unpacked"], check=True)
    images = tmp_path / "unpacked/front/checkpoint"
    assert (
        b"".join(path.read_bytes() for path in sorted(images.glob("pages-1.img.part-*")))
        == (Path(captured.path) / "front/checkpoint/pages-1.img").read_bytes()
    )
    assert (images / "below/file").read_bytes() == b"below"


# Beyond what is sent, nothing is cut.
_BYTES = st.one_of(st.integers(0, 4096), st.integers(0, 500_000))
_FEW = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_FEW
@given(at=_BYTES, direction=st.sampled_from([UP, DOWN]), reset=st.booleans(), times=st.integers(1, 2))
@example(at=0, direction=UP, reset=False, times=1)
@example(at=300, direction=DOWN, reset=False, times=2)
def test_an_interruption_at_any_byte_is_no_end(
    registry: DockerRegistry,
    captured: Place,
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    direction: str,
    reset: bool,
    times: int,
) -> None:
    there = captured.below(str(tmp_path_factory.mktemp("target")))
    options = {"direction": direction, "budget": at, "reset": reset, "times": times}
    with Cutter(registry.port, **options) as proxy:  # type: ignore[arg-type]
        remote = _remote(proxy.host)
        digest = _push(captured, remote)
    with Cutter(registry.port, port=proxy.port, **options):  # type: ignore[arg-type]
        pull.pull(remote, digest, there, _entries(captured), Progress())
    assert _tree(there) == _tree(captured)


@_FEW
@given(at=_BYTES, reset=st.booleans())
@example(at=200_000, reset=True)
def test_what_has_arrived_is_not_sent_again(
    registry: DockerRegistry, captured: Place, tmp_path_factory: pytest.TempPathFactory, at: int, reset: bool
) -> None:
    """Each side is ended by the interruption, as by a kill; then another call goes on."""
    there = captured.below(str(tmp_path_factory.mktemp("target")))
    with Cutter(registry.port, direction=UP, budget=at, reset=reset) as proxy:
        remote = _remote(proxy.host, ONCE)
        first = _tried(lambda: _push(captured, remote))
        before = _linked(registry, remote)
    with Cutter(registry.port, port=proxy.port) as proxy:
        digest = _push(captured, remote)
        layers = _layers(registry, digest)
        if not first:
            missing = sum(size for name, size in layers.items() if name not in before)
            assert proxy.moved[UP] < missing + (24 << 10) + 2000 * len(layers)
    with Cutter(registry.port, port=proxy.port, direction=DOWN, budget=at, reset=reset) as proxy:
        expected = _entries(captured)
        if _tried(lambda: pull.pull(remote, digest, there, expected, Progress())):
            return
        assert sets.look(there, NAMES) is Data.NONE
        assert not os.path.exists(there.path)
        noted = _noted(there) & set(layers)
    with Cutter(registry.port, port=proxy.port) as proxy:
        pull.pull(remote, digest, there, expected, Progress())
        missing = sum(size for name, size in layers.items() if name not in noted)
        assert proxy.moved[DOWN] < missing + (24 << 10) + 2000 * len(layers)
    assert _tree(there) == _tree(captured)


def _tried(do: Any) -> bool:
    try:
        do()
    except TransferError:
        return False
    return True


def _linked(registry: DockerRegistry, remote: Remote) -> set[str]:
    base = registry.base / "data/docker/registry/v2/repositories" / remote.repository.path / "_layers/sha256"
    return {f"sha256:{path.parent.name}" for path in base.glob("*/link")}


def _layers(registry: DockerRegistry, digest: str) -> dict[str, int]:
    return {one["digest"]: one["size"] for one in json.loads(registry.blob(digest).read_bytes())["layers"]}


def _noted(place: Place) -> set[str]:
    journal = Path(sets.copying(place)) / ".grit-copied"
    return set(journal.read_text().splitlines()) if journal.exists() else set()


def test_what_is_there_as_a_whole_is_not_written_again(registry: DockerRegistry, captured: Place) -> None:
    """An agent that was ended before it could say so; the registry may have tags that can't be written twice."""
    remote = _remote(registry.host)
    digest = _push(captured, remote)
    with Cutter(registry.port) as proxy:
        again = _remote(proxy.host, path=remote.repository.path)
        assert _push(captured, again) == digest
        assert proxy.moved[UP] < 1000 * (len(_layers(registry, digest)) + 3)


def test_a_pull_goes_on_by_range_within_a_blob(registry: DockerRegistry, captured: Place, target: Place) -> None:
    remote = Remote(repository=Repository(host=registry.host, path="default/ranges", plain=True), streams=1)
    digest = transfer.push(captured, _entries(captured), remote, "one", FACTS, Progress())
    with Cutter(registry.port, direction=DOWN, budget=150_000, times=2, reset=False) as proxy:
        through = Remote(
            repository=Repository(host=proxy.host, path="default/ranges", plain=True), streams=1, patience=PATIENCE
        )
        pull.pull(through, digest, target, _entries(captured), Progress())
        assert proxy.cuts == 2
        # One layer a container, and no byte of them twice.
        assert proxy.moved[DOWN] < sum(_layers(registry, digest).values()) + (16 << 10)
    assert _tree(target) == _tree(captured)


def test_a_registry_that_is_killed_and_comes_back_in_the_middle(captured: Place, tmp_path: Path, target: Place) -> None:
    patience = Patience(attempts=20, pause=0.05, longest=0.3, connect=2, silent=3)
    with DockerRegistry(tmp_path / "registry") as made, Cutter(made.port) as proxy:

        def restart(direction: str, at: int) -> None:
            deadline = time.monotonic() + 10
            while proxy.moved[direction] < at and time.monotonic() < deadline:
                time.sleep(0.001)
            made.kill()
            time.sleep(0.2)
            made.start()

        remote = _remote(proxy.host, patience)
        other = threading.Thread(target=restart, args=(UP, 100_000))
        other.start()
        digest = _push(captured, remote)
        other.join()
        other = threading.Thread(target=restart, args=(DOWN, proxy.moved[DOWN] + 100_000))
        other.start()
        pull.pull(remote, digest, target, _entries(captured), Progress())
        other.join()
    assert _tree(target) == _tree(captured)


@pytest.mark.parametrize("what", ["flipped", "short", "long", "gone"])
def test_a_blob_that_is_another_is_refused(captured: Place, tmp_path: Path, target: Place, what: str) -> None:
    with DockerRegistry(tmp_path / "registry") as made:
        remote = _remote(made.host)
        digest = _push(captured, remote)
        name = max(_layers(made, digest), key=lambda one: _layers(made, digest)[one])
        file = made.blob(name)
        data = file.read_bytes()
        if what == "gone":
            file.unlink()
        else:
            changed = {"flipped": data[:-9] + b"x" + data[-8:], "short": data[:-1], "long": data + b"x"}[what]
            file.write_bytes(changed)
        made.kill()  # it remembers the sizes
        made.start()
        expected = {"flipped": "has other bytes", "gone": "404"}.get(what, "bytes")
        with pytest.raises((CheckpointError, TransferError), match=expected) as failed:
            pull.pull(remote, digest, target, _entries(captured), Progress())
        assert name in str(failed.value)
        assert "\n" not in str(failed.value)
    assert sets.look(target, NAMES) is Data.NONE
    assert not os.path.exists(target.path)


def test_another_image_under_the_digest_is_refused(captured: Place, tmp_path: Path, target: Place) -> None:
    with DockerRegistry(tmp_path / "registry") as made:
        remote = _remote(made.host)
        digest = _push(captured, remote)
        file = made.blob(digest)
        file.write_bytes(file.read_bytes().replace(b"web-0", b"web-1"))
        with pytest.raises((CheckpointError, TransferError)):
            pull.pull(remote, digest, target, _entries(captured), Progress())
    assert not os.path.exists(target.path)


_EVIL = {
    "up": "front/../../../evil",
    "absolute": "/tmp/evil",
    "another container": "other/checkpoint/grit.json",
    "beside": "evil",
    "dot": "front/./evil",
    "nothing": "front//evil",
    "long": f"front/{'n' * 256}",
    "NUL": "front/e\0vil",
    "lines": "front/e\nvil",
    "deep": "front/" + "d/" * 20 + "evil",
    "below a file": "front/checkpoint/grit.json/evil",
}


@pytest.mark.parametrize("name", _EVIL)
def test_no_name_in_an_image_leads_anywhere_else(
    registry: DockerRegistry, captured: Place, target: Place, name: str
) -> None:
    remote = _remote(registry.host)
    _refused(registry, remote, captured, target, lambda made: made["grit"]["files"][0].__setitem__(0, _EVIL[name]))
    assert list(Path(target.root).rglob("*evil*")) == []


_WRONG: dict[str, Any] = {
    "a file twice": lambda made: made["grit"]["files"].append(made["grit"]["files"][0]),
    "a larger file": lambda made: made["grit"]["files"][0].__setitem__(1, 1 << 60),
    "a smaller file": lambda made: made["grit"]["files"][-1].__setitem__(1, 1),
    "a negative size": lambda made: made["grit"]["files"][0].__setitem__(1, -1),
    "a part beyond its layer": lambda made: made["grit"]["layers"][0][0].__setitem__(3, 1 << 40),
    "a part before the one before": lambda made: made["grit"]["layers"][0].append([0, 0, 1, 0]),
    "a part of no file": lambda made: made["grit"]["layers"][0][0].__setitem__(0, 999),
    "bytes twice": lambda made: made["grit"]["layers"].__setitem__(1, made["grit"]["layers"][0]),
    "fewer layers": lambda made: made["grit"]["layers"].pop(),
    "a truth for a number": lambda made: made["grit"]["layers"][0][0].__setitem__(1, True),
    "another format": lambda made: made["grit"].__setitem__("format", 2),
    "no index": lambda made: made.pop("grit"),
}


@pytest.mark.parametrize("what", _WRONG)
def test_an_index_that_can_t_be_is_refused(registry: DockerRegistry, captured: Place, target: Place, what: str) -> None:
    _refused(registry, _remote(registry.host), captured, target, _WRONG[what])


def _refused(registry: DockerRegistry, remote: Remote, captured: Place, target: Place, change: Any) -> None:
    """Whoever can push makes an image of his own from ours, and every digest in it is right."""
    found = json.loads(registry.blob(_push(captured, remote)).read_bytes())
    config = json.loads(registry.blob(found["config"]["digest"]).read_bytes())
    change(config)
    data = json.dumps(config).encode()
    found["config"] |= {"digest": registry.put(remote.repository.path, data), "size": len(data)}
    digest = registry.put(remote.repository.path, json.dumps(found).encode(), image.MANIFEST)
    with pytest.raises(CheckpointError, match="no checkpoint that can be restored"):
        pull.pull(remote, digest, target, _entries(captured), Progress())
    assert sets.look(target, NAMES) is Data.NONE
    assert not os.path.exists(target.path)
    assert not os.path.exists(sets.copying(target))


def test_a_set_that_is_damaged_is_not_pushed(registry: DockerRegistry, captured: Place, tmp_path: Path) -> None:
    copy = captured.below(str(tmp_path))
    copies.copy(captured, copy, _entries(captured), Progress())
    file = Path(copy.path) / "front/checkpoint/pages-1.img"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    remote = _remote(registry.host)
    with pytest.raises(CheckpointError, match=r"is damaged: pages-1\.img"):
        _push(copy, remote)
    manifests = registry.base / "data/docker/registry/v2/repositories" / remote.repository.path / "_manifests"
    assert not manifests.exists()


def test_another_set_than_was_captured_is_not_restored(
    registry: DockerRegistry, captured: Place, target: Place
) -> None:
    remote = _remote(registry.host)
    digest = _push(captured, remote)
    expected = [{**entry, "digest": f"sha256:{'0' * 64}"} for entry in _entries(captured)]
    with pytest.raises(CheckpointError, match="not what was captured"):
        pull.pull(remote, digest, target, expected, Progress())
    assert not os.path.exists(target.path)


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    registry: DockerRegistry, captured: Place, target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = _remote(registry.host)
    digest = _push(captured, remote)
    real = os.statvfs(captured.root)

    class Full:
        f_bavail, f_frsize = 10, real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(CheckpointError, match="has room for 0"):
        pull.pull(remote, digest, target, _entries(captured), Progress())
    assert not os.path.exists(sets.copying(target))


def test_it_ends_when_it_is_told_to(registry: DockerRegistry, captured: Place, target: Place) -> None:
    remote, stopped = _remote(registry.host), Progress()
    digest = _push(captured, remote)
    stopped.stop.set()
    with pytest.raises(sets.Stopped):
        transfer.push(captured, _entries(captured), _remote(registry.host), "one", FACTS, stopped)
    with pytest.raises(sets.Stopped):
        pull.pull(remote, digest, target, _entries(captured), stopped)
    assert not os.path.exists(target.path)


@pytest.mark.parametrize("deletes", [True, False])
def test_an_image_is_deleted_where_the_registry_lets_us(captured: Place, tmp_path: Path, deletes: bool) -> None:
    with DockerRegistry(tmp_path / "registry", deletes=deletes) as made:
        remote = _remote(made.host)
        digest = _push(captured, remote)
        if not deletes:
            with pytest.raises(TransferError, match="405"):
                transfer.remove(remote, digest)
            return
        transfer.remove(remote, digest)
        transfer.remove(remote, digest)
        with pytest.raises(TransferError, match="404"):
            pull.pull(remote, digest, captured.below(str(tmp_path / "there")), _entries(captured), Progress())


# bcrypt of PASSWORD.
HTPASSWD = "agent:$2b$05$i2qApXuTKlGEdPJrR3wpLOrVLHZ/i8Vrn.zSQUy/WP52fOsS/X9aS\n"


@pytest.mark.parametrize(("known", "fine"), [(Credentials(username="agent", password=PASSWORD), True),
                                             (Credentials(username="agent", password="wrong"), False),
                                             (Credentials(), False)])  # fmt: skip
def test_a_registry_that_wants_a_password(
    captured: Place, tmp_path: Path, target: Place, known: Credentials, fine: bool
) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}}
    with DockerRegistry(tmp_path / "registry", auth=auth) as made:
        remote = _remote(made.host, credentials=known)
        if not fine:
            with pytest.raises(TransferError, match="401 Unauthorized") as failed:
                _push(captured, remote)
            assert "wrong" not in str(failed.value)
            return
        pull.pull(remote, _push(captured, remote), target, _entries(captured), Progress())
    assert _tree(target) == _tree(captured)


@pytest.mark.parametrize(
    ("known", "fine"),
    [
        (Credentials(username="agent", password=PASSWORD), True),
        (Credentials(identity="refresh"), True),
        (Credentials(username="agent", password="wrong"), False),
        (Credentials(token="made.up.token"), False),
    ],
    ids=["password", "identity token", "wrong password", "wrong token"],
)
def test_a_registry_that_wants_a_token(
    captured: Place, tmp_path: Path, target: Place, known: Credentials, fine: bool
) -> None:
    with TokenServer(tmp_path) as server, DockerRegistry(tmp_path / "registry", auth=server.auth) as made:
        remote = _remote(made.host, credentials=known)
        if not fine:
            with pytest.raises(TransferError, match="401"):
                _push(captured, remote)
            return
        digest = _push(captured, remote)
        assert 1 <= len(server.asked) <= 2, "one for all that is sent, side by side"
        assert server.asked[0]["scope"].startswith(f"repository:{remote.repository.path}:")
        pull.pull(remote, digest, target, _entries(captured), Progress())
    assert _tree(target) == _tree(captured)


_OVER_TLS = """
import sys
from tests.integration import test_agent_registry as t
host, base, place = sys.argv[1], sys.argv[2], t.Place(root=sys.argv[3], namespace="default", name="one", uid="u1")
remote = t.Remote(repository=t.Repository(host=host, path="default/tls"), patience=t.ONCE)
try:
    digest = t._push(place, remote)
    t.pull.pull(remote, digest, place.below(base), t._entries(place), t.Progress())
except t.TransferError as err:
    sys.exit(str(err))
"""


@pytest.mark.parametrize("known", [True, False])
def test_a_registry_by_https(captured: Place, tmp_path: Path, known: bool) -> None:
    """In a process of its own: which authorities are known is read once."""
    tls = certificate(tmp_path)
    with DockerRegistry(tmp_path / "registry", tls=tls) as made:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SSL_CERT_FILE": tls["certificate"] if known else os.devnull,
        }
        argv = [sys.executable, "-c", _OVER_TLS, made.host, str(tmp_path / "target"), captured.root]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if known:
        assert (done.returncode, done.stderr) == (0, "")
        assert _tree(captured.below(str(tmp_path / "target"))) == _tree(captured)
    else:
        assert done.returncode == 1
        assert "certificate verify failed" in done.stderr
