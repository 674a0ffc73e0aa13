"""What can go wrong while annotations are made, by what has to happen next."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AnnotationError(ValueError):
    """An input, a reply or a setting that annotation cannot use; the message names it."""


class TransientError(AnnotationError):
    """
    The endpoint gave no reply to this request in all tries, although it accepts it: overloaded, unreachable or broken.
    The record becomes an error row, and a later run asks again.
    """


class RejectedRequestError(AnnotationError):
    """The endpoint refuses this one request, such as for a picture that it cannot read. The record is an error row."""


class UnusableReplyError(RejectedRequestError):
    """The reply to this one request is one that would be the same again and cannot be read, such as a huge one."""


class StopError(AnnotationError):
    """No further request can succeed. The run ends after the finished work is saved, and can be resumed."""


class PermanentError(StopError):
    """The endpoint refuses every request: wrong key, unknown model, quota used up, or not reachable for long."""


class UnansweredError(PermanentError):
    """Too many requests in a row had no answer."""


class BudgetError(StopError):
    """The next request could cost more than is left of the budget."""


class OutputError(StopError):
    """The output folder cannot be written: what further requests cost would be lost."""


class LedgerError(OutputError):
    """The file of the costs cannot be written."""


class UnknownItemError(AnnotationError):
    """There is no such item in the review queue."""


class StaleItemError(AnnotationError):
    """The item of the review has changed since it was shown."""


class RefusedEditError(AnnotationError):
    """
    What a person edited breaks the exact checks.

    Args:
        problems (`list[str]`): A sentence for each broken rule.
    """

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of its block into an [`OutputError`] that names the path."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}). Is the disk full? What is finished is saved."
        ) from error
