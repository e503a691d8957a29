"""The rows of a source as stored, in a JSONL file, a Parquet file or a hub data set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evilspectra.data.published import SETS, imported
from evilspectra.errors import BadInput, cannot_read, first_line, listing, near
from evilspectra.store.built_in import built_in_file

#: Name → file of the dialogues that come with the package.
BUILT_IN = {"demo-bad": "demo_bad.jsonl", "demo-good": "demo_good.jsonl"}
_BOM = b"\xef\xbb\xbf"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE_SUFFIXES = {
    *(".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt"),
    *(".yaml", ".yml", ".arrow", ".zip", ".gz", ".zst", ".py"),
}


def raw_rows(
    source: str,
    split: str,
    local_files_only: bool,
    digest: Any,
) -> Iterator[tuple[int, object]]:
    """(line, undecoded JSON or a decoded row) of any source; `digest` is updated with each row."""
    path = str(imported(source) or os.path.expanduser(source))
    if source in BUILT_IN:
        path = str(built_in_file(BUILT_IN[source], f"the built-in data set {source} is"))
    if os.path.isdir(path):
        raise BadInput(f"{source} is a folder: name one JSONL or Parquet file in it")
    if not os.path.exists(path):
        if source in SETS:
            raise BadInput(
                f"{source} is a published set that is not on this machine: import it with "
                f"`evilspectra data get {source} --from FILE`, or name a file"
            )
        if looks_like_hub(source):
            return _hub(source, split, local_files_only, digest)
        raise BadInput(
            f"{source} does not exist: name a JSONL or Parquet file, a hub data set "
            f"(organisation/name), or a built-in name ({listing(BUILT_IN)})"
        )
    read = _parquet if path.lower().endswith(".parquet") else _jsonl
    return read(path, source, digest)


def looks_like_hub(source: str) -> bool:
    return bool(_HUB_NAME.fullmatch(source)) and Path(source).suffix.lower() not in _FILE_SUFFIXES


def _jsonl(path: str, source: str, digest: Any) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            for line, raw in enumerate(file, start=1):
                digest.update(raw)
                raw = raw.removeprefix(_BOM) if line == 1 else raw
                if raw.strip():
                    yield line, raw
    except OSError as error:
        raise cannot_read(error, source) from None


def _parquet(path: str, source: str, digest: Any) -> Iterator[tuple[int, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        with pq.ParquetFile(path) as table:
            rows = (
                row for batch in table.iter_batches(batch_size=1024) for row in batch.to_pylist()
            )
            yield from enumerate(rows, start=1)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(
            f"{source} cannot be read as Parquet ({first_line(error).rstrip('.:')}): write it "
            "again, or name a JSONL file"
        ) from None


def _hub(
    name: str,
    split: str,
    local_files_only: bool,
    digest: Any,
) -> Iterator[tuple[int, object]]:
    import datasets
    import datasets.config as settings
    from datasets.exceptions import DatasetsError

    before = settings.HF_HUB_OFFLINE
    # load_dataset itself does not look at DownloadConfig.local_files_only, only at this switch.
    settings.HF_HUB_OFFLINE = before or local_files_only
    try:
        config = datasets.DownloadConfig(local_files_only=local_files_only)
        rows = datasets.load_dataset(name, split=split, download_config=config)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        where = (
            "in the local cache (data.local_files_only is on)" if local_files_only else "on the hub"
        )
        raise BadInput(
            f"{name} is neither a file nor a built-in name ({listing(BUILT_IN)}), and split "
            f"'{split}' of a data set of that name"
            f" could not be loaded {where} ({first_line(error).rstrip('.:')}): correct data.train, "
            f"data.heldout or data.split.{near(name, BUILT_IN)}"
        ) from None
    finally:
        settings.HF_HUB_OFFLINE = before
    for line, row in enumerate(rows, start=1):
        digest.update(
            json.dumps(row, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n"
        )
        yield line, row
