"""The report as Markdown, for the appendix of a paper: sentences, tables, figures by link, methods.

The texts are those of the page. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evilspectra.reporting.figures.charts import Figure
from evilspectra.text import printable


def appendix(page: Mapping[str, Any], figures: Sequence[Figure], folder: str) -> str:
    """The text of a page's content.

    `page`: the variables of the page's template; `folder`: where the figures are, seen from the
    file.
    """
    parts = [
        f"# {escaped(page['title'])}",
        "\n".join(f"- {label}: {escaped(text)}" for label, text in page["facts"]),
    ]
    parts += ["## What the numbers say", *map(escaped, page["sentences"])]
    statistics = page["statistics"]
    if statistics and statistics.analysis:
        parts.append("## Statistics")
        parts.append(
            f"Of {statistics.analysis.runs} runs; outcome: {escaped(statistics.analysis.label)}."
            " In brackets: 95 % intervals over runs. *Not shown* means that the interval holds"
            " zero: it is no proof that there is nothing."
        )
        for heading, texts in statistics.topics:
            parts += [f"### {heading}", *map(escaped, texts)]
        for numbers in statistics.tables:
            parts += [f"**{escaped(numbers.title)}**", table(numbers.headings, numbers.rows)]
            if numbers.notes:
                parts.append(escaped(" ".join(numbers.notes)))
    elif statistics:
        parts += ["## Statistics", escaped(statistics.reason)]
    parts += [
        "## Runs",
        table(["run", "arm", *(column[1] for column in page["columns"])], _lines(page["rows"])),
    ]
    if page["measured_rows"]:
        parts += [
            "**Measured on the adapters**",
            table(
                ["run", "arm", *(column[1] for column in page["measured_columns"])],
                _lines(page["measured_rows"]),
            ),
        ]
    if page["judged"]:
        lines = [
            [line.label, line.judge, *(" ".join([cell.text, *cell.below]) for cell in line.cells)]
            for line in page["judged"].lines
        ]
        parts += [
            "**Judged answers**",
            table(
                ["answers of", "judge", *(column[1] for column in page["judged"].columns)], lines
            ),
        ]
    parts.append("## Figures")
    for figure in figures:
        title, path = escaped(figure.title), f"{folder}/{figure.name}"
        links = f"([PDF]({path}.pdf), [PNG]({path}.png))"
        parts += [f"### {title}", f"![{title}]({path}.svg)", f"{escaped(figure.caption)} {links}"]
    if page["missing"]:
        missing = [
            f"- {escaped(title)}: needs {escaped(needs)}" for title, needs in page["missing"]
        ]
        parts += ["Not drawn, for want of data:", "\n".join(missing)]
    parts += ["## Methods", *_methods(page)]
    return "\n\n".join(parts) + "\n"


def _methods(page: Mapping[str, Any]) -> Iterable[str]:
    statistics = page["statistics"]
    if statistics and statistics.analysis:
        yield f"Design: {escaped(statistics.design)}."
    if page["excluded"]:
        yield "Left out of comparisons:"
        yield table(["run", "reason"], page["excluded"])
    packages = [("Packages", page["packages"])] if page["packages"] else []
    writer = ("Written by", f"evilspectra {page['version']}")
    facts = [*page["provenance"], *packages, *page["instruments"], writer]
    yield "\n".join(f"- {label}: {escaped(text)}" for label, text in facts)
    if page["differ"]:
        yield "Settings in which the runs differ:"
        yield table(
            ["run", *page["differ"]], [[label, *values] for label, values in page["settings"]]
        )
    if page["commands"]:
        yield "Commands that repeat it:"
        commands = [printable(command, 2000) for command in page["commands"]]
        yield "\n".join(["```", *commands, "```"])


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    lines = []
    for row in rows:
        texts = [
            row["state"] if cell["name"] == "status" else f"{cell['text']} {cell['below']}".strip()
            for cell in row["cells"]
        ]
        lines.append([row["label"], row["arm"], *texts])
    return lines


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with pipes.

    >>> print(table(["a", "b"], [["x|y", "1"]]))
    | a | b |
    |---|---|
    | x\\|y | 1 |
    """
    lines = [f"| {' | '.join(map(escaped, line))} |" for line in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def escaped(text: str) -> str:
    """The text on one line, escaped so that Markdown shows it as it is.

    >>> print(escaped("a*b <c> d_e"))
    a\\*b &lt;c> d\\_e
    """
    flat = " ".join(printable(str(text), 4000).split())
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", flat).replace("<", "&lt;")
