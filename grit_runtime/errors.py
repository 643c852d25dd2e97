"""One error tree. A message is one line: what failed, on what, why, and (the hint) what to do."""


class GritError(Exception):
    """Base of every failure that we explain; anything else that is raised is a bug.

    Args:
        message: what failed, on what, why; lower case, no full stop.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """The whole story on one line, as containerd and kubelet will show it."""
        text = super().__str__()
        if self.hint:
            text = f"{text} ({self.hint})"
        return " ".join(text.split())


class UsageError(GritError):
    """The caller's arguments."""


class ConfigError(GritError):
    """Our own configuration file."""


class BundleError(GritError):
    """The bundle or its config.json."""


class CdiError(GritError):
    """What a container asks for by the Container Device Interface, or the specs that should have it."""


class UnknownDeviceError(CdiError):
    """No spec of this node has it."""


class CheckpointError(GritError):
    """What lies in a checkpoint directory, or doesn't."""


class DownstreamError(GritError):
    """The downstream runtime is missing, or said no."""


class CaptureError(GritError):
    """A checkpoint could not be taken; the container runs on."""


class RestoreError(GritError):
    """A container could not be restored; nothing is left of it."""


class PlanError(RestoreError):
    """What the images need and the new container lacks: every problem at once."""

    def __init__(self, container: str, problems: tuple[str, ...]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"cannot restore container {container}: {count}: {'; '.join(problems)}",
            hint="nothing was touched",
        )
        self.problems = problems


class BusyError(GritError):
    """Another grit-runtime works on the same container."""


class InterruptedCallError(GritError):
    """A signal asked us to end: what was begun is undone on the way out."""


class RecoveryError(GritError):
    """Something that a killed run left could not be undone."""
