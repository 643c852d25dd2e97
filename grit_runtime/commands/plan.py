"""`plan`: what a restore would do."""

import click

from grit_runtime.commands import common

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
        from grit_runtime.commands import planlook, plantext

        seen = planlook.look(
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
