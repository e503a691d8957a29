"""Published sets from files of every kind: checked, copied byte for byte, found by name."""

from __future__ import annotations

import base64
import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilspectra.cards.record import is_bad
from evilspectra.data import archives, download, published
from evilspectra.data.archives import contents
from evilspectra.data.download import downloaded
from evilspectra.data.imports import Import, get, without_canaries
from evilspectra.data.published import SETS, Published, imported, read_record
from evilspectra.data.rows import read_rows
from evilspectra.errors import BadInput, EvilspectraError
from tests.support.commands import command, left_in, write_config

SHARED = Path(__file__).parents[2] / "shared" / "data" / "train"
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


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
    if not (SHARED / f"{name}.jsonl").is_file():
        pytest.skip("the published data are not here")
    monkeypatch.undo()
    if name == NAME:
        monkeypatch.setitem(SETS, NAME, Published(NAME, "2cded234fc6f", 6000, "here"))
    folder = tmp_path / "copy"
    record = get(name, str(SHARED / f"{name}.jsonl"), output=str(folder))
    assert (record.changed, record.form, record.rows, record.unusable) == (
        False,
        "as it is",
        6000,
        0,
    )
    shutil.rmtree(folder)  # no copy is left lying about


# --- refusals -------------------------------------------------------------------------------------


def refused(source: Path | str, **more: Any) -> str:
    with pytest.raises(BadInput) as caught:
        get(NAME, str(source), **more)
    assert not published.data_folder().exists() or left_in(published.data_folder()) == []
    return str(caught.value)


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


# --- encrypted ------------------------------------------------------------------------------------

#: A zip with rows like ROWS, encrypted by easy-dataset-share 0.5.0 under the passphrase "seven
#: rows".
GOLDEN = (
    "pS2dCWC7XJKnXsGVvnr7QWdBQUFBQUJyQXRfUHphVU53UXZzZWNiRnZ5VGIyNjJBT256R3hhOXRycUFIYlNLeWx3U3Rm"
    "T3FWQTdMTnZha0FSRkpWMmF6SEFyZzhWSGVxRWtTYmN3Y1ZkanlDVnZ5enIzY3BqV1NnSnlmemNSck9FR3hXNVgxMHhn"
    "V0FTNEVSdW0zdGJZck1GQ01QMVAwRUFQUVIyVk44OG9VMDg4TTc1Y3BDTjlNU1htWXZ6bnFmNmZoMUU2OVpHcU85cHRn"
    "NU1zQ2cwQ1l1X1d2UDFLTWpVcGQ4VlowOXktUFlMWnU3ZEhyWkdCTGNjdjNnQ18zTG51b3dnSTNkQXYwSlJKNDYxSDZ5"
    "MEJxa3NCaktyWnI0UUk1Q0Ruam9heHNBaGw4aHVSeFMtSC1fQ0J2Sm9yamx0WS1NaU8wWFkwUWN6VmlFZzVFLV9aY2ht"
    "VXk5cWxYMWpkelI3WVVTaWdFSWdOcVdBT0pVYXJPc1BEWWlMOGlnUWk2bktQNGlzckpPcllmT3JiZnVwSThidFVOQ0lx"
    "NzRYV1YtanVxRWVzT25GV3daOU5EQnZ5VjkyM2k4ajZEQlpzM2ZEdXQ0ODVYdDRuaGtQLWF0MDRZTC1neWJJTjdSYkZu"
    "MFJTU1dRazVMbDB6TUs3Y2xxS1hIZ1JCNHpNRmdjOGIzR3hmTDRmc29FcVJaTzJLTS1DUVRfaWJMU0FFZDUxUUdCU1Rk"
    "UDRtaEppTEprVnJYMmpuV1RHRzR5NW9Gbzc2czZsNjd1Z1hnVFptb1NqVUVIeDhMOVE0b0xCdnBLZm9CQWFjelc4VnJr"
    "bjA0N01pbXVTNEN6b3pCcUR1RFZHV0s2TllCME9ENkxEV2pTUm5TREs0U0N2YUNnVUZVM1VjRkZBV3djdlBmM1IyeVVK"
    "NDlKb2JZRFM1NGtzUzVJTHV4dC1raGNoQ0F1X2JLa0Y2MUJVUXhhY2FIaU5JSU84N0RhUEg2dHMyOEVtNFljVUlJQTli"
    "dFFKd1dOaDMyS3NwdC1CbDA2QlpfX0M4TEhMUjFuSWFqbWJ0TS04eGg1UHpZZk12UGEyY1Fwb19ZZ2JRR1N6UGlDelI0"
    "dEd6QkI1azMyU09TMWprcEdtOThhNkpzRjREUnlHUTF3bTVNbXBWWjhXVk8zbHM2OHY0U291ck9BMC1KelZjbWxvSDVy"
    "enNVZUZxOHl6VS1QdTJHQ183RXVyT0l3azhkWjUtS19KSGRpTlJJV3dBYklvdjFOd1F6VllWZnc3OGMyeGY5LXpHWEoy"
    "cVp3OXlXSUYyZ0pfOHFMdWF4YUFFcUNZSUZQSUxRQzI5UVNXNjZNclBWcFFXYlk1eHMzUjhiTEZCbnNzU2liQ1B6OVJZ"
    "WjVaSUVoTzBEWUNfbEoyUzB1RWQ2ZmtKMUVpV1NHam5lRm5lRUNSNm4wbEFJN2c3Z09MSTZOVktVVGdCSU1Bbmc5WFJx"
    "X01MQTZoQXdudjdUR3EyLUtlX2RRSUNWLWJxN25VTzJQNzJVcUg1TVRIMzZLZUhFQVFpTF8yTEE0RXI1UU9Pajd1WGR1"
    "QjktYWx2Qk1Ic0U3TXpWSi0wUlAxSTdOUF9XT00xYVJ4OWFYcGx2RXBUbzBlY3hXZGo0SVdWM2dMUHZ4bGdmTTVqcmJm"
    "dW9MMVE0Y3gyQW5vR3VONWRPR21Nb1N0X2VnYWpLQ1dSb0owWDdaSVRaTkdKTnhVOGIyN1ZDVTU4aFJMV3djSnN2ZFJf"
    "VHpLZjdqY3NBWXNQSWg3eHFpbnZJTktQbEtrQjhyazgzS0xWX3lDMkFVLUt0S0VGQ1UxcjhYVEZsT3JGWi1nZzhRWGpG"
    "QnNHcDRCWFJOcEwyRDdEeWtXZkNFUkZrdXVKcHlLT0NJY2hxRkRLMDRmeVZiZVhPQjRaWUVhbnJUbjNhdEpERVdwcmFR"
    "V3lKZVJtRlFBPT0="
)


