"""From the arguments of `plan` to the restore that they ask for, read by the verbs' own rules."""

from grit_runtime import downstream
from grit_runtime.checkpoint import locate
from grit_runtime.config import Config
from grit_runtime.errors import CheckpointError, UsageError
from grit_runtime.oci import argv, bundle
from grit_runtime.oci.argv import Invocation
from grit_runtime.oci.log import Notes
from grit_runtime.verbs import create, restore
from grit_runtime.workflow.context import Context
from grit_runtime.workflow.foresee import Foreseen, foresee
from grit_runtime.workflow.prepare import Request


def look(
    config: Config, invocation: Invocation, folder: str, images: str, container: str, switches: list[str]
) -> Foreseen:
    """Look at the restore that the arguments ask for.

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
