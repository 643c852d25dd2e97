"""`capture` and `restore-into`: checkpoints by their names, without a pod."""

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from grit_runtime.commands import common
from grit_runtime.inspection import words
from grit_runtime.oci import argv, bundle
from grit_runtime.oci.log import Notes

if TYPE_CHECKING:
    from grit_runtime.workflow import byhand


_PATIENCE = 60  # seconds that containers are frozen for an answer


@click.command("capture")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@click.option("--name", required=True, help="The checkpoint's: what grit.dev/restore-name of a new pod says.")
@click.option("--stop", is_flag=True, help="End the container when its checkpoint is complete.")
@click.option("--replace", is_flag=True, help="Where there is one of that name, replace it: for one container.")
@click.option(
    "--ask",
    is_flag=True,
    help="When all is complete, write `complete`, and read a line: `stop` ends the containers. Anything else, the end "
    "of the input, or a minute without an answer, has them run on.",
)
@common.as_json_option
def capture_container(
    containers: tuple[str, ...], name: str, stop: bool, replace: bool, ask: bool, as_json: bool
) -> int:
    """Take a checkpoint into the checkpoint root, where a pod finds it by its name.

    CONTAINER is an id, or the beginning of one, of containerd, docker, CRI-O or runc itself; a --root before `capture`
    says where else. Its namespace and name come from its annotations. It runs on afterwards, unless you say --stop.

    Several containers of one pod are captured at one moment: all are frozen before the first is dumped, and there are
    the checkpoints of all, or none.

    \b
    grit-runtime capture --name counter-1 3f2a9c
    grit-runtime --root /run/containerd/runc/k8s.io capture --name counter-1 --stop 3f2a9c
    grit-runtime capture --name web-1 $(crictl ps --quiet --pod $POD)

    Exits with 0, or with 1 if it failed: the containers run on then.
    """

    def say() -> int:
        from grit_runtime.workflow import byhand

        notes = Notes()
        if replace and (len(containers) > 1 or ask):
            raise click.UsageError("--replace is for one container, and not with --ask")
        asked = []
        for word in containers:
            context = byhand.find_container(common.config(), common.invocation(), word, notes)
            asked.append(byhand.plan_capture(context, name, stop=stop, replace=replace))
        begun = time.monotonic()
        made = _captured(asked, _answer if ask else lambda: stop, together=ask or len(asked) > 1)
        _warnings(notes)
        seconds = round(time.monotonic() - begun, 3)
        sizes = [byhand.size(images) for images in made]
        told = [
            {"container": one.context.container, "path": images, "bytes": size}
            for one, images, size in zip(asked, made, sizes, strict=True)
        ]
        if as_json and len(told) == 1:
            common.printed_json({**told[0], "seconds": seconds})
        elif as_json:
            common.printed_json({"containers": told, "bytes": sum(sizes), "seconds": seconds})
        else:
            for images, size in zip(made, sizes, strict=True):
                common.printed(f"{words.shown(images)}: {words.size(size)} in {seconds:.1f} s\n")
        return 0

    return common.said(say)


def _answer() -> bool:
    """Say that all is complete, and what whoever called wants now. They are frozen meanwhile: it is bounded."""
    common.printed("complete\n")
    sys.stdout.flush()
    ready, _, _ = select.select([0], [], [], _PATIENCE)
    return bool(ready) and os.read(0, 64).strip() == b"stop"


def _captured(asked: "list[byhand.Capture]", ends: Callable[[], bool], *, together: bool) -> list[str]:
    """Capture one container, or several of one pod; where the checkpoint of each lies."""
    from grit_runtime.commands import progress
    from grit_runtime.host import proc
    from grit_runtime.workflow import byhand, capture, podset

    places = [one.request.images for one in asked]
    total = 0
    for one in asked:
        pids = one.context.downstream.processes(one.context.container, timeout=one.context.config.timeouts.command)
        total += sum(proc.resident(pid) for pid in pids)
    if not together:
        with progress.shown("writing", lambda: byhand.written(places[0]), total):
            capture.capture(asked[0].context, asked[0].request)
        return places
    inner = [podset.inside(asked, images) for images in places]
    with progress.shown("writing", lambda: sum(map(byhand.written, inner)), total):
        podset.take(asked, ends)
    return places


@click.command("restore-into")
@click.argument("folder", metavar="BUNDLE", type=click.Path())
@click.argument("container", metavar="[ID]", default="")
@click.option("--name", required=True, help="The checkpoint's.")
@click.option("--namespace", default="", help="The checkpoint's.  [default: by the bundle's annotations, or `default`]")
@click.option(
    "--container-name", default="", help="The container's in its pod.  [default: by the bundle's annotations]"
)
def restore_into(folder: str, container: str, name: str, namespace: str, container_name: str) -> int:
    """Restore a checkpoint of the checkpoint root as the container of a bundle, and let it run.

    ID is the new container's, and the bundle's name if it isn't given. Its stdin and output are /dev/null; `restore`
    is for those who want others. `plan` says beforehand what will be done.

    \b
    grit-runtime checkpoints
    grit-runtime restore-into --name counter-1 /run/bundles/counter

    Exits with 0, or with 1 if it failed: nothing is left of it then.
    """

    def say() -> int:
        from grit_runtime import downstream
        from grit_runtime.commands import progress
        from grit_runtime.verbs import restore as verb
        from grit_runtime.workflow import byhand, restore
        from grit_runtime.workflow.context import Context

        notes, place = Notes(), common.absolute(folder)
        made = bundle.load(place)
        images = byhand.images_of(common.config(), made, name, namespace=namespace, container=container_name)
        identity = container or os.path.basename(place)
        given = ("--bundle", place, "--image-path", images, "--detach", identity)
        flags = argv.read_flags("restore", given, argv.RESTORE)
        context = Context(
            invocation=common.invocation(),
            config=common.config(),
            downstream=downstream.find(common.config().downstream, common.invocation()),
            log=notes,
            container=argv.container_id("restore-into", flags),
        )
        with progress.moved("reading", "rchar", byhand.size(images)), _without_stdio():
            restore.restore(context, verb.request(flags))
        _warnings(notes)
        common.printed(f"{words.shown(context.container)} runs, from {words.shown(images)}\n")
        return 0

    return common.said(say)


@contextmanager
def _without_stdio() -> Iterator[None]:
    """Have programs started here get /dev/null for stdin and output: the restored container would get ours."""
    kept = [os.dup(number) for number in range(3)]
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in range(3):
            os.dup2(nothing, number)
        yield
    finally:
        for number, fd in enumerate(kept):
            os.dup2(fd, number)
            os.close(fd)
        os.close(nothing)


def _warnings(notes: Notes) -> None:
    for level, message in notes.lines:
        if level in ("warning", "error"):
            click.echo(words.shown(f"{level}: {message}", 2000), err=True)
