"""A cache that forgets what was not used for the longest time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Values by key, up to a number of bytes together; for several threads.

    >>> cache = ByteCache[str, str](10)
    >>> cache.put("a", "A", 6)
    >>> cache.put("b", "B", 4)
    >>> cache.get("a")
    'A'
    >>> cache.put("c", "C", 4)
    >>> cache.get("b") is None, len(cache), cache.used
    (True, 2, 10)

    Args:
        max_bytes: what the values may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of values."""
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value, which counts as used now; None if it is not there."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keeps a value of `size` bytes, unless it alone is too large."""
        with self._lock:
            if key in self._values:
                self.used -= self._values.pop(key)[1]
            if size > self.max_bytes:
                return
            self._values[key] = value, size
            self.used += size
            while self.used > self.max_bytes:
                self.used -= self._values.popitem(last=False)[1][1]
