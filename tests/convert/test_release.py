"""TCL's checkpoint by name, from a server of this machine that plays the release."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcl_jax.convert import release
from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.release import locate_tcl
from tcl_jax.errors import RunError

CONTENT = bytes(range(256)) * 9000


class Release(http.server.BaseHTTPRequestHandler):
    """Answers as GitHub does: after a redirect, and in part when asked to."""

    def __init__(self, state: dict[str, object], *arguments: object) -> None:
        self.state = state
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path == "/v1/tcl.pth":
            self.send_response(302)
            self.send_header("Location", "/asset")
            self.end_headers()
            return
        content, tag = self.state["content"], self.state["tag"]
        assert isinstance(content, bytes)
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.headers.get("If-Range") == tag:
            start = int(asked[1])
        self.state["starts"].append(start)  # type: ignore[attr-defined]
        if start >= len(content):
            self.send_error(416)
            return
        left = len(content) - start
        self.send_response(206 if start else 200)
        self.send_header("ETag", str(tag))
        chunked = self.state.get("chunked")
        length = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(left))
        if not self.state.get("endless"):
            self.send_header(*length)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        sent = content[start : self.state["until"]]  # type: ignore[misc]
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(sent), sent) if chunked else sent)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Is not shown."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What the server has, until where it sends, and from where it was asked to."""
    state: dict[str, object] = {"content": CONTENT, "tag": '"a"', "until": None, "starts": []}
    handler = functools.partial(Release, state)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(release, "URL", f"http://localhost:{httpd.server_port}/v1/tcl.pth")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield state
        httpd.shutdown()


def test_it_is_downloaded_once_and_its_hash_kept(
    server: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        path = locate_tcl("official")
    assert path == tmp_path / "cache/tcl_jax/weights/tcl.pth" and path.read_bytes() == CONTENT
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert json.loads(path.with_name("tcl.pth.json").read_text()) == {
        "url": release.URL, "size": len(CONTENT), "sha256": sha256,
    }  # fmt: skip
    assert sha256 in caplog.text and "the published hash is not known here" in caplog.text
    assert locate_tcl("official") == path and server["starts"] == [0]
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightError, match=f"what was downloaded has {sha256}.* delete"):
        locate_tcl("official")


def test_it_goes_on_where_it_broke_off(server: dict[str, object]) -> None:
    server["until"] = 1_000_000
    with pytest.raises(WeightError, match=r"ended after 1,000,000 of.*1,000,000 bytes are kept"):
        locate_tcl("official")
    server["until"] = None
    assert locate_tcl("official").read_bytes() == CONTENT
    assert server["starts"] == [0, 1_000_000]


def test_a_server_need_not_tell_the_length_if_the_end_is_told(server: dict[str, object]) -> None:
    server["endless"] = True
    with pytest.raises(WeightError, match="does not say how long the file is"):
        locate_tcl("official")
    server |= {"endless": False, "chunked": True}
    assert locate_tcl("official").read_bytes() == CONTENT


def test_a_file_put_into_the_cache_is_taken(server: dict[str, object]) -> None:
    server["until"] = 1_000_000
    with pytest.raises(WeightError, match="are kept"):
        locate_tcl("official")
    path = release.cache_folder("weights") / "tcl.pth"
    path.write_bytes(b"by hand")
    assert locate_tcl("official") == path
    path.write_bytes(b"changed")
    with pytest.raises(WeightError, match=hashlib.sha256(b"by hand").hexdigest()):
        locate_tcl("official")


def test_a_full_disk_is_no_fault_of_the_network(
    server: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(release, "write_json", full)
    with pytest.raises(RunError, match="No space left on device.*is the disk full"):
        locate_tcl("official")


def test_another_file_than_before_is_taken_from_its_beginning(server: dict[str, object]) -> None:
    server["until"] = 1_000_000
    with pytest.raises(WeightError):
        locate_tcl("official")
    server |= {"until": None, "tag": '"b"', "content": CONTENT[::-1]}
    assert locate_tcl("official").read_bytes() == CONTENT[::-1]


def test_offline_it_says_which_file_to_put_where(
    server: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://localhost:9/v1/tcl.pth"
    monkeypatch.setattr(release, "URL", url)
    with pytest.raises(WeightError, match=f"could not be downloaded from {url}") as error:
        locate_tcl("official")
    folder = tmp_path / "weights"
    assert f"put the file into {str(folder)!r} as tcl.pth, or give its path" in str(error.value)
    folder.mkdir()
    (folder / "tcl.pth").write_bytes(b"x")
    assert locate_tcl("official") == Path("weights/tcl.pth")


def test_a_known_hash_is_compared(
    server: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "SHA256", "0" * 64)
    with pytest.raises(WeightError, match="and the published file has 0000"):
        locate_tcl("official")


def test_the_address_is_that_of_the_release() -> None:
    assert release.URL == "https://github.com/kakaobrain/tcl/releases/download/v1.0.0/tcl.pth"
