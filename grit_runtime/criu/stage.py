"""A staged image directory: what CRIU reads instead of the checkpoint, which is never written into.

Big files are links to the checkpoint's, small ones that had to change are rewritten copies. CRIU opens images with
openat, following links (criu/image.c, do_open_image), and so does runc with descriptors.json.

The links are relative. CRIU opens pagemaps and pages from tasks that are in the container's mount namespace and root
already: there an absolute link leads into the container, while a relative one starts at CRIU's descriptor of this
directory and stays on the host.
"""

import os

from grit_runtime import names

_NOT_IMAGES = frozenset({names.MANIFEST, names.PARTIAL, names.ROOTFS_DIFF, names.DEV_SHM, names.CONTAINER_LOG})


def build(source: str, target: str, rewritten: dict[str, bytes], *, as_parent: bool = False) -> None:
    """Fill the empty directory `target` from the checkpoint in `source`.

    Args:
        rewritten: file name to content, for those that aren't linked.
        as_parent: the checkpoint is the earlier dump, too, on which this directory's pagemaps stand.
    """
    start = os.path.realpath(target)
    for name in os.listdir(source):
        if name not in rewritten and name not in _NOT_IMAGES:
            os.symlink(os.path.relpath(os.path.realpath(os.path.join(source, name)), start), os.path.join(target, name))
    if as_parent:
        os.symlink(os.path.relpath(os.path.realpath(source), start), os.path.join(target, names.PARENT_LINK))
    for name, data in rewritten.items():
        with open(os.path.join(target, name), "xb") as stream:
            stream.write(data)
