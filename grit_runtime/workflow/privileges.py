"""What the processes in the images may do, against what the new config.json grants. Pure: no file is opened here.

CRIU gives every thread back the credentials that are in its image, and asks nobody. So what a container of this
config.json could never become is an excess, and each one is named.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from grit_runtime.criu.credentials import SECCOMP_FILTER, Credentials
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import seccomp

_MAX_NAMED = 8

# linux/capability.h, by their bits
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
        "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
        "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
        "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
        "CHECKPOINT_RESTORE",
    )
)  # fmt: skip
_BITS = {name: 1 << number for number, name in enumerate(CAPABILITIES)}


def grants(bundle: Bundle, capability: str) -> bool:
    """Whether a process of the new container can come to have a capability."""
    return bool(_reachable(bundle) & _BITS[capability])


def problems(
    bundle: Bundle, found: Iterable[Credentials], hosts: Mapping[str, int], old: Mapping[str, Any] | None, lsm: str = ""
) -> list[str]:
    """Every excess, in words.

    Args:
        found: what is in the images.
        hosts: namespaces that a process of the images shares with the host, with its pid.
        old: the config.json that the images were made with, where the checkpoint has it.
        lsm: the caller's own word for the LSM profile (runc's --lsm-profile), which CRIU takes instead of the images'.
    """
    texts = []
    for each in found:
        wrong = [
            *_capabilities(bundle, each), *_ids(bundle, each), *_confinement(bundle, each), *_limits(bundle, each),
            *([] if lsm else _lsm(bundle, each)),
        ]  # fmt: skip
        texts += [f"process {each.pid} of the checkpoint {text}" for text in wrong]
    texts += _namespaces(bundle, hosts)
    texts += _profile(bundle, old)
    return list(dict.fromkeys(texts))


def _capabilities(bundle: Bundle, found: Credentials) -> list[str]:
    texts = []
    beyond = found.capabilities & ~_reachable(bundle)
    if beyond:
        texts.append(f"has {_named(beyond)}, which the new container cannot have")
    bounding = found.bounding & ~_granted(bundle, "bounding") & ~beyond
    if bounding and not bundle.section("process").get("noNewPrivileges"):
        texts.append(f"could gain {_named(bounding)}, which the new container's bounding set lacks")
    return texts


def _reachable(bundle: Bundle) -> int:
    """The bits of all capabilities that a process of this config.json has or can gain by execve(2): what is permitted,
    and, unless no_new_privs keeps it from gaining any, what is in the bounding set (capabilities(7)).
    """
    permitted = _granted(bundle, "permitted")
    if bundle.section("process").get("noNewPrivileges"):
        return permitted
    return permitted | _granted(bundle, "bounding")


def _granted(bundle: Bundle, which: str) -> int:
    """One of config.json's sets; without any, runc gives none (libcontainer/init_linux.go, finalizeNamespace)."""
    bits = 0
    for name in bundle.strings("process", "capabilities", which):
        bits |= _BITS.get(name, 0)
    return bits


def _ids(bundle: Bundle, found: Credentials) -> list[str]:
    """A program with the set-user-ID bit becomes anybody, unless no_new_privs forbids; CAP_SETUID and CAP_SETGID do."""
    user = bundle.section("process", "user")
    own, group = _number(user.get("uid")), _number(user.get("gid"))
    more = user.get("additionalGids")
    additional = {_number(item) for item in more} if isinstance(more, list) else set()
    confined = bool(bundle.section("process").get("noNewPrivileges"))
    texts = []
    users = found.users - {own}
    if users and confined and not grants(bundle, "CAP_SETUID"):
        texts.append(f"runs as user {_listed(users)}, and the new container as {own}")
    if not grants(bundle, "CAP_SETGID"):
        groups = found.groups - {group} - additional if confined else frozenset()
        if groups:
            texts.append(f"runs as group {_listed(groups)}, and the new container as {group}")
        supplementary = found.supplementary - {group} - additional
        if supplementary:
            texts.append(f"is in group {_listed(supplementary)}, and the new container is not")
    return texts


def _confinement(bundle: Bundle, found: Credentials) -> list[str]:
    texts = []
    if bundle.section("process").get("noNewPrivileges") and not found.no_new_privileges:
        texts.append("may gain privileges, and the new container has noNewPrivileges")
    if seccomp.is_confining(bundle.section("linux", "seccomp")) and found.seccomp != SECCOMP_FILTER:
        texts.append("has no seccomp filter, and the new container has a profile")
    return texts


# asm-generic/resource.h, by their numbers
_RLIMITS = tuple(
    f"RLIMIT_{name}"
    for name in (
        "CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING",
        "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
    )
)  # fmt: skip


def _limits(bundle: Bundle, found: Credentials) -> list[str]:
    """Hard limits that config.json sets. With CAP_SYS_RESOURCE a container sets them as it likes; what config.json does
    not name, a container of it would have of whoever starts it.
    """
    if grants(bundle, "CAP_SYS_RESOURCE"):
        return []
    texts = []
    wanted = {str(each.get("type")): each.get("hard") for each in bundle.objects("process", "rlimits")}
    for name, limit in zip(_RLIMITS, found.rlimits, strict=False):
        most = wanted.get(name)
        if isinstance(most, int) and limit > most & 0xFFFFFFFFFFFFFFFF:
            texts.append(f"has {name} of {limit}, and the new container {most}")
    return texts


def _lsm(bundle: Bundle, found: Credentials) -> list[str]:
    process = bundle.section("process")
    wanted = str(process.get("selinuxLabel") or process.get("apparmorProfile") or "")
    if wanted in ("", "unconfined", found.lsm):
        return []
    return [f"has the LSM profile {found.lsm or 'unconfined'!r}, and the new container {wanted!r}"]


def _namespaces(bundle: Bundle, hosts: Mapping[str, int]) -> list[str]:
    own = {str(entry.get("type")) for entry in bundle.objects("linux", "namespaces")}
    return [
        f"process {pid} of the checkpoint is in the host's {word} namespace, and the new container is not"
        for word, pid in hosts.items()
        if word in own
    ]


def _profile(bundle: Bundle, old: Mapping[str, Any] | None) -> list[str]:
    if old is None:
        return []
    linux = old.get("linux")
    former = linux.get("seccomp") if isinstance(linux, dict) else None
    more = seccomp.allowed_beyond(former if isinstance(former, dict) else {}, bundle.section("linux", "seccomp"))
    if not more:
        return []
    what = "whatever it does not name" if more == ["*"] else _listed(more)
    return [f"the checkpoint's seccomp profile allows {what}, and the new container's does not"]


def of_filter(beyond: list[str] | None) -> str:
    """What is wrong with a seccomp filter of the images, by what it lets through (`workflow.filters`)."""
    if beyond is None:
        return "a seccomp filter of the checkpoint cannot be compared with the new container's profile"
    return (
        f"a seccomp filter of the checkpoint lets {_listed(beyond)} through, and the new container's profile does not"
    )


def _named(bits: int) -> str:
    count = bits.bit_length()
    return _listed(
        CAPABILITIES[number] if number < len(CAPABILITIES) else f"capability {number}"
        for number in range(count)
        if bits >> number & 1
    )


def _listed(items: Iterable[object]) -> str:
    words = [str(item) for item in (sorted(items) if isinstance(items, frozenset) else items)]
    return ", ".join(words[:_MAX_NAMED]) + (f" and {len(words) - _MAX_NAMED} more" if len(words) > _MAX_NAMED else "")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
