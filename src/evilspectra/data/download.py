"""Download of a file from an http(s) address given by the user.

Size, time per read and redirections are bounded. No torch.
"""

from __future__ import annotations

import http.client
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from evilspectra.errors import BadInput, EvilspectraError, first_line

LARGEST = 1 << 29
#: Seconds without a byte after which a download has failed.
SILENCE = 60.0
_BLOCK = 1 << 16


def is_address(source: str) -> bool:
    """Whether a source is written as an address, with any scheme.

    >>> is_address("https://example.org/a.zip"), is_address("data/a.zip")
    (True, False)
    """
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source))


def public_address(url: str) -> str:
    """An address without query and fragment, which may hold a token; this form may be recorded.

    >>> public_address("https://example.org/a.zip?token=1#top")
    'https://example.org/a.zip'
    """
    return re.split(r"[?#]", url, maxsplit=1)[0]


@contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """A temporary copy of the file at an address, with its name there; removed afterwards.

    Raises:
        BadInput: not http(s), a name or password in the address, a status that says there is no
            such file, a redirection to anything but http(s) or from https to http, or too many
            bytes.
        EvilspectraError: no connection, silence, or an end before all bytes were received.
    """
    public = public_address(url)
    _check(url, public)
    with tempfile.TemporaryDirectory(prefix="evilspectra-") as folder:
        name = unquote(urlsplit(url).path).replace("\\", "/").rsplit("/", 1)[-1]
        path = Path(folder, re.sub(r"[^\w.-]+", "-", name).strip(".")[:80] or "download")
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "evilspectra"})
            with _opener().open(request, timeout=SILENCE) as reply, path.open("wb") as file:
                _copy(reply, file, public)
        except EvilspectraError:
            raise
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                raise BadInput(
                    f"{public} leads to an address that is not followed ({first_line(error)}): "
                    "name the file's own http(s) address"
                ) from None
            kind = EvilspectraError if error.code == 429 or error.code >= 500 else BadInput
            raise kind(
                f"{public} answers {error.code} {error.reason}: correct the address, or download "
                "the file yourself and name it"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = first_line(reason) if isinstance(reason, BaseException) else reason
            raise EvilspectraError(
                f"{public} could not be downloaded ({reason}): try again, or download it yourself "
                "and name the file"
            ) from None
        yield path


def _check(url: str, public: str) -> None:
    try:
        parts = urlsplit(url)
        is_http = parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
        has_credentials = parts.username is not None or parts.password is not None
        _ = parts.port  # raises where it is no number
    except ValueError:
        is_http = has_credentials = False
    if has_credentials:
        raise BadInput(
            "an address with a name or a password in it is refused: download the file yourself, "
            "and name it"
        )
    if not is_http or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise BadInput(
            f"{public} is no http(s) address: name one such as https://host/file, or a file, a "
            "folder or an archive"
        )


def _copy(reply: Any, file: IO[bytes], public: str) -> None:
    announced = reply.headers.get("Content-Length")
    expected = int(announced) if announced and announced.isdigit() else None
    count = 0
    while max(count, expected or 0) <= LARGEST and (block := reply.read(_BLOCK)):
        count += len(block)
        file.write(block)
    if max(count, expected or 0) > LARGEST:
        raise BadInput(
            f"{public} has more than {LARGEST:,} bytes, which no published set has: name another "
            "address"
        )
    if expected is not None and count < expected:
        raise EvilspectraError(
            f"{public} broke off after {count:,} of {expected:,} bytes: try again"
        )


class _Redirections(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self,
        req: Any,
        fp: Any,
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> Any:
        schemes = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise urllib.error.HTTPError(
                req.full_url, code, f"from {schemes[0]} to {schemes[1]}", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https, and no other scheme: no file, no ftp, no data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        _Redirections,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener
