"""The main job, end to end, on real components: `make demo`.

A container counts; it is checkpointed; its pod and everything on disk that was the pod's is removed; a new pod brings
it back.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pods import TOKEN, Containerd, Failed, Pod, wait

COUNT_AND_LOOK = (
    "i=0; while :; do i=$((i+1)); echo $i; echo $i >> /data/out;"
    f" [ -e /data/ask ] && cat /etc/hostname {TOKEN}/token > /data/look; sleep 0.1; done"
)


class Story:
    """Tells what happens, and times it."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        print(text, flush=True)

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        self.say(f"\n== {title}")
        begin = time.monotonic()
        yield
        self.phases.append((title, time.monotonic() - begin))

    def table(self) -> None:
        self.say("\nWhere the time went:")
        for title, seconds in self.phases:
            self.say(f"  {seconds:7.2f} s  {title}")


def claim(text: str, holds: bool) -> None:
    """State something that must be so."""
    if not holds:
        raise Failed(f"this should be so and isn't: {text}")
    print(f"   ok: {text}", flush=True)


def show(story: Story, containerd: Containerd) -> None:
    """Tell the story."""
    old = Pod(base=containerd.base, name="counter-old")
    with story.phase("A pod starts, through grit-runtime, under containerd's stock shim"):
        containerd.run_sandbox(old)
        containerd.run_app(old, COUNT_AND_LOOK)
        wait("the container counts", lambda: len(old.lines()) >= 10)
    story.say(f"   its container counts; its output so far ends with {old.lines()[-3:]}")

    with story.phase("containerd checkpoints it (it pauses the container, then calls grit-runtime checkpoint)"):
        images = containerd.checkpoint(old, "first", stop=True)
        wait("the container ends", lambda: containerd.status(old.container) == "STOPPED")
    size = sum(file.stat().st_size for file in images.iterdir())
    last, written = old.lines()[-1], old.numbers()[-1]
    claim(
        f"the checkpoint is complete: {len(list(images.iterdir()))} files, {size / 1024:.0f} KiB, with grit.json",
        (images / "grit.json").exists(),
    )
    story.say(f"   the last number of its output is {last}")

    with story.phase("The old pod is removed: containers, volumes, sandbox directory"):
        containerd.remove_pod(old)
    claim("nothing of its directories is left", not old.directory.exists() and not old.sandbox_directory.exists())

    new = Pod(base=containerd.base, name="counter-new")
    with story.phase("A NEW pod starts, with one annotation"):
        story.say(f"   grit.dev/checkpoint: {images.parent.parent}")
        containerd.start_pod(new, checkpoint=str(images.parent.parent))
    with story.phase("Its container goes on counting"):
        wait("it goes on", lambda: len(new.lines()) >= 5)
    rows = [
        ("pod UID", old.uid, new.uid),
        ("sandbox", old.sandbox[:24], new.sandbox[:24]),
        ("container", old.container[:24], new.container[:24]),
    ]
    for word, before, after in [*rows, ("hash", old.hash, new.hash), ("hostname", old.name, new.name)]:
        story.say(f"   {word:<10} {before:<38} -> {after}")
    numbers = new.numbers()
    claim(f"the new task's output goes on with {new.lines()[:3]}, after {last}", new.lines()[0] == last + 1)
    claim(
        "no number is missing and none is there twice", numbers == list(range(written + 1, written + 1 + len(numbers)))
    )
    (new.data / "ask").touch()
    look = new.data / "look"
    wait("it reads its files", lambda: look.exists() and look.read_text() == f"{new.name}\ntoken of pod {new.uid}\n")
    claim("the process, which never noticed, reads the new pod's hostname and token", True)

    with story.phase("It is a container like any other: exec, kill, delete"):
        said = containerd.ctr("task", "exec", "--exec-id", "look", new.container, "/bin/cat", "/etc/hostname")
        claim(f"exec in it says hostname {said.strip()}", said.strip() == new.name)
        containerd.remove_pod(new)
    claim("nothing of grit-runtime is left in its state directory", not list(containerd.state.rglob("*/*")))


def main() -> int:
    """Run the demo; the exit code says whether everything was as said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", type=Path, required=True, help="the grit-runtime to show")
    arguments = parser.parse_args()
    story = Story()
    try:
        with Containerd(arguments.runtime) as containerd:
            show(story, containerd)
    except Failed as err:
        print(f"\nFAILED: {err}", file=sys.stderr)
        return 1
    story.table()
    story.say(
        "\nA container came back in another pod, from where it was. Everything that was started here is gone again."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
