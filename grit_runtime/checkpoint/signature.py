"""Who made a checkpoint: an Ed25519 signature (RFC 8032) over every file's SHA-256. The only user of `cryptography`.

The signature of a directory is the file `grit.sig` in it, that of an archive the file of its name with `.sig` behind:

    grit-runtime-signature 1
    ed25519 PUBLIC-KEY SIGNATURE           (base64)
    {"chunk": 16777216, "files": {"NAME": {"bytes": 7, "sha256": ["HEX", ...]}, ...}}

The third line is what is signed, with a prefix of its own. Each file has one hash for each chunk, so that many workers
can compute them. The manifest's own checksums (xxh3) find damage; anybody could make a file to fit them.
"""

import base64
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grit_runtime import names
from grit_runtime.errors import CheckpointError, ConfigError
from grit_runtime.host import digest, files, pool

MAX_BYTES = 64 << 20  # hashes of 10 TiB
_MAX_KEY_BYTES = 1 << 16
_MAX_FILES = 1 << 20
_TITLE = b"grit-runtime-signature 1"
_PREFIX = b"grit-runtime checkpoint 1\0"  # so that no signature of the key's for something else is one of a checkpoint
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """A file's size and hashes, as a statement lists them."""

    size: int
    hashes: tuple[str, ...]


def require_key(key: str) -> None:
    """See whether a file holds a private key that can be used. Raises ConfigError: it doesn't."""
    _private_key(key)


def sign_directory(directory: str, key: str, workers: int) -> None:
    """Write `grit.sig`, over every file in a directory, which must hold nothing else.

    Raises:
        ConfigError: the key can't be used.
        CheckpointError: there is something that can't be signed.
        OSError: a file can't be read or written.
    """
    private = _private_key(key)
    target = os.path.join(directory, names.SIGNATURE)
    files.write_atomically(target, _signed(_hashed(_of_directory(directory), workers), private), sync=True)


def sign_file(path: str, key: str, workers: int) -> None:
    """Write the signature of an archive beside it; raises as `sign_directory`."""
    private = _private_key(key)
    content = _hashed({names.ARCHIVE: path}, workers)
    files.write_atomically(path + names.SIGNATURE_SUFFIX, _signed(content, private), sync=True)


def require_directory(path: str, keys: tuple[str, ...], workers: int) -> None:
    """Verify `grit.sig` in a directory, and that it holds every file there and no other. Nothing else is looked into.

    Args:
        keys: files with the public keys that are trusted.

    Raises:
        CheckpointError: there is none, it is no trusted key's, or the files aren't those that were signed.
        ConfigError: a key can't be used.
    """
    signed = _verified(os.path.join(path, names.SIGNATURE), path, keys)
    _compare(path, signed, lambda: _of_directory(path), workers)


def require_file(path: str, signature: str, keys: tuple[str, ...], workers: int) -> None:
    """Verify the signature of the archive at `path`; raises as `require_directory`."""
    signed = _verified(signature, path, keys)
    _compare(path, signed, lambda: {names.ARCHIVE: path}, workers)


def _compare(path: str, signed: Mapping[str, Content], look: Callable[[], Mapping[str, str]], workers: int) -> None:
    """Names and sizes first: a file of any size may have been put there."""
    try:
        there = look()
        sizes = {name: os.stat(file).st_size for name, file in there.items()}
        wrong = [f"{name} is missing" for name in signed if name not in there]
        wrong += [f"{name} was not signed" for name in there if name not in signed]
        wrong += [f"{name} was changed" for name, size in sizes.items() if name in signed and signed[name].size != size]
        if not wrong:
            found = _hashed(there, workers)
            wrong = [f"{name} was changed" for name, content in found.items() if signed[name] != content]
    except OSError as err:
        raise CheckpointError(f"cannot verify {path}: {err.filename or ''}: {err.strerror}") from None
    if wrong:
        raise CheckpointError(f"checkpoint {path} is not what was signed: {'; '.join(sorted(wrong)[:10])}")


def _verified(file: str, path: str, keys: tuple[str, ...]) -> dict[str, Content]:
    """What a signature file says, if a trusted key has signed it; not a byte of the rest is parsed before."""
    trusted = {key.public_bytes_raw(): key for key in (_public_key(name) for name in keys)}
    from cryptography.exceptions import InvalidSignature

    try:
        raw = files.read_bounded(file, MAX_BYTES)
    except FileNotFoundError:
        raise CheckpointError(
            f"checkpoint {path} is not signed", hint="`grit-runtime sign` signs one; `trust.require-signature`"
        ) from None
    except OSError as err:
        raise CheckpointError(f"cannot read {file}: {err.strerror}") from None
    title, _, rest = (raw or b"").partition(b"\n")
    line, _, statement = rest.partition(b"\n")
    words = line.split(b" ")
    if title != _TITLE or len(words) != 3 or words[0] != b"ed25519":
        raise CheckpointError(f"{file} is no signature that this grit-runtime knows")
    try:
        public, signature = (base64.b64decode(word, validate=True) for word in words[1:])
    except ValueError:
        raise CheckpointError(f"{file} is damaged") from None
    if public not in trusted:
        raise CheckpointError(
            f"checkpoint {path} is signed with the key {_name(public)}, which is not trusted", hint="`trust.keys`"
        )
    try:
        trusted[public].verify(signature, _PREFIX + statement)
    except InvalidSignature:
        raise CheckpointError(f"checkpoint {path}: the signature in {file} does not fit what it signs") from None
    return _statement(file, statement)


