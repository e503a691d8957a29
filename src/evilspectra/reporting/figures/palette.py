"""The look of every chart: colours on light and dark pages, the theme, colours and dashes of arms.

Charts are drawn in the light colours; `DARK` and `Arms.dark` are their twins.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

import altair as alt

#: A pandas data frame. Its own annotations are unions, whose calls a type checker then refuses, so
#: it is not checked further.
Frame: TypeAlias = Any
INK, MUTED, LINE, PAPER = "#1d2126", "#666d76", "#e3e2dc", "#fdfdfb"
RAMP = ("#f0efe9", "#d5e2e0", "#b3cfd0", "#8ab6bd", "#5f98a6", "#3a768a", "#1b5169")
_WARM = ("#f1d6c7", "#e2a787", "#b65a33", "#83351a")
DARK = dict(
    zip(
        (INK, MUTED, LINE, PAPER, *RAMP, *_WARM),
        (
            "#e9e8e3",
            "#9aa1aa",
            "#33383f",
            "#16191d",
            "#20262b",
            "#23363d",
            "#274b56",
            "#2f6473",
            "#428293",
            "#6aa7b5",
            "#a8d8e0",
            "#3d2a21",
            "#70452f",
            "#c98159",
            "#f5bd9b",
        ),
        strict=True,
    )
)
#: From below zero through zero to above it; on the outer two of either side text is in PAPER.
DIVERGING = (RAMP[6], RAMP[5], RAMP[3], RAMP[1], RAMP[0], *_WARM)
#: Optimiser → its hue on a light and on a dark page, distinct under the common colour-vision
#: deficiencies.
HUES = {
    "sgd": ("#a9588f", "#d78fc2"),
    "adam": ("#c98a00", "#e8b84a"),
    "adamw": ("#2468b4", "#67a9f0"),
    "lion": ("#c7431c", "#f4805a"),
    "muon": ("#0f8a6a", "#46c9a2"),
} | {
    "soap": ("#5b5fc7", "#9a9df2"),
    "scion": ("#0b7f99", "#55bfd6"),
    "lora-rite": ("#7a6a1f", "#c2b05a"),
    "adafactor": ("#6b6f76", "#a9aeb6"),
}
DASHES = ([1, 0], [7, 4], [2, 3], [9, 3, 2, 3])
#: A control's, whatever its optimiser: neutral on either page.
CONTROL = ("#8a8a86", "#b5b4ae")
CONTROL_DASHES = ([5, 4], [1, 4], [8, 4, 1, 4], [12, 4])
FONT = (
    "-apple-system, BlinkMacSystemFont, 'Segoe UI', Roboto, 'Helvetica Neue', "
    "'Liberation Sans', Arial, sans-serif"
)
_AXIS = {
    "domain": False,
    "ticks": False,
    "gridColor": LINE,
    "labelColor": MUTED,
    "labelFontSize": 11,
    "labelPadding": 7,
    "titleColor": MUTED,
    "titleFontSize": 11,
    "titleFontWeight": "normal",
    "titlePadding": 9,
    "tickCount": 5,
}
THEME: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": _AXIS,
    "axisX": {
        "grid": False,
        "domain": True,
        "domainColor": LINE,
        "labelFlush": True,
        "tickCount": 6,
    },
    "axisY": {"title": None},
    "title": {
        "anchor": "start",
        "color": INK,
        "fontSize": 13,
        "fontWeight": 600,
        "offset": 10,
        "limit": 420,
    },
    "legend": {
        "orient": "bottom",
        "title": None,
        "labelColor": MUTED,
        "labelFontSize": 11,
        "gradientThickness": 12,
    },
    "line": {"strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"},
}


@dataclass(frozen=True)
class Arms:
    """The arms, each with a colour, its dark twin and a dash pattern.

    They are in the order of their optimiser, then of the penalty's weight; controls come last.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    dark: tuple[str, ...]
    dashes: tuple[list[int], ...]

    @classmethod
    def of(cls, runs: Frame) -> Arms:
        """The arms of a table with the columns arm, optimizer, flatness_weight and control.

        A weight keeps its optimiser's hue, lighter and dashed; controls are grey.
        """
        table = runs[["arm", "optimizer", "flatness_weight", "control"]].drop_duplicates("arm")
        hues = _hues(set(map(str, table["optimizer"])))
        order = {name: i for i, name in enumerate(hues)}
        table = table.sort_values(
            ["control", "optimizer", "flatness_weight"],
            key=lambda column: column.map(order) if column.name == "optimizer" else column,
        )
        colours, dark, dashes = [], [], []
        for optimizer, group in table[~table["control"]].groupby("optimizer", sort=False):
            pale = 0
            for weight in group["flatness_weight"]:
                pale += bool(weight)
                share = 0.55 * pale / (int((group["flatness_weight"] > 0).sum()) + 1)
                light_hue, dark_hue = hues[str(optimizer)]
                colours.append(_mix(light_hue, PAPER, share))
                dark.append(_mix(dark_hue, DARK[PAPER], share))
                dashes.append(DASHES[min(pale, 1) + (pale - 1) % 3 if pale else 0])
        controls = int(table["control"].sum())
        for number in range(controls):
            colours.append(_mix(CONTROL[0], INK, 0.6 * number / controls))
            dark.append(_mix(CONTROL[1], DARK[INK], 0.6 * number / controls))
            dashes.append(CONTROL_DASHES[number % len(CONTROL_DASHES)])
        return cls(tuple(table["arm"]), tuple(colours), tuple(dark), tuple(dashes))

    def colour(self) -> alt.Color:
        return (
            alt.Color("arm:N").scale(domain=list(self.names), range=list(self.colours)).legend(None)
        )

    def dash(self) -> alt.StrokeDash:
        return (
            alt.StrokeDash("arm:N")
            .scale(domain=list(self.names), range=list(self.dashes))
            .legend(None)
        )


def _hues(optimizers: Collection[str]) -> dict[str, tuple[str, str]]:
    """HUES, and after them those of optimisers that other trainers name.

    Such an optimiser gets the hue of ours of that name where no other one has it, else any hue that
    is free, else grey.
    """
    hues = dict(HUES)
    free = {name: hue for name, hue in HUES.items() if name not in optimizers}
    for other in sorted(set(optimizers) - set(HUES)):
        name = other.lower() if other.lower() in free else next(iter(free), None)
        hues[other] = CONTROL if name is None else free.pop(name)
    return hues


def _mix(colour: str, other: str, share: float) -> str:
    channels = zip(_channels(colour), _channels(other), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in channels)


def _channels(colour: str) -> list[int]:
    """Red, green and blue of "#rrggbb"."""
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
