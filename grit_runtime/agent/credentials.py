"""Who we are to a registry: a docker `config.json`, which is mounted where the agent runs. It is never asked of the API
server: the agent may read no Secret.

`REGISTRY_AUTH_FILE` names the file, or `DOCKER_CONFIG` its directory (containers-auth.json(5), docker login). Read for
each transfer: kubelet renews what it has mounted. Credential helpers are programs, and are not called.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grit_runtime.agent.reference import Repository
from grit_runtime.errors import ConfigError
from grit_runtime.host import files

_MOST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Of one registry; empty for one that is asked without."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    """An OAuth 2 refresh token (`identitytoken`)."""
    token: str = field(default="", repr=False)
    """A bearer token (`registrytoken`)."""

    def basic(self) -> str:
        """The value of `Authorization` (RFC 7617); empty for none."""
        if not self.username and not self.password:
            return ""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def path(environment: Mapping[str, str]) -> str:
    """The file; empty for none."""
    if environment.get("REGISTRY_AUTH_FILE"):
        return environment["REGISTRY_AUTH_FILE"]
    directory = environment.get("DOCKER_CONFIG", "")
    return os.path.join(directory, "config.json") if directory else ""


def of(repository: Repository, environment: Mapping[str, str]) -> Credentials:
    """The credentials for a repository: of its path or what is above it, else of its host.

    Raises:
        ConfigError: the file can't be read, or isn't as it should be.
    """
    file = path(environment)
    if not file:
        return Credentials()
    try:
        found = files.read_json(file, _MOST)
    except (OSError, ValueError) as err:
        raise ConfigError(f"cannot read the registries' credentials in {file}: {err}") from None
    entries = found.get("auths") if isinstance(found, dict) else None
    if not isinstance(entries, dict):
        entries = {}
    known = {_bare(key): value for key, value in entries.items() if isinstance(value, dict)}
    words = [repository.host, *repository.path.split("/")]
    for count in range(len(words), 0, -1):
        name = "/".join(words[:count])
        if name in known:
            return _read(file, name, known[name])
    return Credentials()


def _bare(key: str) -> str:
    """`https://index.docker.io/v1/` as docker writes it, without what isn't the host."""
    return re.sub(r"(?<=.)/v[12]/?$", "", re.sub(r"^https?://", "", key)).rstrip("/")


def _read(file: str, name: str, entry: Mapping[str, Any]) -> Credentials:
    words = {key: entry.get(key) or "" for key in ("username", "password", "identitytoken", "registrytoken", "auth")}
    if not all(isinstance(value, str) for value in words.values()):
        raise ConfigError(f"{file}: the entry of {name} has something else than strings")
    username, password = words["username"], words["password"]
    if words["auth"]:
        try:
            username, _, password = base64.b64decode(words["auth"], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise ConfigError(f"{file}: `auth` of {name} is no base64 of NAME:PASSWORD") from None
    return Credentials(
        username=username, password=password.rstrip("\0"), identity=words["identitytoken"], token=words["registrytoken"]
    )


def challenges(headers: list[str]) -> list[tuple[str, dict[str, str]]]:
    """The schemes of `WWW-Authenticate`, in lower case, with their parameters (RFC 9110, 11.6.1)."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        rest = header[:4096]
        while matched := re.match(r"[\s,]*([A-Za-z][A-Za-z0-9-]*)(?:\s+|(?=,)|$)", rest):
            rest, values = rest[matched.end() :], {}
            while parameter := re.match(r"""[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))""", rest):
                rest = rest[parameter.end() :]
                quoted = parameter[2]
                values[parameter[1].lower()] = parameter[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found.append((matched[1].lower(), values))
    return found
