"""`report`: where the time of a checkpoint or a restore went."""

import click

from grit_runtime.commands import common
from grit_runtime.errors import UsageError

NOTHING = 2


@click.command("report")
@click.argument("target", default="", metavar="[CONTAINER | DIRECTORY]")
@click.option("--list", "listed", is_flag=True, help="List the records that are kept, the newest first.")
@click.option(
    "--html",
    metavar="FILE",
    default="",
    type=click.Path(),
    help="Write one HTML page with a timeline; it fetches nothing.",
)
@click.option(
    "--openmetrics",
    metavar="FILE",
    default="",
    type=click.Path(),
    help="Write metrics for node_exporter's textfile collector.",
)
@click.option("--otel", is_flag=True, help="Send OpenTelemetry spans to where OTEL_* in the environment says.")
@common.as_json_option
def command(target: str, listed: bool, html: str, openmetrics: str, otel: bool, as_json: bool) -> int:
    """Show the phases of the last checkpoint or restore: seconds, bytes, their sum against the wall clock.

    Without an argument it is the newest operation of this node, failed ones too; of a container, the newest of its id,
    or of one that begins so. Of a checkpoint's DIRECTORY it is the making of it, on any node. `-` for FILE is standard
    output.

    \b
    grit-runtime report
    grit-runtime report 3f9a
    grit-runtime report /var/lib/grit-runtime/checkpoints/default/counter-1/counter
    grit-runtime report --html report.html 3f9a
    grit-runtime report --openmetrics /var/lib/node_exporter/textfile_collector/grit-operation.prom
    grit-runtime report --json | jq '.phases[] | select(.seconds > 1)'

    Exits with 0, also where the operation failed, or with 2 if there is no record.
    """

    def say() -> int:
        from grit_runtime.report import read

        if listed:
            return _list(target, as_json)
        found = read.operation(common.config(), target)
        if html:
            from grit_runtime.report import page

            common.write(html, page.render(found), 0o600)
        if openmetrics:
            from grit_runtime.report import metrics

            common.write(openmetrics, metrics.render(found))
        if otel:
            from grit_runtime.report import spans

            click.echo(f"grit-runtime: {spans.send(found)} spans sent", err=True)
        if as_json:
            common.printed_json(found.document())
        elif "-" not in (html, openmetrics):
            from grit_runtime.report import text

            common.printed(text.render(found))
        return 0

    if listed and (html or openmetrics or otel):
        raise click.UsageError("--list goes with --json alone")
    return common.said(say, failure=NOTHING)


def _list(target: str, as_json: bool) -> int:
    from grit_runtime.report import read, text

    found, unread = read.everything(common.config(), target)
    for why in unread:
        click.echo(f"grit-runtime: {why}", err=True)
    if not found and not unread:
        raise UsageError(read.nothing(common.config(), target))
    if as_json:
        common.printed_json({"operations": [each.document() for each in found]})
    elif found:
        common.printed(text.listing(found))
    return 0
