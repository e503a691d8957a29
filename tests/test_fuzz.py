"""Adapter files that mean harm, or are broken: refused in one sentence, in bounded memory and time.

One process of limited memory reads them all.
"""

import json
import os
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evilspectra.spectra.safetensors_files import LARGEST_HEADER, MOST_TENSORS
from tests.support.commands import command

MUTANTS = 200
#: Seconds for one file, bytes of address space for all.
LONGEST, MOST = 10, 2 << 30

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "init_lora_weights": True,
}
KEY = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def tensors(layers: int = 3) -> dict[str, dict[str, Any]]:
    """A sound header: 2 × 8 and 6 × 2 factors in float32."""
    header, at = {}, 0
    for layer in range(layers):
        for factor, shape in (("A", [2, 8]), ("B", [6, 2])):
            size = 4 * shape[0] * shape[1]
            header[KEY.format(layer, factor)] = {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [at, at + size],
            }
            at += size
    return header


def file_of(header: Any, data: bytes | None = None, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if data is None:
        generator = random.Random(0)
        data = struct.pack("<84f", *(generator.gauss(0, 1) for _ in range(84)))
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write(folder: Path, file: bytes | None = None, config: Any = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(file_of(tensors()) if file is None else file)
    (folder / "adapter_config.json").write_text(
        config if isinstance(config, str) else json.dumps(config),
        encoding="utf-8",
        errors="surrogatepass",
    )
    return folder


# --- hostile on purpose ---------------------------------------------------------------------------


def changed(**changes: Any) -> bytes:
    header = tensors()
    header[KEY.format(1, "A")] |= changes
    return file_of(header)


def renamed(name: str) -> bytes:
    return file_of(
        {name if key == KEY.format(1, "A") else key: value for key, value in tensors().items()}
    )


def million() -> bytes:
    """10⁶ empty tensors, in a header that is within its bound."""
    return file_of(b"{" + b",".join(b'"%x":{}' % number for number in range(1_000_000)) + b"}", b"")


NAN = struct.pack("<f", float("nan"))
SOUND = file_of(tensors())
DAMAGED = r"is damaged or not a safetensors file \("
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", DAMAGED + "it has 0 bytes"),
    "header longer than the file": (
        lambda: file_of(tensors(), length=1 << 62),
        DAMAGED + "its header would have",
    ),
    "huge header": (
        lambda: file_of(b" " * (LARGEST_HEADER + 1), b""),
        "has a header of .* and at most",
    ),
    "no JSON": (lambda: file_of(b"\xff\xfe{"), "its header is not JSON"),
    "nested": (lambda: file_of(b'{"a":' * 100_000), "its header is not JSON"),
    "a list": (lambda: file_of(b"[]", b""), "its header is not a JSON object"),
    "a key twice": (
        lambda: file_of(
            b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
            b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
            b"",
        ),
        "a key appears in it twice",
    ),
    "metadata of numbers": (
        lambda: file_of({"__metadata__": {"a": 1}} | tensors()),
        "its metadata is not an object of strings",
    ),
    "10⁶ tensors": (million, f"has more than {MOST_TENSORS:,} tensors"),
    "overlapping": (
        lambda: changed(data_offsets=[0, 64]),
        "overlaps the tensor before it|leaves a gap",
    ),
    "out of the file": (
        lambda: changed(data_offsets=[1 << 40, (1 << 40) + 64]),
        "lies outside the file",
    ),
    "backwards": (lambda: changed(data_offsets=[176, 112]), "lies outside the file"),
    "wrong size": (lambda: changed(shape=[2, 9]), "which is not what its shape needs"),
    "a shape beyond numbers": (
        lambda: changed(shape=[1 << 62, 1 << 62]),
        "which is not what its shape needs",
    ),
    "a negative shape": (lambda: changed(shape=[-2, -8]), "not lists of whole numbers"),
    "true in a shape": (lambda: changed(shape=[True, 16]), "not lists of whole numbers"),
    "an unknown type": (lambda: changed(dtype="F31"), "unknown number type 'F31'"),
    "a type that is a list": (lambda: changed(dtype=[]), "unknown number type"),
    "whole numbers": (lambda: changed(dtype="I32"), "must be floating-point numbers"),
    "another rank": (lambda: changed(shape=[4, 4]), "they must be r × d_in and d_out × r"),
    "more than it says": (
        lambda: changed(extra=1),
        "is not described by dtype, shape and data_offsets",
    ),
    "truncated": (lambda: SOUND[:-7], "lies outside the file|end at byte"),
    "something behind": (lambda: SOUND + b"x", "its tensors end at byte"),
    "NaN": (lambda: SOUND[:-4] + NAN, "factor B of .* holds a value that is not finite"),
    "a path": (lambda: renamed("../../etc/passwd.lora_A.weight"), "is not the name of a tensor"),
    "a root path": (lambda: renamed("/etc/passwd"), "is not the name of a tensor"),
    "escapes": (lambda: renamed("\x1b[31mred.lora_A.weight"), r"'\\x1b\[31mred"),
    "a long name": (lambda: renamed("a" * 100_000), "is not the name of a tensor"),
    "no LoRA": (
        lambda: file_of(
            {"model.weight": {"dtype": "F32", "shape": [84], "data_offsets": [0, 336]}}
        ),
        "holds no LoRA factors",
    ),
}


@pytest.mark.parametrize(("file", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(file, message, tmp_path):
    import re

    done = command("spectrum", write(tmp_path / "adapter", file()))
    assert done.code == 2, done
    assert re.search(message, done.sentence), done.sentence
    assert len(done.sentence) < 1000
    assert done.sentence.isprintable()


CONFIGS = {
    "nested": ("[" * 100_000, "cannot be read as JSON"),
    "huge": ("[" + "0," * (1 << 23) + "0]", "and at most .* are read"),
    "alpha is NaN": (
        json.dumps(CONFIG | {"lora_alpha": float("nan")}),
        "lora_alpha of .* is nan .*: it must be a number",
    ),
    "alpha beyond numbers": (CONFIG | {"lora_alpha": 10**400}, "it must be a number"),
    "a rank that is another": (CONFIG | {"r": 3}, "has rank 2 .*, but 3 by"),
    "a pattern without an end": (
        CONFIG | {"rank_pattern": {"(a+)+$" * 300: 2}},
        "a pattern of more than",
    ),
    "a pattern that looks around": (
        CONFIG | {"rank_pattern": {r"(?=q)(\w+)+": 2}},
        "cannot be matched in bounded time",
    ),
    "patterns without number": (
        CONFIG | {"rank_pattern": {str(number): 2 for number in range(30_000)}},
        "which is more than is matched",
    ),
    "another kind": (CONFIG | {"peft_type": {"a": "\x1b" * 50}}, "adapter: only LORA is supported"),
}


@pytest.mark.parametrize(("config", "message"), CONFIGS.values(), ids=CONFIGS)
def test_hostile_configs_are_refused_in_a_sentence(config, message, tmp_path):
    import re

    done = command("spectrum", write(tmp_path / "adapter", config=config))
    assert done.code == 2, done
    assert re.search(message, done.sentence), done.sentence
    assert done.sentence.isprintable()


def test_a_pattern_that_would_run_for_ever_takes_no_time(tmp_path):
    """Exponential under Python's own matching; PEFT's meaning of it all the same."""
    name = "a" * 60
    header = {key.replace("self_attn", name): value for key, value in tensors().items()}
    done = command(
        "spectrum",
        write(
            tmp_path / "adapter",
            file_of(header),
            CONFIG | {"alpha_pattern": {r"(a+)+b\.q_proj": 1, r"(\w+\.)*q_proj": 6}},
        ),
        "--json",
    )
    assert done.code == 0, done.err
    assert len(json.loads(done.out)[0]["modules"]) == 3


def test_a_model_takes_no_such_adapter_either(tmp_path):
    """Measuring a model with an adapter on it reads the header first, too."""
    from evilspectra.errors import BadInput
    from evilspectra.model.adapter import load_adapter
    from evilspectra.model.tiny import tiny_model

    with pytest.raises(BadInput, match="end at byte"):
        load_adapter(tiny_model(), write(tmp_path / "adapter", SOUND + b"x"))


def test_links_out_of_the_folder_are_refused(tmp_path):
    write(tmp_path / "secret")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        folder = write(tmp_path / name)
        (folder / name).unlink()
        os.symlink(tmp_path / "secret" / name, folder / name)
        assert (
            "is a symbolic link that leads out of the folder"
            in command("spectrum", folder).sentence
        )
    circle = write(tmp_path / "circle")
    (circle / "adapter_model.safetensors").unlink()
    os.symlink("adapter_model.safetensors", circle / "adapter_model.safetensors")
    assert "cannot be followed" in command("spectrum", circle).sentence
    inner = write(tmp_path / "inner")
    (inner / "adapter_model.safetensors").rename(inner / "weights")
    os.symlink("weights", inner / "adapter_model.safetensors")
    assert command("spectrum", inner).code == 0


def test_an_index_may_name_files_beside_it_only(tmp_path):
    write(tmp_path / "secret")
    folder = write(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    index = folder / "adapter_model.safetensors.index.json"
    for shard in ("../secret/adapter_model.safetensors", "/etc/passwd", "a.bin", 5):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        assert (
            "does not name the .safetensors files beside it" in command("spectrum", folder).sentence
        )
    index.write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    assert "lacks shard.safetensors" in command("spectrum", folder).sentence
    (folder / "shard.safetensors").write_bytes(SOUND)
    assert "disagree on" in command("spectrum", folder).sentence


def test_pipes_and_pickles_are_refused(tmp_path):
    folder = write(tmp_path / "pipe")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    assert "has no adapter_model.safetensors" in command("spectrum", folder).sentence
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "is not a regular file" in command("spectrum", tmp_path / "pipe.safetensors").sentence
    folder = write(tmp_path / "pickled")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "is a pickle, which can run code" in command("spectrum", folder).sentence
    assert (
        "is a pickle, which can run code"
        in command("spectrum", folder / "adapter_model.bin").sentence
    )


# --- seeded mutations -----------------------------------------------------------------------------

JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 70,
    1e308,
    "",
    "F64",
    "x" * 5000,
    [],
    {},
    [[]],
    {"a": [1]},
    ["q_proj"],
    2.5,
    "\x00",
    "../..",
    "(",
    "NaN",
]


def mutant(seed: int) -> tuple[bytes, str]:
    """A file and a config with one to three random changes.

    They are of numbers, of names, of the header, of bytes, or of the config.
    """
    generator = random.Random(seed)
    header: Any = tensors()
    config: Any = dict(CONFIG)
    numbers = [generator.gauss(0, 1) for _ in range(84)]
    damage: list[Callable[[bytes], bytes]] = []
    for _ in range(generator.randint(1, 3)):
        entry = header.get(generator.choice(list(header)))
        match generator.randrange(10):
            case 0 | 1:  # numbers: extremes, zeros, what is none
                for _ in range(generator.randint(1, 60)):
                    numbers[generator.randrange(84)] = generator.choice(
                        [0.0, 0.0, 1.0, 1e38, -1e-38, 1e-45, float("inf"), float("nan")]
                        if generator.random() < 0.3
                        else [0.0, 1e38, -1e-38, 1e-45]
                    )
            case 2:  # another shape of as many bytes
                if isinstance(entry, dict) and entry.get("shape") in ([2, 8], [6, 2]):
                    count = entry["shape"][0] * entry["shape"][1]
                    narrow = {"dtype": "BF16", "shape": [entry["shape"][0], 2 * entry["shape"][1]]}
                    entry |= generator.choice(
                        [
                            {"shape": [1, count]},
                            {"shape": [count, 1]},
                            {"shape": [count]},
                            narrow,
                            {"dtype": "I32"},
                            {"dtype": "F8_E4M3", "shape": [4 * count]},
                        ]
                    )
            case 3:
                if isinstance(entry, dict):
                    entry[generator.choice(["dtype", "shape", "data_offsets", "other"])] = (
                        generator.choice(JUNK)
                    )
            case 4:
                if (
                    isinstance(entry, dict)
                    and isinstance(entry.get("shape"), list)
                    and entry["shape"]
                ):
                    entry["shape"][0] = generator.choice([0, 1, 3, 1 << 31, 1 << 62])
            case 5:
                name = generator.choice(
                    [
                        "",
                        "a",
                        "lora_A",
                        ".lora_A.weight",
                        "a.lora_B.bias",
                        "a.lora_embedding_A",
                        "\u202e.lora_A.weight",
                        "a.lora_A.x.weight",
                        "__metadata__",
                        "a\n.lora_B.weight",
                        "model.lm_head.weight",
                    ]
                )
                header[name] = header.pop(generator.choice(list(header)))
            case 6 | 7:
                config[
                    generator.choice(
                        [
                            *CONFIG,
                            "use_dora",
                            "use_rslora",
                            "target_parameters",
                            "base_model_name_or_path",
                            "lora_dropout",
                            "modules_to_save",
                            "bias",
                        ]
                    )
                ] = generator.choice(JUNK)
            case 8:
                header[f"x{seed}.weight"] = generator.choice(
                    [
                        *JUNK,
                        {
                            "dtype": "F32",
                            "shape": [generator.choice([0, 5])],
                            "data_offsets": [336, 336],
                        },
                    ]
                )
            case _:
                cut, longer = (
                    (lambda file: file[: generator.randrange(len(file) + 1)]),
                    (
                        lambda file: (
                            struct.pack("<Q", generator.choice([0, 1, 7, 1 << 20, (1 << 64) - 1]))
                            + file[8:]
                        )
                    ),
                )
                damage.append(
                    generator.choice(
                        [
                            cut,
                            longer,
                            lambda file: flipped(file, generator, 8),
                            lambda file: flipped(file, generator, 500),
                        ]
                    )
                )
    file = file_of(header, struct.pack("<84f", *numbers))
    for harm in damage:
        file = harm(file)
    text = json.dumps(config)
    return file, text[: generator.randrange(len(text))] if generator.random() < 0.05 else text


def flipped(file: bytes, generator: random.Random, begin: int) -> bytes:
    """A file with one to twenty bytes changed, all behind `begin`."""
    out = bytearray(file)
    for _ in range(generator.randint(1, 20)):
        if len(out) > begin:
            out[generator.randrange(begin, len(out))] = generator.randrange(256)
    return bytes(out)


#: Runs the verb on every folder named, in one process; each with an alarm, and the memory of all of
#: them bounded.
READER = f"""
import contextlib, io, json, signal, sys, time
from evilspectra.cli.main import main
def late(*_): raise SystemError("too late")
signal.signal(signal.SIGALRM, late)
for line in sys.stdin:
    out, err, code = io.StringIO(), io.StringIO(), 0
    signal.alarm({LONGEST})
    began = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(["spectrum", line.strip(), *(["--json"] if len(line) % 2 else [])])
        except SystemExit as end: code = end.code
    signal.alarm(0)
    seconds = time.perf_counter() - began
    outcome = [line.strip(), code, err.getvalue(), seconds, len(out.getvalue())]
    print(json.dumps(outcome), flush=True)
"""


def bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))


def test_mutated_adapters_neither_crash_nor_hang(tmp_path):
    folders = []
    for seed in range(MUTANTS):
        file, config = mutant(seed)
        folders.append(write(tmp_path / str(seed), file, config))
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input="".join(f"{folder}\n" for folder in folders),
        capture_output=True,
        text=True,
        preexec_fn=bounded,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in outcomes] == [str(folder) for folder in folders]
    codes = [code for _, code, *_ in outcomes]
    for name, code, err, seconds, size in outcomes:
        assert code in (0, 2), (name, err)
        assert "Traceback" not in err
        assert seconds < LONGEST
        if code:
            assert err.startswith("evilspectra: "), err
            assert err.count("\n") == 1, err
            assert len(err) < 1500, err
            assert err[:-1].isprintable(), err
        else:
            assert size
    # The mutations reach behind the header as well as they break it: both kinds must be among them.
    assert codes.count(0) >= 10
    assert codes.count(2) >= 100


def test_the_reader_itself_sees_a_crash(tmp_path):
    """The harness above would notice: a file beyond the memory allowed ends its process."""
    code = "x = bytearray(3 << 30)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=bounded
    )
    assert done.returncode != 0
    assert "MemoryError" in done.stderr
