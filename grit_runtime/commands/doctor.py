"""`doctor`: whether this node is able to do it."""

import time

import click

from grit_runtime.commands import common
from grit_runtime.engines import ENGINES


@click.command("doctor")
@click.option(
    "--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)), help="Look at this engine, also at several."
)
@click.option("--node", is_flag=True, help="Only the node itself: no engine.")
@click.option("--runtime-name", default="grit", show_default=True, help="What the engines know the runtime as.")
@click.option("--fix-hints", is_flag=True, help="With commands that put things right, where there are some.")
@click.option("--no-disk", is_flag=True, help="Don't measure disks: that writes 32 MiB to each checkpoint root.")
@click.option("--labels", metavar="FILE", default="", help="Write labels of the node, a line each; - for the output.")
@click.option("--metrics", metavar="FILE", default="", help="Write metrics for node_exporter's textfile collector.")
@common.as_json_option
def command(
    engines: tuple[str, ...],
    node: bool,
    runtime_name: str,
    fix_hints: bool,
    no_disk: bool,
    labels: str,
    metrics: str,
    as_json: bool,
) -> int:
    """Say whether this node can checkpoint and restore containers, and what to do where it can't.

    Looked at are the kernel, CRIU and its own check, the downstream runtime, engines, with the PATH that their
    processes have, directories, what killed calls left, and NVIDIA's driver and GPUs. Without --engine, the engines
    that run here. Each check is ok, warn, fail or skip, and has an id that docs/doctor.md explains.

    \b
    grit-runtime doctor --fix-hints
    grit-runtime doctor --json | jq -r '.checks[] | select(.state == "fail") | .id'
    kubectl label node NODE --overwrite $(grit-runtime doctor --labels -)
    grit-runtime doctor --metrics /var/lib/node_exporter/textfile_collector/grit.prom

    Exits with 0 if nothing failed (with warnings, too), 1 if something did, and 2 if the checks couldn't be made.
    """

    def say() -> int:
        from grit_runtime.doctor import look, output, table
        from grit_runtime.doctor.model import State

        if node and engines:
            raise click.UsageError("--node looks at no engine: leave out --engine")
        facts = look.gather(
            common.config(), engines=None if node else engines, runtime_name=runtime_name, speed=not no_disk
        )
        judged = table.judge(facts)
        if metrics:
            common.write(metrics, output.metrics(judged, time.time()))
        if labels:
            common.write(labels, output.label_lines(facts, judged))
        if as_json:
            common.printed_json(output.document(facts, judged))
        elif "-" not in (labels, metrics):
            common.printed(output.render(judged, hints=fix_hints))
        return 1 if any(item.verdict.state is State.FAIL for item in judged) else 0

    return common.said(say, failure=2)
