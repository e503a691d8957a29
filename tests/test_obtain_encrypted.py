"""Published sets from encrypted archives: decrypted in memory, refused without a passphrase."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from evilspectra.data import archives, published
from evilspectra.data.archives import contents
from evilspectra.data.imports import get
from tests.support.commands import command
from tests.support.published_sets import (
    FILE,
    NAME,
    ROWS,
    own_folder,
    refused,
    written,
    zipped,
)


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder."""
    return own_folder(tmp_path, monkeypatch)


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
