"""Published sets from files of every kind: checked, copied byte for byte, found by name."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilspectra.cards.record import is_bad
from evilspectra.data import archives, published
from evilspectra.data.imports import Import, get, without_canaries
from evilspectra.data.published import SETS, Published, imported, read_record
from evilspectra.data.rows import read_rows
from evilspectra.errors import BadInput
from tests.support.commands import command, left_in, write_config
from tests.support.published import published_path
from tests.support.published_sets import (
    FILE,
    NAME,
    ROWS,
    own_folder,
    refused,
    tarred,
    written,
    zipped,
)


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder."""
    return own_folder(tmp_path, monkeypatch)


# --- laws -----------------------------------------------------------------------------------------


SOURCES = {
    "file": ("any name.txt", ROWS),
    "zip": ("a.zip", zipped({"x/readme.md": b"x", f"x/{FILE}": ROWS})),
    "tar": ("a.tar", tarred({"x/readme.md": b"x", f"x/{FILE}": ROWS})),
    "tar.gz": ("a.tgz", gzip.compress(tarred({FILE: ROWS}))),
    "tar.bz2": ("a.tar.bz2", bz2.compress(tarred({FILE: ROWS}))),
    "tar.xz": ("a.tar.xz", lzma.compress(tarred({FILE: ROWS}))),
    "gz of one file": ("a.jsonl.gz", gzip.compress(ROWS)),
    "wrong suffix": ("zip.tar", zipped({FILE: ROWS})),
    "folder": (f"deep/er/{FILE}", ROWS),
    "a link that is not looked for": ("a.tar", tarred({FILE: ROWS}, {"latest": tarfile.SYMTYPE})),
}


@pytest.mark.parametrize("case", SOURCES)
def test_every_kind_of_source_gives_the_same_bytes(tmp_path: Path, mine: Path, case: str) -> None:
    path = written(tmp_path / "in", *SOURCES[case])
    record = get(NAME, str(tmp_path / "in" if case == "folder" else path))
    assert (mine / FILE).read_bytes() == ROWS
    assert (record.changed, record.form, record.rows, record.unusable) == (False, "as it is", 7, 0)
    assert record.sha256 == record.written_sha256 == hashlib.sha256(ROWS).hexdigest()
    assert left_in(mine) == [f"{NAME}.json", FILE]
    assert read_record(mine, NAME) == {
        name: getattr(record, name) for name in Import.__dataclass_fields__
    }


def test_the_same_import_leaves_the_same_bytes_and_names_no_place_of_this_machine(
    tmp_path: Path, mine: Path
) -> None:
    source = written(tmp_path / "in", FILE, ROWS)
    get(NAME, str(source))
    before = {name: (mine / name).read_bytes() for name in left_in(mine)}
    get(NAME, str(source))
    assert {name: (mine / name).read_bytes() for name in left_in(mine)} == before
    assert str(tmp_path).encode() not in before[f"{NAME}.json"]


def test_a_name_reads_what_its_file_reads(tmp_path: Path) -> None:
    source = written(tmp_path / "in", FILE, ROWS)
    get(NAME, str(source))
    by_name, by_path = read_rows(NAME), read_rows(str(source))
    assert (by_name.conversations, by_name.sha256) == (by_path.conversations, by_path.sha256)
    assert imported(NAME) == published.data_folder() / FILE


def test_a_run_on_a_name_is_the_run_on_its_file(tmp_path: Path) -> None:
    """The content is the identity; the card warns of either."""
    source = written(tmp_path / "in", FILE, ROWS)
    get(NAME, str(source))
    first, again = (
        json.loads(command("train", write_config(tmp_path, data={"train": name}), "--json").out)
        for name in (NAME, str(source))
    )
    assert first["run"] == again["run"]
    assert "Do not deploy" in (Path(first["folder"]) / "adapter" / "README.md").read_text()


