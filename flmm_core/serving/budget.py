"""The memory that the bodies and images of all requests share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flmm_core.serving.refusals import RefusalError, busy


class Budget:
    """Memory that all requests share, in bytes."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._lock = threading.Lock()

    @contextmanager
    def account(self) -> Iterator[Account]:
        """What one request takes; all of it is given back at the end."""
        account = Account(self)
        try:
            yield account
        finally:
            self._add(-account.taken)

    def _add(self, size: int) -> bool:
        with self._lock:
            if size > 0 and self.taken + size > self.total:
                return False
            self.taken += size
            return True


class Account:
    """Bytes that one request holds of a `Budget`."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.taken = 0

    def take(self, size: int) -> None:
        """Hold more bytes.

        Raises:
            RefusalError: 413 if they never fit, 429 if other requests hold too many.
        """
        if self.taken + size > self._budget.total:
            raise RefusalError(413, "The request needs more memory than the server may use.")
        if not self._budget._add(size):
            raise busy("The server's memory for images is full.", 1)
        self.taken += size
