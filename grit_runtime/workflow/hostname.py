"""The host name of a pod's sandbox, which a restore must not change.

CRIU joins a UTS namespace that config.json names by path, and then sets in it the names that the old one had
(criu/uts_ns.c, prepare_utsns): every container of the new pod would get the old pod's host name. So the staged image
holds the names that the namespace has.
"""

from grit_runtime.criu import images
from grit_runtime.errors import RestoreError
from grit_runtime.host import proc
from grit_runtime.oci.bundle import Bundle


def rewritten(bundle: Bundle, path: str, files: tuple[str, ...]) -> dict[str, bytes]:
    """The UTS images among `files` at `path`, with the names of the namespace that the new container is to join.

    Raises:
        RestoreError: the namespace cannot be entered.
        CheckpointError: an image is damaged.
    """
    joined = [e for e in bundle.objects("linux", "namespaces") if e.get("type") == "uts" and e.get("path")]
    if not joined:
        return {}
    try:
        host, domain = proc.uts_names(str(joined[0]["path"]))
    except OSError as err:
        raise RestoreError(f"cannot read the host name of {joined[0]['path']}: {err.strerror}") from None
    found = {}
    for name in files:
        if name.startswith("utsns-") and name.endswith(".img"):
            image = images.load(path, name, "UTSNS")
            for entry in image["entries"]:
                entry.update(nodename=host, domainname=domain)
            found[name] = images.encode(image)
    return found
