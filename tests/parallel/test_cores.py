"""When a CPU is said to lack huge pages."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tcl_jax.parallel import cores


@pytest.mark.parametrize(
    ("libc", "kernel", "tunables", "asks"),
    [
        (("glibc", "2.36"), "always [madvise] never", None, False),
        (("glibc", "2.36"), "always [madvise] never", cores.TUNABLES, True),
        (("glibc", "2.36"), "always [madvise] never", "", True),  # switched off on purpose
        (("glibc", "2.36"), "[always] madvise never", None, True),
        (("glibc", "2.36"), None, None, True),
        (("glibc", "2.31"), "always [madvise] never", None, True),
        (("", ""), "always [madvise] never", None, True),
    ],
)
def test_it_is_asked_for_where_it_changes_something(
    libc: tuple[str, str],
    kernel: str | None,
    tunables: str | None,
    asks: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    monkeypatch.setattr(cores, "_HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if kernel is not None:
        (tmp_path / "enabled").write_text(kernel)
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert cores.asks_for_huge_pages() == asks
