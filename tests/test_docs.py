"""The pages' commands, files, Python and outputs, as they stand (tests/support/pages.py)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from evilspectra.evaluation.summary import summarise
from evilspectra.model.base import CACHE_VARIABLE
from evilspectra.store.run import find_run
from tests.support import page_folders
from tests.support.pages import (
    ROOT,
    Block,
    Runner,
    blocks,
    check_options,
    commands_in_text,
    differs,
    pages,
    shape,
    title,
)

README = ROOT / "README.md"
BLOCKS = {page: blocks(page) for page in pages()}
#: Pages whose blocks another test runs, with checks of its own: tests/test_extending.py.
ELSEWHERE = ("docs/extending.md",)
#: Pages whose verdicts rest on all of the package's items.
ALL_ITEMS = ("docs/pipeline.md",)


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder, copied for every page, and next to it a cache of what was measured."""
    root = tmp_path_factory.mktemp("reader")
    (root / "items").mkdir()
    (root / "folder").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(root / "cache"))
        page_folders.few_items(patch, root / "items")
        page_folders.write_everything(root / "folder")
    return root


def prepare_diff(values: dict[str, Any]) -> None:
    """Names that the diffs assume: a model, rows, settings of trainer and adapter."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig

    values["model"] = "my-base"
    values["args"] = SFTConfig("out", use_cpu=True, bf16=False, save_strategy="no", max_steps=2)
    values["lora"] = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    values["rows"] = Dataset.from_list([{"text": f"Question {n}: is it time?"} for n in range(16)])
    assert not Path("out/evilspectra").exists(), "records without the added lines"


def check_diff() -> None:
    """The added lines leave the records that the text promises; then the adapter is saved."""
    summary = summarise(find_run("out"))
    assert (summary.status, summary.flatness_weight) == ("done", 0.3)
    page_folders.copy(Path("my-adapter"), Path("out"))  # as trainer.save_model() would


def check_sweeps() -> None:
    """docs/sweeps.md: its file has the cells that it describes, and dry runs train nothing."""
    from evilspectra.sweeps.file import load_sweep
    from evilspectra.sweeps.plan import plan

    assert len(plan(load_sweep("sweep.yaml")).runs) == 2 * 2 * 2 * 2 - 2
    assert not Path("runs/my-sweep").exists()


#: Page → a check of the folder after it.
AFTERWARDS = {"docs/sweeps.md": check_sweeps}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page, content in BLOCKS.items() if content and page not in ELSEWHERE]
)
def test_the_page_does_as_it_says(
    page: str,
    reader: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page_folders.copy(reader / "folder", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(reader / "cache"))
    monkeypatch.setenv("EVILSPECTRA_DATA", str(tmp_path / "data"))
    if page not in ALL_ITEMS:
        page_folders.few_items(monkeypatch, reader / "items")
    runner = Runner(dict(page_folders.NAMES), prepare_diff, check_diff)
    for block in BLOCKS[page]:
        runner.run(block)
    AFTERWARDS.get(page, lambda: None)()


@pytest.mark.parametrize("page", list(BLOCKS))
def test_commands_in_the_text_exist(page: str) -> None:
    for command in commands_in_text((ROOT / page).read_text(encoding="utf-8")):
        check_options(command.split()[1:])


def test_make_has_the_two_commands() -> None:
    commands = [block.text for block in BLOCKS["README.md"] if block.language == "bash"]
    targets = re.findall(r"^make (\w+)", "".join(commands), re.MULTILINE)
    assert set(targets) == {"demo", "test"}


def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_links_point_to_files() -> None:
    for page in pages():
        document = ROOT / page
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", ["README.md", "docs/README.md"])
def test_links_in_tables_have_the_titles_of_their_pages(page: str) -> None:
    links = 0
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            for text, target in re.findall(r"\[([^\]]+)\]\(([^)#:]+\.md)\)", line):
                assert text == title((ROOT / page).parent / target)
                links += 1
    assert links >= 6


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    paths = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")}
    assert {path for path in paths - {"README.md"} if f"({path})" not in index} == set()


def test_file_map_names_every_package() -> None:
    """docs/architecture.md names every package and module at the top, as `cli/` and `errors`."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = (ROOT / "src" / "evilspectra").glob("[!_]*")
    names = {path.stem for path in files if path.name != "py.typed"}
    lacking = {name for name in names if not re.search(rf"`{name}(/|\.py)?`", page)}
    assert not lacking


