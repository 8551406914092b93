"""What runs on another machine: the function, with one thread, after a look at the versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import headct
from headct.errors import HeadctError
from headct.workers import one_blas_thread

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Raised:
    """An error of the function, brought home as a value: no engine wraps or prints it."""

    error: Exception


@dataclass(frozen=True)
class Away(Generic[T, R]):
    """A function that can be called on another machine.

    Attributes:
        function: a pure function that can be pickled, without secrets in what it is bound to.
        version: the headct that sent it.
    """

    function: Callable[[T], R]
    version: str = headct.__version__

    def __call__(self, task: T) -> R | Raised:
        """The result of one task, or the error that it raised."""
        if self.version != headct.__version__:
            return Raised(
                HeadctError(
                    f"a worker has headct {headct.__version__}, this is {self.version}",
                    code="worker-version",
                    remedy="install the same version on all machines; the same command goes on",
                )
            )
        try:
            with one_blas_thread():
                return self.function(task)
        except Exception as error:
            return Raised(error)


def opened(result: R | Raised) -> R:
    """The result; an error is raised here.

    Raises:
        Exception: what the function raised.
    """
    if isinstance(result, Raised):
        raise result.error
    return result
