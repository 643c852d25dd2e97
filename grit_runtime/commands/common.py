"""What all commands for people share."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from grit_runtime.config import Config
from grit_runtime.errors import GritError
from grit_runtime.host import files
from grit_runtime.oci.argv import Invocation

_INVOCATION = "grit_runtime.invocation"

as_json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, on standard output.")


class Commands(click.Group):
    """A group whose commands know how the program was called: with which `--root`, for one."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click's, with `invocation` kept for the commands."""
        invocation = extra.pop("invocation", None)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[_INVOCATION] = invocation
        return context


def config() -> Config:
    """The site's configuration."""
    found = click.get_current_context().find_object(Config)
    assert found is not None
    return found


def invocation() -> Invocation:
    """How the program was called."""
    found: Invocation = click.get_current_context().meta[_INVOCATION]
    return found


def said(do: Callable[[], int], *, failure: int = 1) -> int:
    """Do it; one of our errors is one line on standard error, and `failure` the exit code."""
    try:
        return do()
    except GritError as err:
        click.echo(f"grit-runtime: {err}", err=True)
        return failure


def printed(output: str) -> None:
    """Write what may hold names of any kind, on a terminal of any kind."""
    click.echo(output.encode(sys.stdout.encoding or "utf-8", "backslashreplace"), nl=False)


def printed_json(document: Any) -> None:
    """Write a document."""
    printed(json.dumps(document, indent=2) + "\n")


def write(path: str, text: str, mode: int = 0o644) -> None:
    """To a file, whole or not at all; `-` is standard output."""
    if path == "-":
        printed(text)
        return
    try:
        files.write_atomically(os.path.abspath(path), text.encode("utf-8", "backslashreplace"), mode)
    except OSError as err:
        raise GritError(f"cannot write {path}: {err.strerror}") from None


def absolute(path: str) -> str:
    """A path as the user meant it."""
    return os.path.abspath(path)
