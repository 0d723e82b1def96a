"""How long a model's queue may get, and how long a request may wait in it."""

from __future__ import annotations

from typing import Any

MAX_QUEUE = 1024
"""Requests that may wait for a model; the next one is refused with UNAVAILABLE, over HTTP 503."""

QUEUE_SECONDS = 30.0
"""Seconds that a request may wait before it is refused likewise, unless it brings its own `timeout`."""


def bound_queue(config: Any) -> None:
    """Bounds the queue of a model that batches dynamically.

    Args:
        config: its ModelConfig message.
    """
    policy = config.dynamic_batching.default_queue_policy
    policy.max_queue_size = MAX_QUEUE
    policy.default_timeout_microseconds = int(QUEUE_SECONDS * 1e6)
    policy.allow_timeout_override = True
    policy.timeout_action = policy.REJECT
