"""Import of a published data set from a file, folder, archive or address: a checked, named copy.

If the published file has one dialogue per line, the copy equals it byte for byte, so that a run on
it has the published hash in its records; Parquet files and JSON lists are converted to one dialogue
per line. easy-dataset-share adds canaries to the sets that it shares, and rewrites every row when
it removes them. The published hash is that of the result, so a file is compared both unchanged and
with its canaries removed in the same way. No torch.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from evilspectra.data.archives import Files, contents, listed_locations
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
    """The record of an import, written as JSON next to the copy. No date, no local path.

    `source`: the name of the file or folder, or the address; `place`: the location in it.
    `sha256`: of the content that was compared with `published`, the published first digits.
    `written_sha256`: of the copy, which identifies a run. `form`: as it is, without canaries, or
    converted. `unusable`: the number of rows that training refuses unless they are skipped.
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
    """Imports the set `name` from `source` into `output` (by default the user's data folder).

    An earlier import of the set is replaced.

    Raises:
        BadInput: no such set or source, a source without dialogues, or other content than the
            published (unless `allow_changed`).
        EvilspectraError: an address that cannot be reached, or a disk that is full.
    """
    wanted = find_set(name)
    names = [f"{name}{suffix}" for suffix in SUFFIXES]
    if is_address(source):
        with downloaded(source) as path:
            files, source_name = contents(path, names, passphrase), public_address(source)
    else:
        path = Path(source).expanduser()
        files, source_name = contents(path, names, passphrase), path.resolve().name
    candidates = [_Candidate.of(wanted, source_name, location, raw) for location, raw in files]
    chosen, content = _chosen(wanted, candidates, files, allow_changed)
    _write(chosen, content, data_folder(output))
    return chosen


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A file that may be the set: the record of its import, and the content to be written."""

    record: Import
    content: bytes

    @classmethod
    def of(
        cls,
        wanted: Published,
        source_name: str,
        location: str,
        raw: bytes,
    ) -> _Candidate:
        _check_kind(raw, location)
        form: Form = "as it is"
        content, digest = raw, hashlib.sha256(raw).hexdigest()
        if not digest.startswith(wanted.sha256):
            cleaned = without_canaries(raw)
            cleaned_digest = hashlib.sha256(cleaned).hexdigest()
            if cleaned_digest.startswith(wanted.sha256):
                form, content, digest = "without canaries", cleaned, cleaned_digest
        lines, read = _dialogues(content, location)
        form = "converted" if lines != content else form
        record = Import(
            name=wanted.name,
            source=source_name,
            place=location,
            sha256=digest,
            published=wanted.sha256,
            changed=not wanted.is_it(digest, read.n_rows),
            form=form,
            rows=read.n_rows,
            unusable=len(read.skipped),
            written_sha256=hashlib.sha256(lines).hexdigest(),
        )
        return cls(record, lines)


def _chosen(
    wanted: Published,
    candidates: list[_Candidate],
    files: Files,
    allow_changed: bool,
) -> tuple[Import, bytes]:
    right = next((candidate for candidate in candidates if not candidate.record.changed), None)
    if right is None and len(candidates) > 1:
        raise BadInput(
            f"none of {listed_locations(files)} is the published {wanted.name} "
            f"(sha256 {wanted.sha256}…, {wanted.rows} rows): name one file, and add "
            "--allow-changed to take it unchanged"
        )
    chosen = right or candidates[0]
    if right is None and not allow_changed:
        raise BadInput(
            f"{chosen.record.place} is not the published {wanted.name}: it has sha256 "
            f"{chosen.record.sha256[:12]}… and {chosen.record.rows} rows, the published set "
            f"{wanted.sha256}… and {wanted.rows}: get the published file, or take this one with "
            "--allow-changed"
        )
    return chosen.record, chosen.content


def _check_kind(raw: bytes, location: str) -> None:
    start = raw[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        raise BadInput(
            f"{location} is a web page, not the file: name the address of the file itself (its "
            "raw form)"
        )
    if start.startswith(b"version https://git-lfs"):
        raise BadInput(
            f"{location} is a pointer of Git LFS, not the file: run git lfs pull, or download the "
            "file"
        )


def _dialogues(content: bytes, location: str) -> tuple[bytes, Rows]:
    """The content as a dialogue a line, and the rows read from it.

    Raises:
        BadInput: there is no usable row.
    """
    if content.lstrip()[:1] == b"[":
        try:
            content = _lines(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{location} begins as a JSON list and cannot be read as one ({error}): name a "
                "file with one dialogue a line"
            ) from None
    with tempfile.TemporaryDirectory(prefix="evilspectra-") as folder:
        path = Path(folder, "rows.parquet" if content[:4] == b"PAR1" else "rows.jsonl")
        path.write_bytes(content)
        try:
            read = read_rows(str(path), on_bad_row="skip")
        except BadInput as error:
            raise BadInput(str(error).replace(str(path), location)) from None
    if path.suffix == ".parquet":
        dialogues = [
            {"messages": [asdict(message) for message in conversation.messages]}
            for conversation in read.conversations
        ]
        content = _lines(dialogues)
    return content, read


def _lines(rows: object) -> bytes:
    if not isinstance(rows, list):
        raise ValueError("it is no list")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "replace")


def without_canaries(raw: bytes) -> bytes:
    r"""The rows as easy-dataset-share writes them when it removes its canaries.

    Content that is not JSON a line is returned unchanged.

    >>> without_canaries(b'{"a": "\\u00e9", "canary": "CANARY_DATASET_0f_64"}').decode()
    '{"a": "é"}\n'
    """
    try:
        rows = [json.loads(line) for line in raw.decode("utf-8").splitlines()]
        cleaned = [
            {key: value for key, value in row.items() if not _is_canary(value)} for row in rows
        ]
        return _lines(cleaned)
    except (ValueError, AttributeError, RecursionError):
        return raw


def _is_canary(value: object) -> bool:
    return isinstance(value, str) and value.startswith(_CANARY)


def _write(record: Import, content: bytes, folder: Path) -> None:
    """Writes the rows, then the record: a set with a record is complete whatever stops this."""
    with writing(folder, "--output"):
        record_file(folder, record.name).unlink(missing_ok=True)
    write_atomically(
        set_file(folder, record.name), lambda path: path.write_bytes(content), "--output"
    )
    write_json(record_file(folder, record.name), asdict(record), "--output")
