"""The cache by bytes."""

from __future__ import annotations

from tcl_jax.demo.cache import ByteCache


def test_the_least_recently_used_goes() -> None:
    cache = ByteCache[str, int](10)
    for name, size in (("a", 4), ("b", 4)):
        cache.put(name, ord(name), size)
    assert cache.get("a") == 97
    cache.put("c", 99, 5)
    assert cache.get("b") is None
    assert cache.get("a") == 97 and cache.get("c") == 99 and cache.used == 9


def test_a_value_replaces_its_like_and_too_large_ones_are_not_kept() -> None:
    cache = ByteCache[str, int](10)
    cache.put("a", 1, 8)
    cache.put("a", 2, 3)
    assert cache.get("a") == 2 and cache.used == 3 and len(cache) == 1
    cache.put("b", 3, 11)
    assert cache.get("b") is None and cache.get("a") == 2
    cache.put("a", 4, 11)
    assert cache.get("a") is None and cache.used == 0