def _statement(file: str, raw: bytes) -> dict[str, Content]:
    try:
        data = json.loads(raw)
        if data["chunk"] != digest.CHUNK:
            raise ValueError("another chunk size")
        return {
            str(name): Content(int(entry["bytes"]), tuple(str(value) for value in entry["sha256"]))
            for name, entry in data["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise CheckpointError(f"{file} is damaged: {err}") from None


def _signed(contents: Mapping[str, Content], private: Any) -> bytes:
    listed = {name: {"bytes": found.size, "sha256": list(found.hashes)} for name, found in contents.items()}
    statement = json.dumps({"chunk": digest.CHUNK, "files": listed}, sort_keys=True).encode()
    public, signature = private.public_key().public_bytes_raw(), private.sign(_PREFIX + statement)
    line = b" ".join((b"ed25519", base64.b64encode(public), base64.b64encode(signature)))
    return b"\n".join((_TITLE, line, statement))


def _of_directory(directory: str) -> dict[str, str]:
    """Name to path of every file."""
    paths: dict[str, str] = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name == names.SIGNATURE:
                continue
            if not entry.is_file(follow_symlinks=False) or len(paths) >= _MAX_FILES:
                raise CheckpointError(f"checkpoint {directory} holds {entry.name!r}, which is no file")
            paths[entry.name] = entry.path
    return paths


def _hashed(paths: Mapping[str, str], workers: int) -> dict[str, Content]:
    sizes = {name: os.stat(path).st_size for name, path in paths.items()}
    jobs = [(name, *piece) for name, size in sizes.items() for piece in digest.chunks(size)]

    def one(job: tuple[str, int, int]) -> str:
        name, start, end = job
        return _hash(paths[name], start, end)

    found: dict[str, list[str]] = {name: [] for name in paths}
    count = pool.fitting(workers, sum(sizes.values()))
    for (name, _, _), value in zip(jobs, pool.each(one, jobs, count), strict=True):
        found[name].append(value)
    return {name: Content(sizes[name], tuple(values)) for name, values in found.items()}


def _hash(path: str, start: int, end: int) -> str:
    made, buffer = hashlib.sha256(), bytearray(_STEP)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while start < end:
            count = os.preadv(fd, [memoryview(buffer)[: min(_STEP, end - start)]], start)
            if not count:
                raise CheckpointError(f"{path} became shorter meanwhile")
            made.update(memoryview(buffer)[:count])
            start += count
    finally:
        os.close(fd)
    return made.hexdigest()


def _private_key(path: str) -> Any:
    """The key in a file that only its owner, who is root or us, may read."""
    serialization, ed25519 = _key_classes()
    raw = _read_key(path)
    found = os.stat(path)
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"the signing key {path} can be read by others", hint="chown it to root, and chmod 0600")
    try:
        key = serialization.load_pem_private_key(raw, None)
    except (ValueError, TypeError) as err:
        raise ConfigError(f"{path} holds no private key: {err}") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no Ed25519 key", hint="openssl genpkey -algorithm ed25519 -out FILE")
    return key


def _public_key(path: str) -> Any:
    serialization, ed25519 = _key_classes()
    try:
        key = serialization.load_pem_public_key(_read_key(path))
    except ValueError as err:
        raise ConfigError(f"{path} holds no public key: {err}") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(f"{path} holds no Ed25519 key", hint="openssl pkey -in PRIVATE -pubout -out FILE")
    return key


def _key_classes() -> Any:
    """The modules that are needed of the package, which takes a while to import."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as err:
        raise ConfigError(
            f"signatures need Python's package cryptography: {err}", hint="pip install 'grit-runtime[signing]'"
        ) from None
    return serialization, ed25519


def _read_key(path: str) -> bytes:
    try:
        raw = files.read_bounded(path, _MAX_KEY_BYTES)
    except OSError as err:
        raise ConfigError(f"cannot read the key {path}: {err.strerror}") from None
    if raw is None:
        raise ConfigError(f"{path} is too large for a key")
    return raw


def _name(public: bytes) -> str:
    return base64.b64encode(public).decode()[:44]
