"""Threads of zbus that come late at random, as on a machine that has much else to do.

A test that passes here waits for what it means; one that fails has counted on being fast.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from zbus.engine import workers
from zbus.engine.loop import Engine

SELDOM, LONG = 0.03, 0.4
OFTEN, SHORT = 0.25, 0.03  # seconds, at most


def make(seed: int) -> None:
    """From now on, in this process."""
    chance = random.Random(seed)

    def late(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def waits(*args: Any) -> Any:
            draw = chance.random()
            most = LONG if draw < SELDOM else SHORT if draw < OFTEN else 0.0
            if most:
                time.sleep(chance.random() * most)
            return call(*args)

        return waits

    Engine._turn = late(Engine._turn)  # type: ignore[method-assign]
    workers.outcome = late(workers.outcome)
