"""References to repositories of OCI registries, and which of them an agent uses. Pure.

`HOST[:PORT]/PATH[:TAG]`, by the grammar of the OCI distribution spec ("Pulling manifests"). There is no registry by
default: the first word is always a host.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from grit_runtime.errors import ConfigError, GritError

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
PATTERN = rf"^{_HOST}/{_PATH}(:{_TAG})?$".replace("(?:", "(")
"""Of a reference, as a schema has it."""
MOST = 512
_DIGEST = r"sha256:[0-9a-f]{64}"


class NoReferenceError(GritError):
    """A reference is none, or one that isn't used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository, and how its registry is asked."""

    host: str
    """With its port, if it has one."""
    path: str
    plain: bool = False
    """By http, not https."""

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.host}/{self.path}"

    @property
    def url(self) -> str:
        """Where its registry's API has it."""
        return f"{'http' if self.plain else 'https'}://{self.host}/v2/{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A registry that an agent uses, and the path below which its repositories are, by namespace."""

    host: str
    prefix: str = ""
    plain: bool = False

    def __str__(self) -> str:
        """As the configuration has it."""
        return f"{self.host}/{self.prefix}" if self.prefix else self.host


def is_loopback(host: str) -> bool:
    """Whether a host (with a port, perhaps) is this machine by its name."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) and not host.endswith("]") else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


def allowed(word: str) -> Allowed:
    """What a word of the configuration means: `[http://|https://]HOST[:PORT][/PREFIX]`.

    https, but for `http://` and a registry on this machine's own loopback.

    Raises:
        ConfigError: it is nothing of that form.
    """
    scheme, rest = re.fullmatch(r"(?:(https?)://)?(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
    found = re.fullmatch(rf"({_HOST})(?:/({_PATH}))?/?", rest)
    if found is None:
        raise ConfigError(f"--registry {word}: it must be [http://]HOST[:PORT][/PREFIX]")
    plain = scheme == "http" or (scheme is None and is_loopback(found[1]))
    return Allowed(host=found[1], prefix=found[2] or "", plain=plain)


def split(reference: str) -> tuple[str, str, str]:
    """Host, path and tag (empty for none) of a reference. Raises NoReferenceError: it is none."""
    found = re.fullmatch(rf"({_HOST})/({_PATH})(?::({_TAG}))?", reference) if len(reference) <= MOST else None
    if found is None:
        raise NoReferenceError(f"{reference[:MOST]!r} is no reference: it must be HOST[:PORT]/PATH[:TAG]")
    return found[1], found[2], found[3] or ""


def pinned(reference: str) -> tuple[str, str]:
    """The repository's reference, and the digest, of `HOST/PATH@sha256:...`. Raises NoReferenceError: it is none."""
    name, _, digest = reference.partition("@")
    if not re.fullmatch(_DIGEST, digest):
        raise NoReferenceError(f"{reference[:MOST]!r} has no digest: it must be HOST[:PORT]/PATH@sha256:...")
    split(name)
    return name, digest


def repository(reference: str, namespace: str, known: Sequence[Allowed]) -> Repository:
    """The repository of a reference, if it is one that Checkpoints of this namespace may name.

    The agents of all namespaces have the same credentials, so a namespace has only what lies below its own name:
    `HOST/PREFIX/NAMESPACE`, and whatever follows.

    Raises:
        NoReferenceError: it isn't.
    """
    host, path, _ = split(reference)
    here = [entry for entry in known if entry.host == host]
    # The longest prefix that fits decides: what lies there isn't the namespace's of a shorter one.
    fitting = [entry for entry in here if not entry.prefix or path.startswith(f"{entry.prefix}/")]
    for entry in sorted(fitting, key=lambda entry: len(entry.prefix), reverse=True)[:1]:
        below = f"{entry.prefix}/{namespace}" if entry.prefix else namespace
        if path == below or path.startswith(f"{below}/"):
            return Repository(host=host, path=path, plain=entry.plain)
    listed = ", ".join(f"{entry}/{namespace}" for entry in (here or known)) or "none"
    raise NoReferenceError(
        f"a Checkpoint of namespace {namespace} can't be kept in {host}/{path} (it may be in: {listed})"
    )
