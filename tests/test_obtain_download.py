"""Published sets from addresses: the same bytes, no token kept, nothing left of a failed one."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilspectra.data import download
from evilspectra.data.download import downloaded
from evilspectra.data.imports import get
from evilspectra.errors import EvilspectraError
from tests.support.published_sets import (
    FILE,
    NAME,
    ROWS,
    own_folder,
    refused,
)


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder."""
    return own_folder(tmp_path, monkeypatch)


# --- addresses ------------------------------------------------------------------------------------


class Site(http.server.BaseHTTPRequestHandler):
    """A site with a file, and with all that can go wrong."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        elsewhere = {
            "/moved": f"/sets/{FILE}",
            "/file": "file:///etc/passwd",
            "/ftp": "ftp://127.0.0.1/x",
            "/loop": "/loop",
            "/data": "data:,x",
        }
        if path in elsewhere:
            self.send_response(302)
            self.send_header("Location", elsewhere[path])
            self.end_headers()
        elif path == f"/sets/{FILE}":
            self._send(ROWS, len(ROWS))
        elif path == "/short":
            self._send(ROWS[:50], len(ROWS))
        elif path == "/huge":
            self._send(b"", 10**12)
        elif path == "/endless":
            self._send(b"x" * 200_000, None)
        else:
            self.send_error(503 if path == "/busy" else 404)

    def _send(self, content: bytes, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", [f"/sets/{FILE}", "/moved", f"/sets/{FILE}?token=secret#top"])
def test_an_address_gives_the_same_bytes_and_no_token_is_kept(
    site: str, mine: Path, path: str
) -> None:
    record = get(NAME, site + path)
    assert (mine / FILE).read_bytes() == ROWS
    assert record.source == site + path.split("?")[0]
    assert b"secret" not in (mine / f"{NAME}.json").read_bytes()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("{}/none?token=secret", "/none answers 404 "),
        ("{}/file", "/file leads to an address that is not followed"),
        ("{}/ftp", "/ftp leads to an address that is not followed"),
        ("{}/data", "/data leads to an address that is not followed"),
        ("{}/loop", "/loop leads to an address that is not followed"),
        ("{}/huge", "/huge has more than "),
        ("file:///etc/passwd", "file:///etc/passwd is no http(s) address"),
        ("ftp://host/x", "ftp://host/x is no http(s) address"),
        ("http:///x", "http:///x is no http(s) address"),
        ("http://host:port/x", "http://host:port/x is no http(s) address"),
        ("http://127.0.0.1/a b", "is no http(s) address"),
        ("http://me:secret@127.0.0.1/x", "an address with a name or a password in it is refused"),
    ],
)
def test_an_address_that_will_not_do(site: str, address: str, expected: str) -> None:
    text = refused(address.format(site))
    assert expected in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("path", "expected"), [("/short", "broke off after 50 of "), ("/busy", "/busy answers 503 ")]
)
def test_a_download_that_fails_may_be_tried_again(
    site: str,
    mine: Path,
    path: str,
    expected: str,
) -> None:
    with pytest.raises(EvilspectraError, match=expected) as caught:
        get(NAME, site + path)
    assert caught.value.exit_code == 1
    assert not mine.exists()


def test_nobody_at_an_address(mine: Path) -> None:
    with pytest.raises(
        EvilspectraError,
        match=r"^http://127\.0\.0\.1:9/x could not be downloaded \(.+\): try again",
    ):
        get(NAME, "http://127.0.0.1:9/x")
    assert not mine.exists()


def test_a_download_without_an_end_stops_at_the_limit_and_leaves_nothing(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGEST", 100_000)
    assert "/endless has more than 100,000 bytes" in refused(f"{site}/endless")
    with downloaded(f"{site}/moved") as path:
        assert path.read_bytes() == ROWS
    assert not path.parent.exists()
