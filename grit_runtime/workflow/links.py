"""Symbolic links from old host paths to new ones, for mounts that CRIU found by itself: the way that needs no other
image, and the last resort where an image can't be written again. Pure: no file is opened here.

An image entry of `ext-mount-map auto` names the old host path, and CRIU opens that. So the old path is made to lead to
the new one while CRIU restores. CRIU's own mount engine (mount-v2) clones a mount with open_tree(AT_SYMLINK_NOFOLLOW):
a link among the parent directories is followed, a last component that is a link is not (mount-v2.c,
__do_bind_mount_v2). So the link is made as far up as old and new path still differ; where it is the last component,
CRIU has to take its older engine (`mntns-compat-mode`), whose mount(2) follows it.
"""

import os
from dataclasses import dataclass

from grit_runtime.workflow.mounts import Action, Kind, MountStep, Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link at host path `path` to host path `target`."""

    path: str
    target: str

    def describe(self) -> str:
        """One line for people."""
        return f"link {self.path} -> {self.target}, for as long as the restore takes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Led:
    """The links of a restore."""

    links: tuple[Link, ...] = ()
    compat: bool = False
    """Some link is the last component of a path."""
    problems: tuple[str, ...] = ()


def lead(steps: tuple[MountStep, ...], offer: Offer, roots: tuple[str, ...]) -> Led:
    """The links that lead the mounts of action LINK from their old source to their new one.

    Args:
        roots: where links may be made, and where they may lead.
    """
    wanted = {
        step.old_source.rstrip("/"): step.new_source.rstrip("/")
        for step in steps
        if step.action is Action.LINK and step.old_source.rstrip("/") != step.new_source.rstrip("/")
    }
    links = _parents(wanted)
    last = [Link(path=path, target=new) for old, new in wanted.items() if (path := _through(old, links)) != new]
    found = tuple(dict.fromkeys((*links, *last)))
    return Led(links=found, compat=bool(last), problems=tuple(_problems(found, wanted, offer, roots)))


def _parents(wanted: dict[str, str]) -> list[Link]:
    """Links as far up as possible: `sandboxes/OLD -> sandboxes/NEW` for `sandboxes/OLD/hostname`."""
    found: dict[str, str] = {}
    for old, new in wanted.items():
        above_old, above_new = old, new
        while os.path.basename(above_old) == os.path.basename(above_new) and above_old not in ("/", ""):
            above_old, above_new = os.path.dirname(above_old), os.path.dirname(above_new)
        if above_old != old and above_old not in ("/", "") and above_new not in ("/", ""):
            found.setdefault(above_old, above_new)
    return [Link(path=path, target=target) for path, target in found.items()]


def _through(path: str, links: list[Link]) -> str:
    """Where a path leads once the links are there."""
    for link in links:
        if path == link.path or path.startswith(link.path + "/"):
            return link.target + path[len(link.path) :]
    return path


def _problems(found: tuple[Link, ...], wanted: dict[str, str], offer: Offer, roots: tuple[str, ...]) -> list[str]:
    texts = []
    for link in found:
        for path in (link.path, link.target):
            if not any(_below(path, root) for root in roots):
                texts.append(f"a link at {link.path} to {link.target} would leave the directories of mounts.link-roots")
                break
    for old, new in wanted.items():
        if offer.kind(old) is not Kind.MISSING:
            texts.append(f"{old} still exists: no link can lead from there to {new}")
    return list(dict.fromkeys(texts))


def _below(path: str, root: str) -> bool:
    return os.path.normpath(path) == path and path.startswith(root.rstrip("/") + "/")
