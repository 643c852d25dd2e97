"""Whether a checkpoint may be restored here at all, and may bring what it brings (SECURITY.md).

What is decided is pure (`privileges`, `grants`, and the functions here); `problems` reads the images for it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from grit_runtime import names
from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.criu import credentials
from grit_runtime.criu.images import Images
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import grants, privileges, seccomp
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.mounts import MountStep, Offer

_ANY = "*"
_MOST_CHAINS = 64  # of seccomp filters; each takes some 60 ms


class Asked(Protocol):
    """A restore as it was asked for (`prepare.Request`)."""

    @property
    def bundle(self) -> Bundle: ...

    @property
    def flags(self) -> tuple[str, ...]: ...

    @property
    def serves_create(self) -> bool: ...

    @property
    def place(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What speaks against a restore, each in words."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def judge(
    context: Context,
    request: Asked,
    decoded: Images,
    manifest: Manifest | None,
    namespace: str,
    steps: tuple[MountStep, ...],
    offer: Offer,
) -> Verdict:
    """Everything that this site asks of a checkpoint once its images can be read.

    The namespace is asked for where a pod names the checkpoint; by hand, root has decided. The rest holds for both.

    Args:
        namespace: the checkpoint's, by what isn't the manifest's.

    Raises:
        CheckpointError: an image is damaged.
    """
    site, annotations = context.config.trust, request.bundle.annotations
    problems = foreign_criu_options(annotations, context.config.state_dir, site.criu_config)
    if request.serves_create:
        old = namespace_of(manifest) or namespace
        problems += wrong_namespace(annotations, old, site.namespaces, request.place)
    found = _excesses(context, request, decoded, spec_of(manifest), steps, offer)
    if site.privileges == names.WARN:
        return Verdict(problems=tuple(problems), warnings=tuple(found))
    return Verdict(problems=(*problems, *found))


def _excesses(
    context: Context,
    request: Asked,
    decoded: Images,
    old: Mapping[str, Any] | None,
    steps: tuple[MountStep, ...],
    offer: Offer,
) -> list[str]:
    """What the images bring and the new config.json doesn't grant."""
    bundle = request.bundle
    threads = credentials.read(decoded)
    paths = {*bundle.strings("linux", "maskedPaths"), *bundle.strings("linux", "readonlyPaths")}
    there = filter(os.path.exists, paths - grants.covered_before(old))
    return [
        *privileges.problems(bundle, threads, credentials.of_the_host(decoded), old, _lsm_profile(request.flags)),
        *_filters(bundle, decoded, threads),
        *grants.problems(bundle, decoded, steps, offer, context.config.trust.host_mounts, there),
    ]


def _filters(bundle: Bundle, decoded: Images, threads: Iterable[credentials.Credentials]) -> list[str]:
    """What the seccomp programs in the images let through, and the new container's profile does not."""
    profile = bundle.section("linux", "seccomp")
    wanted = dict.fromkeys(each.filter for each in threads if each.filter is not None)
    if not wanted or not seccomp.is_confining(profile):
        return []
    from grit_runtime.criu import filters as programs
    from grit_runtime.host import syscalls
    from grit_runtime.workflow import filters

    numbers = syscalls.library()
    if len(wanted) > _MOST_CHAINS:
        return [f"{privileges.of_filter(None)}: threads have more than {_MOST_CHAINS} different ones"]
    if numbers is None:
        return [f"{privileges.of_filter(None)}: there is no libseccomp.so.2 here"]
    read, texts = programs.read(decoded.path, decoded.files), []
    for number in wanted:
        beyond = filters.allowed_beyond(read.chain(number), profile, os.uname().machine, numbers)
        texts += [privileges.of_filter(beyond)] if beyond != [] else []
    return list(dict.fromkeys(texts))


def spec_of(manifest: Manifest | None) -> Mapping[str, Any] | None:
    """The config.json that a checkpoint was taken with, if it has it."""
    found = manifest.data.get("spec") if manifest else None
    return found if isinstance(found, dict) else None


def namespace_of(manifest: Manifest | None) -> str:
    """The Kubernetes namespace of the pod that a checkpoint of ours was taken from; empty for none."""
    container = manifest.data.get("container") if manifest else None
    pod = container.get("pod") if isinstance(container, dict) else None
    found = pod.get("namespace") if isinstance(pod, dict) else None
    return found if isinstance(found, str) else ""


def wrong_namespace(
    annotations: Mapping[str, str], old: str, rules: Mapping[str, Iterable[str]], place: str = ""
) -> list[str]:
    """Why a pod of this namespace may not have a checkpoint of that one; a container outside of Kubernetes may.

    Only a CRI runtime names the namespace, and root alone starts containers otherwise. Each has a key of its own, and
    leaves the other's to whoever wrote the pod: CRI-O hands all of a pod's annotations on.

    Args:
        annotations: the new container's.
        old: the checkpoint's namespace; empty if it doesn't say.
        rules: `trust.namespaces`.
        place: whose the directory is in which it lies: that counts where the checkpoint doesn't say. Who puts it there
            is trusted, for root alone can.
    """
    said = {key: annotations[key] for key in names.POD_NAMESPACE if key in annotations}
    if not said:
        return []
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{key} {value!r}" for key, value in said.items())
        return [f"the new container's annotations name two namespaces: {listed}"]
    (new,) = set(said.values())
    allowed = {*rules.get(old, ()), *rules.get(old or place, ()), *rules.get(_ANY, ())}
    if (old or place) == new or new in allowed or _ANY in allowed:
        return []
    came = (
        f"was taken in namespace {old!r}" if old else f"does not say its namespace, and lies in the directory {place!r}"
    )
    return [f"the checkpoint {came}, and the new pod is in {new!r}: `trust.namespaces` does not have that"]


def foreign_criu_options(annotations: Mapping[str, str], state_dir: str, allowed: str) -> list[str]:
    """Why a pod's `org.criu.config` is refused: the file that it names could have CRIU execute programs of its choice
    (criu(8), --action-script) as root of the node.

    A container that we restored has our own there, below the state directory.
    """
    given = annotations.get(names.CRIU_CONFIG_ANNOTATION)
    pod = any(key in annotations for key in (*names.POD_NAMESPACE, *names.SANDBOX_ID, *names.CONTAINER_TYPE))
    if given is None or not pod or allowed == names.ALLOW:
        return []
    if os.path.normpath(given).startswith(os.path.normpath(state_dir) + "/"):
        return []
    wrong = f"annotation {names.CRIU_CONFIG_ANNOTATION}={given!r}: a pod may not choose CRIU's options"
    return [f"{wrong} (`trust.criu-config: allow` lets it)"]


def _lsm_profile(flags: Iterable[str]) -> str:
    for flag in flags:
        name, _, value = flag.lstrip("-").partition("=")
        if name == "lsm-profile":
            return value or "given"
    return ""
