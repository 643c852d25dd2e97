"""What a restore will do, decided before anything is touched. Pure: no file is opened here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from grit_runtime.checkpoint.manifest import Manifest
from grit_runtime.criu.images import Changes, Images
from grit_runtime.oci.bundle import Bundle
from grit_runtime.workflow import links, mounts, openfiles
from grit_runtime.workflow.links import Link
from grit_runtime.workflow.mounts import Action, Mountpoint, MountStep, Offer
from grit_runtime.workflow.openfiles import Volumes


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the plan needs to know of the machine, gathered before (`facts.gather`)."""

    offer: Offer
    architecture: str
    volumes: Volumes = field(default_factory=Volumes)
    unified_cgroup: str = ""
    """The new container's cgroup where the machine has cgroup v2 alone, else empty."""
    filled: frozenset[str] = frozenset()
    """Destinations of mounts whose content comes with the checkpoint."""
    link_roots: tuple[str, ...] = ()
    """The directories below which links may be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a restore does beyond what the downstream does by itself."""

    container: str
    images: str
    mounts: tuple[MountStep, ...]
    rewrites: dict[str, Changes] = field(default_factory=dict)
    mountpoints: tuple[Mountpoint, ...] = ()
    links: tuple[Link, ...] = ()
    criu: dict[str, bool | str] = field(default_factory=dict)
    stopped: tuple[int, ...] = ()
    """Processes that were stopped at the dump and stay so, by their pid within the container."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """The plan as lines for people."""
        return [
            f"restore {self.images} as container {self.container}",
            *(step.describe() for step in self.mounts),
            *(link.describe() for link in self.links),
            *(f"warning: {text}" for text in self.warnings),
            *(f"problem: {text}" for text in self.problems),
        ]


def make(
    container: str, images: Images, bundle: Bundle, manifest: Manifest | None, facts: Facts, *, hold: bool
) -> Plan:
    """Plan the restore of `images` as `container` with the config.json of `bundle`.

    Args:
        manifest: grit.json where there is one.
        hold: leave every task stopped, for `start` to continue.
    """
    steps = mounts.steps(images, facts.offer)
    led = links.lead(steps, facts.offer, facts.link_roots)
    opened = openfiles.in_volumes(images.open_files, steps, facts.filled)
    outcome = openfiles.examine(opened, facts.volumes)
    return Plan(
        container=container,
        images=images.path,
        mounts=steps,
        rewrites=merge(mounts.rewrites(steps, facts.offer), outcome.rewrites),
        mountpoints=mounts.mountpoints(steps, bundle, facts.offer),
        links=led.links,
        criu=_criu(steps, led, facts, hold=hold),
        stopped=tuple(process.pid for process in images.processes if process.stopped),
        problems=(
            *_other_machine(manifest, facts),
            *mounts.problems(steps, bundle, facts.offer),
            *led.problems,
            *outcome.problems,
        ),
        warnings=(*mounts.warnings(images, steps, facts.offer), *outcome.warnings),
    )


def _criu(steps: tuple[MountStep, ...], led: links.Led, facts: Facts, *, hold: bool) -> dict[str, bool | str]:
    """The CRIU options that this restore can't do without."""
    options: dict[str, bool | str] = {"leave-stopped": True} if hold else {}
    if facts.unified_cgroup:
        # runc sends CRIU the new cgroup since 1.2; without it CRIU puts the tasks into the old container's.
        options["cgroup-root"] = facts.unified_cgroup
    if any(step.action in (Action.KEEP, Action.LINK) for step in steps):
        options["ext-mount-map"] = "auto"
    if led.compat:
        options["mntns-compat-mode"] = True
    return options


def _other_machine(manifest: Manifest | None, facts: Facts) -> list[str]:
    if manifest is None or manifest.architecture == facts.architecture:
        return []
    return [f"the checkpoint was taken on {manifest.architecture}, this machine is {facts.architecture}"]


def merge(*rewrites: Mapping[str, Changes]) -> dict[str, Changes]:
    """The changes of several to images, of which no two change one entry."""
    merged: dict[str, Changes] = {}
    for each in rewrites:
        for name, changes in each.items():
            merged[name] = {**merged.get(name, {}), **changes}
    return merged
