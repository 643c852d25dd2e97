"""`plan`: what a restore would do."""

import click

from grit_runtime import downstream
from grit_runtime.checkpoint import locate
from grit_runtime.commands import common, plantext
from grit_runtime.config import Config
from grit_runtime.errors import CheckpointError, UsageError
from grit_runtime.oci import argv, bundle
from grit_runtime.oci.argv import Invocation
from grit_runtime.verbs import create, restore
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.foresee import Foreseen, Notes, foresee
from grit_runtime.workflow.prepare import Request

WORKS, FAILS, UNKNOWN = 0, 1, 2


@click.command("plan")
@click.option(
    "--bundle", default=".", metavar="DIR", type=click.Path(), help="The new container's bundle.  [default: here]"
)
@click.option(
    "--image-path",
    default="",
    metavar="CHECKPOINT",
    type=click.Path(),
    help="The checkpoint.  [default: the one that the bundle's annotations name, as `create` finds it]",
)
@click.option("--tcp-established", is_flag=True, help="As of `restore`: TCP connections go on.")
@click.option("--shell-job", is_flag=True, help="As of `restore`: the container shares its caller's session.")
@click.argument("container", default="", metavar="[ID]")
@common.as_json_option
def command(bundle: str, image_path: str, tcp_established: bool, shell_job: bool, container: str, as_json: bool) -> int:
    """Show what a restore would do, step by step, and every problem that would keep it from working.

    This is the plan that `restore` and `create` execute, made by the same code, and nothing is changed: no file,
    mount, cgroup or process. No page of memory is read and no checksum compared, however large the checkpoint is
    (`inspect --check` compares them). ID is the new container's, and the bundle's name if it isn't given.

    \b
    grit-runtime plan --bundle /run/new --image-path checkpoints/default/counter-1/counter/checkpoint
    grit-runtime plan --bundle /run/containerd/io.containerd.runtime.v2.task/k8s.io/ID
    grit-runtime plan --json --bundle DIR --image-path CHECKPOINT | jq -r '.problems[]'

    Exits with 0 if nothing is known that would make it fail, 1 if it would fail, and 2 if nobody can say: the bundle
    can't be read, or names no checkpoint.
    """
    switches = [word for word, on in (("--tcp-established", tcp_established), ("--shell-job", shell_job)) if on]

    def say() -> int:
        seen = look(
            common.config(),
            common.invocation(),
            common.absolute(bundle),
            image_path and common.absolute(image_path),
            container,
            switches,
        )
        if as_json:
            common.printed_json(plantext.document(seen))
        else:
            common.printed(plantext.render(seen))
        return WORKS if seen.works else FAILS

    return common.said(say, failure=UNKNOWN)


def look(
    config: Config, invocation: Invocation, folder: str, images: str, container: str, switches: list[str]
) -> Foreseen:
    """Look at the restore that the arguments ask for, read by the verbs' own rules.

    Args:
        folder: the bundle.
        images: the checkpoint; empty for the one that the annotations name.
        container: its id; empty for the bundle's name.
        switches: of `restore`.

    Raises:
        GritError: nobody can say.
    """
    name = container or folder.rstrip("/").rpartition("/")[2]
    verb = "restore" if images else "create"
    if not images and switches:
        raise UsageError(f"plan: {switches[0]} needs --image-path: it is a flag of `restore`, not of `create`")
    words = ["--bundle", folder, *(["--image-path", images, "--detach", *switches] if images else []), name]
    flags = argv.read_flags(verb, tuple(words), argv.RESTORE if images else argv.CREATE)
    context = Context(
        invocation=invocation,
        config=config,
        downstream=downstream.find(config.downstream, invocation),
        log=Notes(),
        container=argv.container_id("plan", flags),
    )
    if images:
        return foresee(context, restore.request(flags))
    return _by_annotation(context, folder, flags)


def _by_annotation(context: Context, folder: str, flags: argv.Flags) -> Foreseen:
    made = bundle.load(folder)
    if not locate.wanted(made.annotations):
        raise UsageError(
            f"the annotations of {made.config_path} name no checkpoint: `create` would start it from scratch",
            hint="name one with --image-path",
        )
    try:
        return foresee(context, create.request(context.config, made, flags))
    except CheckpointError as err:  # the annotations lead to nothing
        nothing = Request(bundle=made, images="", work="", pid_file="", flags=(), serves_create=True)
        return Foreseen(context=context, request=nothing, problems=[str(err)])
