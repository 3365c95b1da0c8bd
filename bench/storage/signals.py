"""SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 ask a run to stop; it keeps what it has and goes on later.

In the parent they raise at once. In training they set a flag that is read after each update; an update that takes
longer than a moment is dropped. Elsewhere in a child they raise, and the open cell is lost. A second one ends it all.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGUSR2: 143}
GRACE = 3.0  # seconds for the update under way: what is left of 10 is for a large state and the end of Python
MOMENT = 0.01  # seconds: a finalizer has ended by then


class Interrupted(BaseException):
    """A signal asked to stop; not an Exception, so that nothing takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """They raise Interrupted in the main thread, once; a second one ends the process at once."""

    def handler(signum: int, frame: FrameType | None) -> None:
        for number in EXIT_INTERRUPTED:
            signal.signal(number, signal.SIG_DFL)
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hook, sys.unraisablehook = sys.unraisablehook, raise_again
    before = {signum: signal.signal(signum, handler) for signum in EXIT_INTERRUPTED}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, previous in before.items():
            signal.signal(signum, previous)
        sys.unraisablehook = hook


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """The first that comes inside is sent again at the end, for what has to be done whole; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def handler(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        if len(came) == 2:
            send_again()

    def send_again() -> None:
        for signum, previous in before.items():
            signal.signal(signum, previous)
        first = came[:1]
        came.clear()
        for number in first:
            signal.raise_signal(number)

    before = {signum: signal.signal(signum, handler) for signum in EXIT_INTERRUPTED}
    try:
        yield
    finally:
        send_again()


def raise_again(lost: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised in a finalizer or the callback of a weak reference: Interrupted comes once more."""
    stopped = lost.exc_value
    if not isinstance(stopped, Interrupted):
        sys.__unraisablehook__(lost)
        return

    def handler(alarm: int, frame: FrameType | None) -> None:
        raise Interrupted(stopped.signum)

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, MOMENT)


class Stuck(BaseException):
    """Something has taken longer than it may; not an Exception, so that what hangs does not catch it."""


class StopFlag:
    """The handler of a child. Called, it says whether a signal has come while ``training`` was True."""

    def __init__(self) -> None:
        self.signum: int | None = None  # in training
        self.came: int | None = None  # at any time
        self.training = False
        for signum in EXIT_INTERRUPTED:
            signal.signal(signum, self._handle)
        signal.signal(signal.SIGALRM, self._drop)
        sys.unraisablehook = raise_again

    def __call__(self) -> bool:
        return self.signum is not None

    @contextlib.contextmanager
    def in_training(self) -> Iterator[None]:
        """Inside, the first signal only sets the flag, and raises after a moment if nothing has come of it."""
        self.training = True
        try:
            yield
        finally:
            self.training = False
            self.settle()

    def limit(self, seconds: float) -> None:
        """Raises Stuck in the training after so long, unless it has settled before."""
        if self.signum is None:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def settle(self) -> None:
        """The update under way is over, and its time with it."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.came = self.came or signum
        if not self.training or self.signum is not None:
            raise Interrupted(signum)
        self.signum = signum
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _drop(self, signum: int, frame: FrameType | None) -> None:
        if self.training and self.signum is not None:
            raise Interrupted(self.signum)
        if self.training:
            raise Stuck