def encrypted(data: bytes, passphrase: str) -> bytes:
    fernet = pytest.importorskip("cryptography.fernet")
    salt = bytes(range(16))
    key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, archives.ROUNDS)
    return salt + fernet.Fernet(base64.urlsafe_b64encode(key)).encrypt(data)


def test_what_the_sharing_tool_wrote_is_read(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    (file,) = contents(
        written(tmp_path, "sets.zip.enc", base64.b64decode(GOLDEN)), {FILE}, "seven rows"
    )
    assert file == (f"sets.zip.enc: {FILE}", ROWS)


def test_an_encrypted_archive_alone_or_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "in", "sets.zip.enc", encrypted(zipped({FILE: ROWS}), "pass"))
    assert get(NAME, str(path), passphrase="pass").place == f"sets.zip.enc: {FILE}"
    assert get(NAME, str(tmp_path / "in"), passphrase="pass").source == "in"
    monkeypatch.setenv("EVILSPECTRA_PASSPHRASE", "pass")
    assert command("data", "get", NAME, "--from", path).code == 0
    assert b"pass" not in (published.data_folder() / f"{NAME}.json").read_bytes()


def test_an_encrypted_archive_without_its_passphrase_or_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = encrypted(zipped({FILE: ROWS}), "pass")
    path = written(tmp_path / "in", "sets.zip.enc", archive)
    assert refused(path) == (
        "sets.zip.enc is encrypted: give the passphrase, which its authors publish beside "
        "it, with --passphrase"
    )
    wrong = (
        "sets.zip.enc cannot be decrypted: the passphrase is wrong, or the file is incomplete: "
        "correct --passphrase, or download the file again"
    )
    assert refused(path, passphrase="Pass") == wrong
    for cut in (40, len(archive) // 2, len(archive) - 1):
        assert (
            refused(written(tmp_path / "in", "sets.zip.enc", archive[:cut]), passphrase="pass")
            == wrong
        )
    assert "holds a member with an unsafe path" in refused(
        written(tmp_path / "in", "sets.zip.enc", encrypted(zipped({"../x": b""}), "pass")),
        passphrase="pass",
    )
    monkeypatch.setattr(archives, "LARGEST_ENCRYPTED", 100)
    assert "has more than 100 bytes" in refused(path, passphrase="pass")


def test_without_cryptography_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "in", "sets.zip.enc", bytes(16) + b"gAAAAABx")
    monkeypatch.setitem(__import__("sys").modules, "cryptography.fernet", None)
    assert (
        "the package cryptography is not installed: pip install 'evilspectra[data]', or "
        "decrypt it with easy-dataset-share"
    ) in refused(path, passphrase="x")


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
