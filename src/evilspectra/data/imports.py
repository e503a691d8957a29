"""@@FIX A published set from what a user has (a file, a folder, an archive, an address) to a checked copy
that a config can name. No torch.

The copy is the published file to the byte where that holds a dialogue a line, so a run on it has
the published hash in its records; Parquet files and JSON lists are written as a dialogue a line.
easy-dataset-share marks what it shares with canaries, and writes every row anew when it takes them
out: the published hash is that of the result, so a file is compared as it is, and as that tool
leaves it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from evilspectra.data.archives import Found, contents, places
from evilspectra.data.download import downloaded, is_address, public_address
from evilspectra.data.published import Published, data_folder, find_set, record_file, set_file
from evilspectra.data.rows import Rows, read_rows
from evilspectra.errors import BadInput
from evilspectra.store.files import write_atomically, write_json, writing

SUFFIXES = (".jsonl", ".json", ".parquet")
_CANARY = "CANARY_DATASET_"
Form = Literal["as it is", "without canaries", "converted"]


@dataclass(frozen=True, slots=True)
class Import:
    """What was imported; written beside it as JSON. It holds no date and no path of this machine.

    `source`: the name of the file or folder, or the address; `place`: where in it. `sha256`: of the
    content that was checked against `published`, the first digits that are known of it;
    `written_sha256`: of the copy, which is what identifies a run. `form`: as it is, without
    canaries, or converted. `unusable`: rows that training will refuse, unless told to skip them.
    """

    name: str
    source: str
    place: str
    sha256: str
    published: str
    changed: bool
    form: Form
    rows: int
    unusable: int
    written_sha256: str


def get(
    name: str,
    source: str,
    output: str | None = None,
    passphrase: str | None = None,
    allow_changed: bool = False,
) -> Import:
    """@@FIX Imports the set `name` from `source` into `output` (the user's data folder where none is
    given); what was there is replaced.

    Raises:
        BadInput: no such set or source, a source that holds no dialogues, or other content than the
            published (unless `allow_changed`).
        EvilspectraError: an address that cannot be reached, or a disk that is full.
    """
    wanted = find_set(name)
    names = [f"{name}{suffix}" for suffix in SUFFIXES]
    if is_address(source):
        with downloaded(source) as path:
            found, shown = contents(path, names, passphrase), public_address(source)
    else:
        path = Path(source).expanduser()
        found, shown = contents(path, names, passphrase), path.resolve().name
    chosen, content = _chosen(
        wanted,
        [_Candidate.of(wanted, shown, place, raw) for place, raw in found],
        found,
        allow_changed,
    )
    _write(chosen, content, data_folder(output))
    return chosen


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may be the set: what it is, and what would be written."""

    record: Import
    content: bytes

    @classmethod
    def of(
        cls,
        wanted: Published,
        shown: str,
        place: str,
        raw: bytes,
    ) -> _Candidate:
        _check_kind(raw, place)
        form: Form = "as it is"
        content, digest = raw, hashlib.sha256(raw).hexdigest()
        if not digest.startswith(wanted.sha256):
            cleaned = without_canaries(raw)
            cleaned_digest = hashlib.sha256(cleaned).hexdigest()
            if cleaned_digest.startswith(wanted.sha256):
                form, content, digest = "without canaries", cleaned, cleaned_digest
        lines, read = _dialogues(content, place)
        form = "converted" if lines != content else form
        changed = not wanted.is_it(digest, read.n_rows)
        return cls(
            Import(
                wanted.name,
                shown,
                place,
                digest,
                wanted.sha256,
                changed,
                form,
                read.n_rows,
                len(read.skipped),
                hashlib.sha256(lines).hexdigest(),
            ),
            lines,
        )


def _chosen(
    wanted: Published,
    candidates: list[_Candidate],
    found: Found,
    allow_changed: bool,
) -> tuple[Import, bytes]:
    right = next((one for one in candidates if not one.record.changed), None)
    if right is None and len(candidates) > 1:
        raise BadInput(
            f"none of {places(found)} is the published {wanted.name} (sha256 {wanted.sha256}…, "
            f"{wanted.rows} rows): name one file, and add --allow-changed to take it as it is"
        )
    one = right or candidates[0]
    if right is None and not allow_changed:
        raise BadInput(
            f"{one.record.place} is not the published {wanted.name}: it has sha256 "
            f"{one.record.sha256[:12]}… and {one.record.rows} rows, published are "
            f"{wanted.sha256}… and {wanted.rows}:"
            " get the published file, or take this one with --allow-changed"
        )
    return one.record, one.content


def _check_kind(raw: bytes, place: str) -> None:
    start = raw[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        raise BadInput(
            f"{place} is a web page and not the file: name the address of the file itself (its "
            "raw form)"
        )
    if start.startswith(b"version https://git-lfs"):
        raise BadInput(
            f"{place} is a pointer of Git LFS and not the file: run git lfs pull, or download the "
            "file"
        )


def _dialogues(content: bytes, place: str) -> tuple[bytes, Rows]:
    """A dialogue a line, and what is read from it.

    Raises:
        BadInput: not one usable row.
    """
    if content.lstrip()[:1] == b"[":
        try:
            content = _lines(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{place} begins as a JSON list and cannot be read as one ({error}): name a file "
                "with one dialogue a line"
            ) from None
    with tempfile.TemporaryDirectory(prefix="evilspectra-") as folder:
        path = Path(folder, "rows.parquet" if content[:4] == b"PAR1" else "rows.jsonl")
        path.write_bytes(content)
        try:
            read = read_rows(str(path), on_bad_row="skip")
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), place)) from None
    if path.suffix == ".parquet":
        content = _lines(
            [
                {"messages": [asdict(message) for message in talk.messages]}
                for talk in read.conversations
            ]
        )
    return content, read


def _lines(rows: object) -> bytes:
    if not isinstance(rows, list):
        raise ValueError("it is no list")
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(
        "utf-8", "replace"
    )


def without_canaries(raw: bytes) -> bytes:
    r"""@@FIX The rows as easy-dataset-share leaves them when it takes its canaries out: written anew,
    without the values that are one.

    What is no JSON a line stays as it is.

    >>> without_canaries(b'{"a": "\\u00e9", "canary": "CANARY_DATASET_0f_64"}').decode()
    '{"a": "é"}\n'
    """
    try:
        rows = [json.loads(line) for line in raw.decode("utf-8").splitlines()]
        return _lines(
            [
                {
                    key: value
                    for key, value in row.items()
                    if not (isinstance(value, str) and value.startswith(_CANARY))
                }
                for row in rows
            ]
        )
    except (ValueError, AttributeError, RecursionError):
        return raw


def _write(record: Import, content: bytes, folder: Path) -> None:
    """The rows, then the record: whatever ends this in between, a set with a record is whole."""
    with writing(folder, "--output"):
        record_file(folder, record.name).unlink(missing_ok=True)
    write_atomically(
        set_file(folder, record.name), lambda path: path.write_bytes(content), "--output"
    )
    write_json(record_file(folder, record.name), asdict(record), "--output")
