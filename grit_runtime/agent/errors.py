"""What the API server says no to."""

from grit_runtime.errors import GritError


class ApiError(GritError):
    """The API server refused, or could not be asked."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """HTTP's; 0 where there was no answer."""


class NotFoundError(ApiError):
    """There is no such object."""


class ConflictError(ApiError):
    """Somebody else changed it meanwhile, or there is one of that name."""


class TransferError(GritError):
    """A registry refused, or could not be asked."""

    def __init__(self, message: str, status: int = 0, after: float = 0.0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        """HTTP's; 0 where the answer was none, or was cut short."""
        self.after = after
        """Seconds after which it wants to be asked again."""