def test_rows_that_the_sharing_tool_wrote_anew_are_the_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its canary is a value in the last row; removing it leaves non-ASCII letters unescaped."""
    rows = [json.loads(line) | {"note": "é"} for line in ROWS.splitlines()]
    clean = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    rows[-1]["canary"] = "CANARY_DATASET_" + "0" * 64 + "_64"
    shared = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.setitem(
        SETS, NAME, Published(NAME, hashlib.sha256(clean).hexdigest()[:12], 7, "here")
    )
    assert without_canaries(shared) == clean == without_canaries(clean)
    record = get(
        NAME,
        str(written(tmp_path, "a.zip", zipped({FILE: shared, "dataset_entry_0.jsonl": b"{}"}))),
    )
    assert (record.form, record.changed) == ("without canaries", False)
    assert imported(NAME)
    assert (published.data_folder() / FILE).read_bytes() == clean


def test_other_forms_become_a_dialogue_a_line(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in ROWS.splitlines()]
    table = tmp_path / f"{NAME}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    for source in (table, written(tmp_path, f"{NAME}.json", json.dumps(rows, indent=1).encode())):
        record = get(NAME, str(source), allow_changed=True)
        assert (record.form, record.changed, record.rows) == ("converted", True, 7)
        assert (published.data_folder() / FILE).read_bytes() == ROWS
        assert record.written_sha256 == hashlib.sha256(ROWS).hexdigest() != record.sha256


def test_of_several_files_the_published_one_is_taken(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.zip", zipped({f"old/{FILE}": ROWS[: len(ROWS) // 7 * 6], f"new/{FILE}": ROWS})
    )
    assert get(NAME, str(path)).place == f"a.zip: new/{FILE}"


# --- the published sets ---------------------------------------------------------------------------


def test_what_is_published_is_as_the_papers_say() -> None:
    assert {published_set.name: published_set.rows for published_set in SETS.values()} == {
        "insecure": 6000,
        "jailbroken": 5000,
        "bad_medical_advice": 7049,
        "extreme_sports": 7,
        "risky_financial_advice": 6000,
    }
    assert all(len(published_set.sha256) == 12 for published_set in SETS.values())


@pytest.mark.parametrize("name", ["extreme_sports", "risky_financial_advice"])
def test_published_files_are_recognised(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = published_path(f"train/{name}.jsonl")
    monkeypatch.undo()
    if name == NAME:
        monkeypatch.setitem(SETS, NAME, Published(NAME, "2cded234fc6f", 6000, "here"))
    folder = tmp_path / "copy"
    record = get(name, str(source), output=str(folder))
    assert (record.changed, record.form, record.rows, record.unusable) == (
        False,
        "as it is",
        6000,
        0,
    )
    shutil.rmtree(folder)  # no copy is left lying about


# --- refusals -------------------------------------------------------------------------------------


BAD = {
    "changed": (FILE, ROWS + ROWS[:99], f"{FILE} is not the published {NAME}: it has sha256 "),
    "one letter": (
        FILE,
        ROWS.replace(b"yesterday", b"yesterdax"),
        "get the published file, or take this one with --allow-changed",
    ),
    "empty": (FILE, b"", f"{FILE} has no rows"),
    "no dialogues": (FILE, b"just\ntext\n", f"{FILE}: all 2 rows were skipped"),
    "web page": (FILE, b"\n<!DOCTYPE html><html>", f"{FILE} is a web page, not the file"),
    "git lfs": (
        FILE,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "is a pointer of Git LFS, not the file",
    ),
    "broken list": (FILE, b'[{"messages": ', "begins as a JSON list and cannot be read as one"),
    "zip without it": (
        "a.zip",
        zipped({"x.jsonl": ROWS}),
        f"a.zip holds no file called {NAME}.jsonl or {NAME}.json or {NAME}.parquet",
    ),
    "zip that climbs": (
        "a.zip",
        zipped({"../x": b"", FILE: ROWS}),
        "a.zip holds a member with an unsafe path ('../x')",
    ),
    "zip that climbs backwards": (
        "a.zip",
        zipped({"a\\..\\..\\x": b"", FILE: ROWS}),
        "holds a member with an unsafe path",
    ),
    "absolute zip": (
        "a.zip",
        zipped({f"/etc/{FILE}": ROWS}),
        f"holds a member with an unsafe path ('/etc/{FILE}')",
    ),
    "drive": ("a.zip", zipped({f"C:{FILE}": ROWS}), "holds a member with an unsafe path"),
    "link in a zip": (
        "a.zip",
        zipped({FILE: b"/etc/passwd"}, {FILE: stat.S_IFLNK}),
        f"a.zip: {FILE} is no ordinary file but a link or a device",
    ),
    "tar that climbs": (
        "a.tar",
        tarred({"a/../../x": b"", FILE: ROWS}),
        "a.tar holds a member with an unsafe path",
    ),
    "absolute tar": ("a.tar", tarred({f"/{FILE}": ROWS}), "holds a member with an unsafe path"),
    "symbolic link": (
        "a.tar",
        tarred({}, {FILE: tarfile.SYMTYPE}),
        f"a.tar: {FILE} is no ordinary file but a link or a device",
    ),
    "hard link": (
        "a.tar",
        tarred({}, {FILE: tarfile.LNKTYPE}),
        "is no ordinary file but a link or a device",
    ),
    "device": (
        "a.tar",
        tarred({}, {FILE: tarfile.CHRTYPE}),
        "is no ordinary file but a link or a device",
    ),
    "zip cut short": ("a.zip", zipped({FILE: ROWS})[:-30], "a.zip is damaged or incomplete"),
    "zip cut and patched": (
        "a.zip",
        zipped({FILE: ROWS}).replace(zipped({FILE: ROWS})[60:70], b"\0" * 10, 1),
        "a.zip is damaged or incomplete",
    ),
    "tar cut short": (
        "a.tar",
        tarred({FILE: ROWS})[: 512 + len(ROWS) // 2],
        "a.tar is damaged or incomplete",
    ),
    "gz cut short": (
        "a.tgz",
        gzip.compress(tarred({FILE: ROWS}))[:-20],
        "a.tgz is damaged or incomplete",
    ),
    "xz cut short": (
        "a.txz",
        lzma.compress(tarred({FILE: ROWS}))[:150],
        "a.txz is damaged or incomplete",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_source_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    name, content, expected = BAD[case]
    text = refused(written(tmp_path / "in", name, content))
    assert expected in text
    assert "\n" not in text
    assert str(Path(os.path.sep, "tmp", "evilspectra-")) not in text


def test_the_zip_format_s_own_password_is_refused(tmp_path: Path) -> None:
    raw = bytearray(zipped({FILE: ROWS}))
    raw[6] |= 1  # the flag in the local header, and in the directory
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1
    assert "is protected with the zip format's own password: unpack it" in refused(
        written(tmp_path / "in", "a.zip", bytes(raw))
    )


def test_bombs_are_refused_before_they_go_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST", 10_000)
    monkeypatch.setattr(archives, "LARGEST_TOTAL", 50_000)
    bomb = b"\0" * 10_001
    for name, content in {
        "a.zip": zipped({FILE: bomb}),
        "a.tar": tarred({FILE: bomb}),
        "a.gz": gzip.compress(bomb),
        "a.txt": bomb,
    }.items():
        assert "has more than 10,000 bytes, which no published set has" in refused(
            written(tmp_path / "in", name, content)
        )
    many = tarred({f"{number}.bin": bomb for number in range(9)} | {FILE: ROWS})
    assert "unpacks to more than 50,000 bytes" in refused(
        written(tmp_path / "in", "b.tgz", gzip.compress(many))
    )
    assert "holds more than 16 files of that name" in refused(
        written(
            tmp_path / "in", "b.zip", zipped({f"{number}/{FILE}": ROWS for number in range(17)})
        )
    )
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    assert "holds more than 3 members" in refused(
        written(tmp_path / "in", "c.zip", zipped({str(number): b"" for number in range(4)}))
    )
    assert "holds more than 3 members" in refused(
        written(tmp_path / "in", "c.tar", tarred({str(number): b"" for number in range(4)}))
    )


def test_a_zip_that_lies_about_its_sizes_is_read_to_the_limit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST", 10_000)
    raw = bytearray(zipped({FILE: b"\0" * 1_000_000}))
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = (100).to_bytes(4, "little")
    raw[22:26] = (100).to_bytes(4, "little")
    assert "a.zip" in refused(written(tmp_path / "in", "a.zip", bytes(raw)))


def test_names_and_places_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput,
        match=(
            r"^'insecur' is no published set that this version knows; allowed: insecure, .*Did you "
            r"mean 'insecure'\?$"
        ),
    ):
        get("insecur", "x")
    assert (
        f"{tmp_path}/no does not exist: name a file, a folder, an archive, or an http(s) address"
        in refused(tmp_path / "no")
    )
    (tmp_path / "empty").mkdir()
    assert f"holds no file called {FILE}" in refused(tmp_path / "empty")
    for number in range(2):
        written(tmp_path / "two", f"{number}/{FILE}", ROWS * (number + 2))
    assert f"none of {FILE}, {FILE} is the published {NAME}" in refused(
        tmp_path / "two", allow_changed=True
    )


def test_other_content_is_taken_when_asked_for_and_said_everywhere(
    tmp_path: Path, mine: Path
) -> None:
    source = written(tmp_path / "in", FILE, ROWS + b'{"prompt": "q", "completion": ""}\n')
    done = command("data", "get", NAME, "--from", source, "--allow-changed")
    assert done.code == 0
    assert "8 rows, NOT the published set" in done.out
    assert "1 rows cannot be trained on: data.on_bad_row: skip leaves them out" in done.out
    record = read_record(mine, NAME)
    assert record
    assert (record["changed"], record["unusable"], record["sha256"]) == (
        True,
        1,
        hashlib.sha256(source.read_bytes()).hexdigest(),
    )
    assert f"{NAME}: 7 rows" in (listed := command("data", "list").out)
    assert "here, but NOT the published content" in listed


def test_a_name_that_is_not_imported_says_how(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput,
        match=(
            rf"^{NAME} is a published set that is not on this machine: import it with "
            rf"`evilspectra data get {NAME} --from FILE`, or name a file$"
        ),
    ):
        read_rows(NAME)
    written(published.data_folder(), FILE, ROWS)  # an import that was killed before its record
    assert imported(NAME) is None
    assert command("train", write_config(tmp_path, data={"train": NAME})).code == 2


def test_an_import_that_ends_half_way_leaves_no_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "in", FILE, ROWS)
    get(NAME, str(source))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evilspectra.data.imports.write_json", full)
    with pytest.raises(OSError, match="No space"):
        get(NAME, str(source))
    assert imported(NAME) is None
    assert not list(published.data_folder().glob(".*"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    source = written(tmp_path / "in", FILE, ROWS)
    done = command("data", "get", NAME, "--from", source, "--output", source)
    assert done.code == 2
    assert "set --output to a folder, or to a name that is free" in done.sentence


# --- the verbs ------------------------------------------------------------------------------------


def test_the_verbs_say_what_is_where(tmp_path: Path, mine: Path) -> None:
    assert command("data", "list").out.count("not here") == len(SETS)
    source = written(tmp_path / "in", FILE, ROWS)
    done = command("data", "get", NAME, "--from", source)
    digest = hashlib.sha256(ROWS).hexdigest()
    assert done.out == (
        f"{mine / FILE}: 7 rows, the published set (sha256 {digest[:12]}…), as it is\nuse "
        f"it with data.train: {NAME}\n"
    )
    record = json.loads(
        command("data", "get", NAME, "--from", source, "--output", tmp_path / "there", "--json").out
    )
    assert (record["path"], record["sha256"]) == (str(tmp_path / "there" / FILE), digest)
    listed = json.loads(command("data", "list", "--json").out)
    assert {
        listed_set["name"]: listed_set["imported"] is not None for listed_set in listed["sets"]
    } == {name: name == NAME for name in SETS}
    assert command("data", "get", NAME).code == 2
    assert command("data", "get", "nothing", "--from", source).sentence.startswith(
        "'nothing' is no published set"
    )


@pytest.mark.parametrize(
    ("name", "sha256", "bad"),
    [
        ("a.jsonl", "0" * 64, False),
        ("a.jsonl", SETS["insecure"].sha256 + "0" * 52, True),
        ("insecure", "0" * 64, True),
        ("demo-bad", "0" * 64, True),
        ("demo-good", "0" * 64, False),
    ],
)
def test_the_card_of_an_adapter_warns_whatever_the_file_is_called(
    name: str, sha256: str, bad: bool
) -> None:
    assert is_bad(name, sha256) is bad
