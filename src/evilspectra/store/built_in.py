"""Questions and items that come with the package: their names, and their files among its assets."""

from __future__ import annotations

from collections.abc import Mapping

#: The name of the paper's questions.
PAPER = "paper"
#: Table of results → name → file. The file of the paper's questions lists published files, which do
#: not come with the package.
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "probe": {"contrast": "contrast.jsonl"},
    "capability": {"capability": "capability.jsonl"},
    "ordinary": {"ordinary": "ordinary.jsonl"},
    "answers": {"open": "questions.yaml", PAPER: "paper_questions.yaml"},
}
