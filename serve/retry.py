"""When a request is sent again: exponential back-off with jitter, within the request's deadline."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from bertmp.core.errors import AnswerTooLate, BertmpError, ServerFault


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is sent again that may succeed later, and after how long.

    Attributes:
        attempts: how many times it is sent at most; 1 never sends it again.
        first_delay: seconds before the second attempt; each further wait is twice as long.
        longest_delay: seconds that a wait is at most.
    """

    attempts: int = 6
    first_delay: float = 0.1
    longest_delay: float = 2.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures, at random between half of the wait and all of it.

        Clients that failed together do not come back together.
        """
        full = min(self.longest_delay, self.first_delay * 2 ** (failures - 1))
        return full * random.uniform(0.5, 1.0)


RETRIES = RetryPolicy()
NO_RETRIES = RetryPolicy(attempts=1)


class Attempts:
    """The attempts at one request.

    Args:
        policy: how many there may be.
        timeout: seconds for all of them together.
    """

    def __init__(self, policy: RetryPolicy, timeout: float) -> None:
        self._policy, self._end = policy, time.monotonic() + timeout
        self._failures = 0
        self._fault: ServerFault | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, above 0."""
        return max(0.001, self._end - time.monotonic())

    def pause_after(self, error: BertmpError) -> float | None:
        """Seconds to wait before the next attempt; None where there is none."""
        self._failures += 1
        if not isinstance(error, ServerFault) or not error.retryable:
            return None
        self._fault = error
        if self._failures >= self._policy.attempts:
            return None
        pause = self._policy.delay(self._failures)
        return pause if pause < self.remaining else None

    def cause_of(self, error: BertmpError) -> BertmpError:
        """What to tell of attempts that ended with an error: what made them so many, if time ran out."""
        return self._fault if isinstance(error, AnswerTooLate) and self._fault else error
