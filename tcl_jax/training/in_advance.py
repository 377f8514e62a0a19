"""What processes compute in advance, file by file: whose turn is whose, and reading ahead."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Content = TypeVar("Content")


def own_first(items: Sequence[Item], process: int, processes: int) -> list[Item]:
    """All items in the order in which a process should look whether they are still to be made.

    Its own share; then what the others have not come to yet, from their ends, the next process's
    first.
    """
    shares = [items[(process + p) % processes :: processes] for p in range(processes)]
    return [*shares[0], *(item for share in shares[1:] for item in reversed(share))]


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Content]
) -> Iterator[tuple[Item, Content]]:
    """Items with their contents, the next of which is read while one is worked on."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        following = [pool.submit(read, item) for item in items[:1]]
        for i, item in enumerate(items):
            found = following.pop().result()
            following += [pool.submit(read, after) for after in items[i + 1 : i + 2]]
            yield item, found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
