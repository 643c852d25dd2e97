"""A staged image directory: what CRIU reads instead of the checkpoint, which is never written into.

Big files are links to the checkpoint's, small ones that had to change are rewritten copies. CRIU opens images with
openat, following links (criu/image.c, do_open_image), and so does runc with descriptors.json.

The links are relative. CRIU opens pagemaps and pages from tasks that are in the container's mount namespace and root
already: there an absolute link leads into the container, while a relative one starts at CRIU's descriptor of this
directory and stays on the host.
"""

import os

from grit_runtime import names

_NOT_IMAGES = frozenset(
    {names.MANIFEST, names.SIGNATURE, names.PARTIAL, names.ROOTFS_DIFF, names.DEV_SHM, names.CONTAINER_LOG}
)


def build(source: str, target: str, rewritten: dict[str, bytes], *, as_parent: bool = False) -> None:
    """Fill the empty directory `target` from the checkpoint in `source`.

    Args:
        rewritten: file name to content, for those that aren't linked.
        as_parent: the checkpoint is the earlier dump, too, on which this directory's pagemaps stand.
    """
    # `source` is not followed: of a descriptor's path it is the descriptor that counts, whatever its name is by now.
    above, last = os.path.split(source)
    start = os.path.realpath(target)
    base = os.path.relpath(os.path.join(os.path.realpath(above), last), start)
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.name not in rewritten and entry.name not in _NOT_IMAGES:
                link = os.path.relpath(os.path.realpath(entry.path), start) if entry.is_symlink() else ""
                os.symlink(link or os.path.join(base, entry.name), os.path.join(target, entry.name))
    if as_parent:
        os.symlink(base, os.path.join(target, names.PARENT_LINK))
    for name, data in rewritten.items():
        with open(os.path.join(target, name), "xb") as stream:
            stream.write(data)
