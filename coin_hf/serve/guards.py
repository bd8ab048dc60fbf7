"""What guards hedging: the deadline of each expert, the token bucket, the breaker."""

from collections import deque
from collections.abc import Callable

from coin_hf.serve.settings import BreakerBlock, DeadlineBlock, HedgeBlock

WINDOW = 200
"""Recent direct answers whose quantile is the deadline."""
ENOUGH = 20
"""Answers from which on there is a quantile."""
EPOCH = 10
"""Answers after which the quantile is computed again."""


class Deadline:
    """When one expert counts as late: a quantile of its recent direct answers, within bounds."""

    def __init__(self, block: DeadlineBlock) -> None:
        """Start with the longest.

        Args:
            block: Quantile and bounds.
        """
        self._block, self._recent = block, deque[float](maxlen=WINDOW)
        self._since = 0
        self.seconds = block.most

    def observe(self, seconds: float) -> None:
        """Count a direct answer.

        Args:
            seconds: How long it took; for one that was given up, how long it had taken by then,
                which is above the deadline and keeps the quantile from creeping down.
        """
        self._recent.append(seconds)
        self._since += 1
        if len(self._recent) < ENOUGH or (self._since < EPOCH and len(self._recent) > ENOUGH):
            return
        self._since = 0
        ordered = sorted(self._recent)
        found = ordered[min(int(self._block.quantile * len(ordered)), len(ordered) - 1)]
        self.seconds = min(max(found, self._block.least), self._block.most)


class Tokens:
    """A bucket of tokens: each hedge takes one, each direct answer in time gives a part back."""

    def __init__(self, block: HedgeBlock) -> None:
        """Start with a full bucket.

        Args:
            block: Size and refill.
        """
        self._block, self.left = block, block.tokens

    def give(self) -> None:
        """Give a part of a token back."""
        self.left = min(self.left + self._block.refill, self._block.tokens)

    def take(self) -> bool:
        """Take a token.

        Returns:
            Whether there was one.
        """
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Breaker:
    """Whether one expert counts as down, and when it is tried again."""

    def __init__(self, block: BreakerBlock, now: Callable[[], float]) -> None:
        """Start closed: the expert is asked.

        Args:
            block: Misses until it opens, seconds between probes.
            now: The time in seconds.
        """
        self._block, self._now = block, now
        self._misses, self._next = 0, 0.0

    @property
    def open(self) -> bool:
        """Whether the expert counts as down."""
        return self._misses >= self._block.misses

    def answered(self) -> None:
        """Count an answer: the expert is up."""
        self._misses = 0

    def missed(self) -> None:
        """Count an error, or a request given up."""
        self._misses += 1
        if self._misses == self._block.misses:
            self._next = self._now() + self._block.probe

    def probe(self) -> bool:
        """Say whether an expert that is down is to be tried now.

        Returns:
            True once in each interval.
        """
        if self._now() < self._next:
            return False
        self._next = self._now() + self._block.probe
        return True
