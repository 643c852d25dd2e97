"""`python -m grit_runtime.agent node|manager|crds`: the two programs of docs/kubernetes.md, and the definitions."""

import argparse
import asyncio
import logging
import os
import ssl
import sys

from grit_runtime.errors import GritError


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for name in ("kopf.objects", "aiohttp.access"):  # a line for each event, and for each probe of kubelet's
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if options.part == "crds":
            from grit_runtime.agent import crds

            sys.stdout.write(crds.text())
        elif options.part == "node":
            asyncio.run(_node(options))
        else:
            asyncio.run(_manager(options))
    except GritError as err:
        sys.stderr.write(f"grit-agent: {err}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grit-agent", description="Checkpoint and Restore resources (docs/kubernetes.md)."
    )
    parts = parser.add_subparsers(dest="part", required=True)
    node = parts.add_parser("node", help="on each node: capture its pods, bring data to it")
    node.add_argument("--node", default=os.environ.get("NODE_NAME", ""), help="its name [NODE_NAME]")
    node.add_argument("--root", default="/var/lib/grit-runtime/checkpoints", help="its checkpoint root")
    node.add_argument(
        "--volume", action="append", default=[], metavar="CLAIM=DIR", help="where a claim is mounted that may be named"
    )
    node.add_argument(
        "--registry",
        action="append",
        default=[],
        metavar="[http://]HOST[:PORT][/PREFIX]",
        help="a registry that may be named; a namespace's repositories are below HOST/PREFIX/NAMESPACE",
    )
    node.add_argument(
        "--runtime", default="grit-runtime", help="the runtime's program on the node, and what leads there, by words"
    )
    manager = parts.add_parser("manager", help="once in the cluster: which pod, and what becomes of it; the webhook")
    manager.add_argument("--webhook-port", type=int, default=8443)
    manager.add_argument("--tls-cert", default="", help="the webhook's certificate; without one there is no webhook")
    manager.add_argument("--tls-key", default="")
    manager.add_argument("--runtime-class", default="grit", help="of pods that name none; empty: leave them")
    for one in (node, manager):
        one.add_argument("--liveness", default=None, metavar="URL", help="served for kubelet's probe")
    parts.add_parser("crds", help="print the custom resource definitions")
    return parser


def volumes(words: list[str]) -> dict[str, str]:
    """Claim name to directory. Raises GritError: a word is no CLAIM=DIR."""
    made = {}
    for word in words:
        claim, _, directory = word.partition("=")
        if not claim or not os.path.isabs(directory):
            raise GritError(f"--volume {word}: it must be CLAIM=DIR, with an absolute path")
        made[claim] = directory
    return made


async def _node(options: argparse.Namespace) -> None:
    from grit_runtime.agent import capture, handlers, reference, words
    from grit_runtime.agent.client import Api
    from grit_runtime.agent.node import Node
    from grit_runtime.agent.queue import Queue
    from grit_runtime.agent.stores import Stores

    if not options.node:
        raise GritError("which node is this? say --node, or set NODE_NAME")
    async with Api(handlers.server(handlers.info)) as api:
        node = Node(
            api=api,
            name=options.node,
            root=options.root,
            stores=Stores(
                volumes=volumes(options.volume), registries=[reference.allowed(word) for word in options.registry]
            ),
            program=capture.Program(argv=tuple(options.runtime.split())),
        )
        queue = Queue(node.look)
        try:
            await capture.recover(node.program)
            for key in node.known():
                queue.wake(key)
            await handlers.watch(
                handlers.info,
                queue.wake,
                (words.CHECKPOINTS,),
                node=options.node,
                concerns=node.concerns,
                liveness=options.liveness,
            )
        finally:
            await queue.close()


async def _manager(options: argparse.Namespace) -> None:
    from grit_runtime.agent import handlers, webhook, words
    from grit_runtime.agent.client import Api
    from grit_runtime.agent.manager import Manager
    from grit_runtime.agent.queue import Key, Queue

    async with Api(handlers.server(handlers.info)) as api:

        def wake(key: Key) -> None:
            queue.wake(key)

        queue = Queue(Manager(api=api, wake=wake).look)
        runner = None
        if options.tls_cert:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(options.tls_cert, options.tls_key)
            served = webhook.Webhook(api=api, runtime_class=options.runtime_class)
            runner = await webhook.serve(served, "0.0.0.0", options.webhook_port, context)
        try:
            await handlers.watch(
                handlers.info, queue.wake, (words.CHECKPOINTS, words.RESTORES), liveness=options.liveness
            )
        finally:
            if runner is not None:
                await runner.cleanup()
            await queue.close()


def console() -> None:
    """The script `grit-agent`."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    console()