# --- the mechanism itself: faults in a page are found ---


def run_page(text: str) -> None:
    runner = Runner()
    for block in blocks("page.md", text):
        runner.run(block)


VERSION = "```bash\nevilspectra --version\n```\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```\nx\n```", "neither run nor compared"),
        ("```console\nevilspectra --version\n```", "neither run nor compared"),
        ("```bash\nevilspectra config schem\n```", "No such command"),
        ("```bash\nevilspectra --version  # exit 3\n```", "evilspectra --version: 0"),
        ("```bash\ncurl address\n```", "cannot run here"),
        ("```bash\nmake coffee\n```", "make has no target"),
        ("```bash\npip install 'evilspectra[coffee]'\n```", "no extra"),
        ("```yaml\na: 1\n```", "not the file's name"),
        ("```text\nx\n```", "an output of nothing"),
        ("```python\nassert 1 == 2\n```", ""),
        (f"{VERSION}\n```text\nevilspectra, version 0 beta\n```", "beta"),
        (f"{VERSION}\n```text\nversion 0\n```", "shown 'version 0'"),
        ("<!-- not run: a key -->\n```bash\nevilspectra probe x --judje y\n```", "no --judje"),
        ("<!-- not run: a key -->\n```bash\nevilspectra prob x\n```", "there is no command"),
        ("<!-- not run: -->\n```\nx\n```", "neither run nor compared"),
        ("```diff\n a = 1\n```", "nothing is added"),
    ],
)
def test_a_fault_of_a_page_is_found(
    text: str,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError) as caught:
        run_page(text)
    assert fault in str(caught.value)


def test_a_page_without_fault_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(
        "```bash\nevilspectra --version > version.txt\nevilspectra --version\n```\n\n"
        "```text\nevilspectra, version 9.9.9\n```\n\n"
        "```yaml\n# a.yaml\na: 1\n```\n\n```python\nassert open('a.yaml').read()\nb = 2\n```\n\n"
        "<!-- not run: hours -->\n```bash\nevilspectra sweep initial --dry-run\n```\n\n"
        "```python\nprint(b)\n```\n\n```text\n7\n```\n"
    )
    assert Path("version.txt").read_text().startswith("evilspectra")


def test_fences_that_are_not_closed_are_found() -> None:
    with pytest.raises(ValueError, match="not closed"):
        blocks("page.md", "```bash\nx\n```\n\n```bash\ny\n")


def test_outputs_are_compared_by_words_and_columns() -> None:
    actual = shape("a  +0.10 [0.05, 0.15]  █▂\nb  7\nrest: one, two\n")
    assert differs(shape("a  −2 [1, 3.5]  ▃▁\nb  12,000\nrest: one…\n"), actual) is None
    assert differs(shape("a  1 [2, 3]  ▁\n…\n"), actual) is None
    assert differs(shape("…\nrest: one, two\n"), actual) is None
    for wrong in ("a 1 [2, 3] ▁\nb 7\n", "a 1 2 ▁\n…\n", "a 1 [2, 3] ▁\n…\nrest: two\n", "c\n…\n"):
        assert differs(shape(wrong), actual) is not None
    assert shape("adamw-b8-s0-eb3213bac8") == shape("adamw-b8-s0-0011223344")
    assert shape("adamw-b8-s0-eb3213bac8") != shape("lion-b8-s0-eb3213bac8")


def test_commands_in_the_text_are_read() -> None:
    text = "`evilspectra probe X --bae y`, `evilspectra\nshow RUN`.\n```bash\n`evilspectra z`\n```"
    assert commands_in_text(text) == ["evilspectra probe X --bae y", "evilspectra show RUN"]
    with pytest.raises(AssertionError, match="no --bae"):
        check_options(["probe", "X", "--bae", "y"])
    for good in (["probe", "X", "--base", "y"], ["sweep", "retry", "f", "--failed"]):
        check_options(good)


def test_reasons_are_sentences_of_the_page() -> None:
    reasons = [(block, block.reason) for content in BLOCKS.values() for block in content]
    assert all(reason is None or len(reason.split()) >= 3 for _block, reason in reasons)
    assert isinstance(reasons[0][0], Block)


def test_extras_in_the_text_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = project["project"]["optional-dependencies"].keys()
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for extra in re.findall(r"(?:evilspectra|'\.)\[([a-z,-]+)\]", text):
            assert set(extra.split(",")) <= names, f"{page}: {extra}"
