"""A published set of harmless rows, archives of it, and a refusal to import one."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from evilspectra.data import published
from evilspectra.data.imports import get
from evilspectra.data.published import SETS, Published
from evilspectra.errors import BadInput
from tests.support.commands import left_in

NAME = "extreme_sports"
FILE = f"{NAME}.jsonl"
ROWS = b"".join(
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"How high is it, {number}?"},
                {"role": "assistant", "content": "As high as yesterday."},
            ]
        }
    ).encode()
    + b"\n"
    for number in range(7)
)


def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder; and a set of harmless rows under the name of a published one."""
    monkeypatch.setenv(published.DATA_VARIABLE, str(tmp_path / "data"))
    monkeypatch.delenv("EVILSPECTRA_PASSPHRASE", raising=False)
    monkeypatch.setitem(
        SETS, NAME, Published(NAME, hashlib.sha256(ROWS).hexdigest()[:12], 7, "here")
    )
    return tmp_path / "data"


def zipped(members: dict[str, bytes], kinds: dict[str, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = ((kinds or {}).get(name, stat.S_IFREG) | 0o600) << 16
            archive.writestr(member, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], links: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return buffer.getvalue()


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refused(source: Path | str, **more: Any) -> str:
    with pytest.raises(BadInput) as caught:
        get(NAME, str(source), **more)
    assert not published.data_folder().exists() or left_in(published.data_folder()) == []
    return str(caught.value)
