"""A load, the requests it is made of, and what was recorded under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the options need only Load, and the help of every command needs them
    import numpy as np

WARM_UP_SHARE = 0.2
"""A load is on uncounted for this share of the measured time first; at most WARM_UP_SECONDS."""
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Load:
    """How a server is asked: by so many clients, or so many times per second.

    Attributes:
        seconds: the measured time.
        clients: of a closed loop: each sends its next request as soon as it has an answer. 0 in an open loop.
        rate: of an open loop: requests per second, sent at even intervals whether the server keeps up or not.
            0 in a closed loop.
    """

    seconds: float
    clients: int = 0
    rate: float = 0.0

    @property
    def warm_up(self) -> float:
        """The seconds before the measured time."""
        return min(WARM_UP_SECONDS, self.seconds * WARM_UP_SHARE)

    @property
    def is_open(self) -> bool:
        """Whether requests are sent by the clock."""
        return self.rate > 0

    def __str__(self) -> str:
        return f"rate {self.rate:g}/s" if self.is_open else f"concurrency {self.clients}"


@dataclass(frozen=True)
class TextRequests:
    """Requests of one text, or one pair, to a served text model.

    Attributes:
        model: the model's name.
        rows: what is asked in turn, a string for each name of `inputs`.
        inputs: the model's inputs.
        outputs: those that clients ask for.
    """

    model: str
    rows: Sequence[Sequence[str]]
    inputs: Sequence[str]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Recording:
    """What was seen under a load; times in seconds from its begin, warm-up included.

    Attributes:
        sent: FP64 `[answered]`: when each answered request was sent. In an open loop, when it should have
            been sent: if the one before held it up, then its user has waited since that time.
        done: FP64 `[answered]`: when its answer had arrived.
        tokens: INT64 `[answered]`: how many tokens the server read.
        errors: when each failed request was sent, and its message.
        inputs, outputs: what was asked and answered, where the generator records it.
    """

    sent: np.ndarray
    done: np.ndarray
    tokens: np.ndarray
    errors: Sequence[tuple[float, str]] = ()
    inputs: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    outputs: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
