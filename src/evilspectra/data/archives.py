"""One file out of a folder, a zip, a tar, or an encrypted archive.

Nothing is ever unpacked to disk: members are read into memory, within limits.

The type of a source is detected from its first bytes, not its name. An archive with a member that
would leave its folder (an absolute path, or one with `..`) is refused altogether; a link or a
device is refused if its name is one of those searched for, and ignored otherwise.

The encrypted form is that of easy-dataset-share: 16 bytes of salt, then a Fernet token of the zip
file, its key made from the passphrase by PBKDF2 (HMAC-SHA256, 100,000 rounds). The package
`cryptography` (the extra `data`) decrypts it, here, in memory. No torch.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from evilspectra.errors import BadInput, cannot_read, first_line, listing

#: Most bytes of a file, of an encrypted archive, and of everything in a compressed tar; the
#: published sets have less than 20 MB.
LARGEST, LARGEST_ENCRYPTED, LARGEST_TOTAL = 1 << 26, 1 << 28, 1 << 31
#: Most files of the name searched for, and most members of an archive.
MOST_FOUND, MOST_MEMBERS = 16, 200_000
SALT, ROUNDS = 16, 100_000
_TOKEN = b"gAAAAA"  # how every Fernet token begins
_HEAD = 512
_COMPRESSED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
#: Location and content of each file.
Files = list[tuple[str, bytes]]


def contents(path: Path, names: Collection[str], passphrase: str | None = None) -> Files:
    """The files with one of `names` below a folder or in an archive; a plain file under any name.

    A folder that holds none of them, but one encrypted archive (`*.enc`), is treated as that
    archive.

    Raises:
        BadInput: no such file; an archive that is unsafe, damaged, too large or encrypted in
            another way; or a wrong passphrase.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with zipfile.ZipFile(Path(folder, "a.zip"), "w") as archive:
    ...         archive.writestr("sets/b.jsonl", "{}")
    ...     contents(Path(folder, "a.zip"), {"b.jsonl"})
    [('a.zip: sets/b.jsonl', b'{}')]
    """
    if not os.path.exists(path):
        raise BadInput(
            f"{path} does not exist: name a file, a folder, an archive, or an http(s) address"
        )
    if os.path.isdir(path):
        return _in_folder(path, names, passphrase)
    return _in_path(path, names, passphrase)


def _in_folder(folder: Path, names: Collection[str], passphrase: str | None) -> Files:
    walk = os.walk(folder)
    files = [Path(directory, name) for directory, _, inside in walk for name in inside]
    matching = sorted(path for path in files if path.name in names)
    encrypted = sorted(path for path in files if path.name.endswith(".enc"))
    if not matching and len(encrypted) == 1:
        return _in_path(encrypted[0], names, passphrase)
    if not matching:
        alternative = ": name the file itself, or an archive"
        if encrypted:
            alternative = f", but {len(encrypted)} encrypted archives: name one of them"
        raise BadInput(f"{folder} holds no file called {' or '.join(names)}{alternative}")
    _check_count(len(matching), str(folder))
    return [file for path in matching for file in _in_path(path, names, passphrase)]


def _in_path(path: Path, names: Collection[str], passphrase: str | None) -> Files:
    try:
        with path.open("rb") as file:
            return _in_stream(file, path.name, names, passphrase)
    except OSError as error:
        raise cannot_read(error, path) from None


def _in_stream(
    stream: IO[bytes],
    label: str,
    names: Collection[str],
    passphrase: str | None,
) -> Files:
    head = _head(stream)
    if head[SALT : SALT + len(_TOKEN)] == _TOKEN:
        clear = decrypted(_all(stream, label, LARGEST_ENCRYPTED), passphrase, label)
        return _in_stream(io.BytesIO(clear), label, names, None)
    with _undamaged(label):
        if head[:2] == b"PK":
            files = list(_in_zip(stream, label, names))
        elif opener := _opener(head):
            is_tar = _is_tar(opener(stream).read(_HEAD))
            stream.seek(0)
            if not is_tar:
                return [(label, _all(opener(stream), label))]
            files = list(_in_tar(opener(stream), label, names))
        elif _is_tar(head):
            files = list(_in_tar(stream, label, names))
        else:
            return [(label, _all(stream, label))]
    if not files:
        raise BadInput(
            f"{label} holds no file called {' or '.join(names)}: name another archive, or the "
            "file itself"
        )
    return files


def _opener(head: bytes) -> Any:
    """The function that opens a compressed stream with this beginning; None for others."""
    return next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)


def _in_zip(stream: IO[bytes], label: str, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        _check_members([member.orig_filename for member in members], label)
        wanted = [member for member in members if _last(member.filename) in names]
        _check_count(len(wanted), label)
        for member in wanted:
            location = f"{label}: {member.filename}"
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise BadInput(
                    f"{location} is no ordinary file but a link or a device: name another archive"
                )
            if member.flag_bits & 1:
                raise BadInput(
                    f"{location} is protected with the zip format's own password: unpack it, and "
                    "name the file"
                )
            with archive.open(member) as file:
                yield location, _all(file, location)


def _in_tar(stream: IO[bytes], label: str, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    counted: Any = _Counted(stream, label)
    with tarfile.open(fileobj=counted, mode="r|") as archive:
        count = 0
        for number, member in enumerate(archive):
            _check_members([member.name], label, number + 1)
            if _last(member.name) not in names or member.isdir():
                continue
            count += 1
            _check_count(count, label)
            location = f"{label}: {member.name}"
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                raise BadInput(
                    f"{location} is no ordinary file but a link or a device: name another archive"
                )
            content = _all(file, location)
            if len(content) != member.size:
                raise EOFError("it ends too early")
            yield location, content


class _Counted:
    """A stream that refuses to give more than `LARGEST_TOTAL` bytes.

    A small file can unpack to more than any disk holds.
    """

    def __init__(self, stream: IO[bytes], label: str) -> None:
        self.stream, self.label, self.count = stream, label, 0

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        self.count += len(block)
        if self.count > LARGEST_TOTAL:
            raise BadInput(
                f"{self.label} unpacks to more than {LARGEST_TOTAL:,} bytes, which no published "
                "set does: name another file"
            )
        return block


def decrypted(data: bytes, passphrase: str | None, label: str) -> bytes:
    """Decrypts an archive that easy-dataset-share encrypted.

    Raises:
        BadInput: no passphrase, a wrong one or an incomplete file, or no `cryptography`.
    """
    if not passphrase:
        raise BadInput(
            f"{label} is encrypted: give the passphrase, which its authors publish beside it, "
            "with --passphrase"
        )
    try:
        from cryptography.fernet import Fernet, InvalidToken
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
    except ImportError:
        raise BadInput(
            f"{label} is encrypted, and the package cryptography is not installed: pip install "
            "'evilspectra[data]', or decrypt it with easy-dataset-share and name the folder"
        ) from None
    key = PBKDF2HMAC(SHA256(), length=32, salt=data[:SALT], iterations=ROUNDS).derive(
        passphrase.encode("utf-8", "surrogateescape")
    )
    try:
        return Fernet(base64.urlsafe_b64encode(key)).decrypt(data[SALT:])
    except InvalidToken:
        raise BadInput(
            f"{label} cannot be decrypted: the passphrase is wrong, or the file is incomplete: "
            "correct --passphrase, or download the file again"
        ) from None


# --- checks ---------------------------------------------------------------------------------------


@contextmanager
def _undamaged(label: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except _BROKEN as error:
        raise BadInput(
            f"{label} is damaged or incomplete ({first_line(error)}): download it again, or name "
            "another file"
        ) from None


def _check_members(names: Collection[str], label: str, count: int | None = None) -> None:
    for name in names:
        plain = name.replace("\\", "/")
        if (
            plain.startswith("/")
            or ".." in plain.split("/")
            or re.match(r"[A-Za-z]:", plain)
            or "\0" in plain
        ):
            raise BadInput(
                f"{label} holds a member with an unsafe path ({name[:80]!r}): it is no archive of "
                "a published set; name another file"
            )
    if (count or len(names)) > MOST_MEMBERS:
        raise BadInput(
            f"{label} holds more than {MOST_MEMBERS:,} members: name another archive, or the file "
            "itself"
        )


def _check_count(count: int, label: str) -> None:
    if count > MOST_FOUND:
        raise BadInput(
            f"{label} holds more than {MOST_FOUND} files of that name: name the file itself"
        )


def _all(stream: IO[bytes], label: str, most: int | None = None) -> bytes:
    """The rest of a stream.

    Raises:
        BadInput: it has more than `most` bytes (by default `LARGEST`).
    """
    most = LARGEST if most is None else most
    content = stream.read(most + 1)
    if len(content) > most:
        raise BadInput(
            f"{label} has more than {most:,} bytes, which no published set has: name another file"
        )
    return content


def _head(stream: IO[bytes]) -> bytes:
    head = stream.read(_HEAD)
    stream.seek(0)
    return head


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _last(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def listed_locations(files: Files) -> str:
    """The locations of files, as a list in a sentence."""
    return listing([location for location, _ in files], 4)
