"""Signatures: what was signed is what is there, by a key that is trusted, or nothing of it is read."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from grit_runtime.checkpoint import signature
from grit_runtime.errors import CheckpointError, ConfigError
from grit_runtime.host import digest
from tests.keys import write


@dataclass(frozen=True)
class Keys:
    """Where keys are."""

    path: Path

    def make(self, name: str) -> str:
        """The file of a new private key; the public one has `.pub` behind."""
        return write(self.path / name)[0]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Where keys are made."""
    (tmp_path / "keys").mkdir()
    return Keys(tmp_path / "keys")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Files of many sizes."""
    made = tmp_path / "images"
    made.mkdir()
    (made / "grit.json").write_text("{}")
    (made / "empty.img").touch()
    (made / "pages-1.img").write_bytes(os.urandom(digest.CHUNK + 5))
    return made


def _sign(directory: Path, key: str) -> tuple[str, ...]:
    signature.sign_directory(str(directory), key, 2)
    return (f"{key}.pub",)


def test_what_was_signed_is_accepted_also_among_other_keys(directory: Path, keys: Keys) -> None:
    trusted = _sign(directory, keys.make("a"))
    signature.require_directory(str(directory), trusted, 2)
    signature.require_directory(str(directory), (f"{keys.make('b')}.pub", *trusted), 1)
    signature.sign_directory(str(directory), keys.make("c"), 2)  # again, by another one
    with pytest.raises(CheckpointError, match="not trusted"):
        signature.require_directory(str(directory), trusted, 2)


def _flip(file: str, at: int) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        data = bytearray((directory / file).read_bytes())
        data[at] ^= 1
        (directory / file).write_bytes(data)

    return change


def _edit_statement(directory: Path) -> None:
    title, line, statement = (directory / "grit.sig").read_bytes().split(b"\n")
    data = json.loads(statement)
    del data["files"]["pages-1.img"]
    (directory / "grit.sig").write_bytes(b"\n".join((title, line, json.dumps(data).encode())))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "grit.json").write_text('{"a": 1}'), "grit.json was changed"),
        (_flip("pages-1.img", 0), "pages-1.img was changed"),
        (_flip("pages-1.img", digest.CHUNK + 4), "pages-1.img was changed"),
        (lambda d: os.truncate(d / "pages-1.img", digest.CHUNK), "pages-1.img was changed"),
        (lambda d: os.truncate(d / "pages-1.img", digest.CHUNK + 6), "pages-1.img was changed"),
        (lambda d: (d / "empty.img").unlink(), "empty.img is missing"),
        (lambda d: (d / "core-1.img").touch(), "core-1.img was not signed"),
        (lambda d: (d / "parent").symlink_to("."), "which is no file"),
        (lambda d: (d / "sub").mkdir(), "which is no file"),
        (lambda d: os.mkfifo(d / "fifo"), "which is no file"),
        (lambda d: (d / "grit.sig").unlink(), "is not signed"),
        (lambda d: (d / "grit.sig").write_bytes(b"x" * 100), "no signature that this grit-runtime knows"),
        (lambda d: (d / "grit.sig").write_bytes(b""), "no signature that this grit-runtime knows"),
        (_flip("grit.sig", -5), "does not fit what it signs"),
        (_edit_statement, "does not fit what it signs"),
        (lambda d: os.truncate(d / "grit.sig", signature.MAX_BYTES + 1), "no signature that this"),
        (lambda d: (d / "grit.sig").unlink() or os.mkfifo(d / "grit.sig"), "cannot read"),
    ],
)
def test_what_is_not_as_it_was_signed_is_refused(
    directory: Path, keys: Keys, change: Callable[[Path], object], said: str
) -> None:
    trusted = _sign(directory, keys.make("a"))
    change(directory)
    with pytest.raises(CheckpointError, match=said):
        signature.require_directory(str(directory), trusted, 2)


def test_no_key_is_trusted_by_default(directory: Path, keys: Keys) -> None:
    _sign(directory, keys.make("a"))
    with pytest.raises(CheckpointError, match="not trusted"):
        signature.require_directory(str(directory), (), 2)


def test_an_archive_is_signed_whatever_its_name(tmp_path: Path, keys: Keys) -> None:
    key, archive = keys.make("a"), tmp_path / "a.tar"
    archive.write_bytes(b"x" * 1000)
    signature.sign_file(str(archive), key, 2)
    moved = archive.rename(tmp_path / "b.tar")
    signature.require_file(str(moved), f"{archive}.sig", (f"{key}.pub",), 2)
    moved.write_bytes(b"y" * 1000)
    with pytest.raises(CheckpointError, match="archive was changed"):
        signature.require_file(str(moved), f"{archive}.sig", (f"{key}.pub",), 2)


def test_a_directory_s_signature_is_not_an_archive_s(directory: Path, keys: Keys) -> None:
    trusted = _sign(directory, keys.make("a"))
    with pytest.raises(CheckpointError, match="is not what was signed"):
        signature.require_file(str(directory / "grit.json"), str(directory / "grit.sig"), trusted, 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: file.chmod(0o640), "can be read by others"),
        (lambda file: os.chown(file, 65534, 0), "can be read by others"),
        (lambda file: file.write_text("nonsense"), "holds no private key"),
        (lambda file: file.write_bytes(b"x" * (1 << 17)), "too large for a key"),
        (lambda file: file.unlink(), "cannot read the key"),
        (lambda file: write(file, other=True), "holds no Ed25519 key"),
    ],
)
@pytest.mark.needs("root")
def test_a_signing_key_that_will_not_do_is_named(
    directory: Path, keys: Keys, make: Callable[[Path], object], said: str
) -> None:
    key = keys.make("a")
    make(Path(key))
    with pytest.raises(ConfigError, match=said):
        signature.sign_directory(str(directory), key, 2)
    assert not (directory / "grit.sig").exists()
