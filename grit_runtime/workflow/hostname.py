"""The host name of a pod's sandbox, which a restore must not change.

CRIU joins a UTS namespace that config.json names by path, and then sets in it the names that the old one had
(criu/uts_ns.c, prepare_utsns): every container of the new pod would get the old pod's host name. So the staged image
holds the names that the namespace has.
"""

from grit_runtime.criu.images import Changes
from grit_runtime.errors import RestoreError
from grit_runtime.host import proc
from grit_runtime.oci.bundle import Bundle


def rewrites(bundle: Bundle, files: tuple[str, ...]) -> dict[str, Changes]:
    """What changes in the UTS images among `files`: the names become those of the namespace that the new container is
    to join.

    Raises:
        RestoreError: the namespace cannot be entered.
    """
    joined = [e for e in bundle.objects("linux", "namespaces") if e.get("type") == "uts" and e.get("path")]
    images = [name for name in files if name.startswith("utsns-") and name.endswith(".img")]
    if not joined or not images:
        return {}
    try:
        host, domain = proc.uts_names(str(joined[0]["path"]))
    except OSError as err:
        raise RestoreError(f"cannot read the host name of {joined[0]['path']}: {err.strerror}") from None
    return {name: {0: {"nodename": host, "domainname": domain}} for name in images}
