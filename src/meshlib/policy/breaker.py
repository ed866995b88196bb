"""An optional breaker of the application's own for each cluster, on pybreaker (closed, open, half-open).

Envoy has no such thing: its limits are in `meshlib.state`, its ejection in `meshlib.balance.outlier`. A breaker fails calls at
once after `fail_max` calls in a row ended badly, lets `trials` calls through after `reset_timeout`, and closes again when
`success_threshold` of them went well. pybreaker brings the states, the listeners and the storage. Its `call()` holds a lock
while the protected function runs, and knows no asyncio; so it is only told how a call ended, with a function that does
nothing else. The time comes from the engine's clock, since pybreaker reads the wall clock, which can jump.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pybreaker

__all__ = ["Breaker", "BreakerConfig", "BreakerSet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """The breaker of one cluster.

    fail_max: calls in a row that end badly (no answer, or a 5xx after all retries) until it opens, default 5.
    reset_timeout: seconds that it stays open, default 60. trials: calls let through at the same time while half-open,
    default 1. success_threshold: trials that must go well before it closes, default 1. listeners, storage: pybreaker's
    `CircuitBreakerListener` and `CircuitBreakerStorage` objects; storage None keeps the state in this process.
    """

    fail_max: int = 5
    reset_timeout: float = 60.0
    trials: int = 1
    success_threshold: int = 1
    listeners: Sequence[pybreaker.CircuitBreakerListener] = ()
    storage: pybreaker.CircuitBreakerStorage | None = None

    def __post_init__(self) -> None:
        for name in ("fail_max", "trials", "success_threshold"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        if not self.reset_timeout > 0:
            raise ValueError(f"reset_timeout must be more than 0 seconds, not {self.reset_timeout!r}")


class _BadOutcome(Exception):
    """Stands for a call that ended badly; never leaves this module."""


class Breaker:
    """One breaker. Thread safe; no lock is held while a call runs."""

    def __init__(self, name: str, config: BreakerConfig) -> None:
        import pybreaker

        self._config = config
        self._lock = threading.Lock()
        self._opened_at: float | None = None
        self._on_trial = 0
        self._error = pybreaker.CircuitBreakerError
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=config.fail_max,
            reset_timeout=config.reset_timeout,
            success_threshold=config.success_threshold,
            listeners=list(config.listeners),
            state_storage=config.storage,
            name=name,
        )

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._breaker.current_state

    def admit(self, now: float) -> bool:
        """Whether a call may start. Each True must be followed by one `record`. now: monotonic seconds."""
        if self.state == "closed":
            return True
        with self._lock:
            if self.state == "open":
                if self._opened_at is None:
                    self._opened_at = now
                if now < self._opened_at + self._config.reset_timeout:
                    return False
                self._opened_at = None
                self._on_trial = 0
                self._breaker.half_open()
            if self._on_trial >= self._config.trials:
                return False
            self._on_trial += 1
            return True

    def record(self, ok: bool | None, now: float) -> None:
        """How an admitted call ended. None: it was given up, nobody knows."""
        with self._lock:
            self._on_trial = max(0, self._on_trial - 1)
            if ok is None or self.state == "open":
                return
            with suppress(_BadOutcome, self._error):
                self._breaker.call(_succeed if ok else _fail)
            if self.state == "open":
                self._opened_at = now

    def renew_lock(self) -> None:
        """In a forked child: nobody holds the lock, and none of the parent's calls is here."""
        self._lock = threading.Lock()
        self._on_trial = 0


def _succeed() -> None:
    return None


def _fail() -> None:
    raise _BadOutcome


class BreakerSet:
    """The breakers that the application asked for, by cluster name; `*` is for every cluster that has none of its own."""

    def __init__(self, configs: Mapping[str, BreakerConfig]) -> None:
        self._configs = dict(configs)
        self._breakers: dict[str, Breaker] = {}

    def get(self, cluster: str) -> Breaker | None:
        """The cluster's breaker, made at the first use and kept; None when the application wants none."""
        breaker = self._breakers.get(cluster)
        if breaker is None:
            config = self._configs.get(cluster) or self._configs.get("*")
            if config is None:
                return None
            breaker = self._breakers[cluster] = Breaker(cluster, config)
        return breaker

    def renew_locks(self) -> None:
        for breaker in self._breakers.values():
            breaker.renew_lock()
