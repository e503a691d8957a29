"""The figures of the flatness penalty: pairs of runs with and without it, and its weight. No torch.

Every point is a run and carries its name, so that a click on it opens the run. Controls are left
out, because their data differ.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from evilspectra.reporting.figures.charts import MANY, TITLES, Figure, Panel, Tables
from evilspectra.reporting.figures.marks import capitalised, opacity, rounded
from evilspectra.reporting.figures.palette import Frame

#: The columns that the penalty may change: name, title, format.
EFFECTS = (
    ("train_loss", "Training loss, nats per token", ".3f"),
    ("capability", "Capability: share of right choices", ".2f"),
    ("stable_rank", "Stable rank", ".2f"),
)


def pairs(tables: Tables) -> Frame:
    """Finished runs with the penalty, each paired with the run that differs only in the penalty.

    Columns of the run have their names; those of its twin end in `_without`.
    """
    done = tables.runs[
        (tables.runs["status"] == "done")
        & ~tables.runs["control"].astype(bool)
        & tables.runs["twin"].notna()
    ]
    if tables.outcome is not None:
        done = done.assign(outcome=done[tables.outcome.name].astype(float))
    plain = done[done["flatness_weight"] == 0].drop_duplicates("twin")
    return done[done["flatness_weight"] > 0].merge(plain, on="twin", suffixes=("", "_without"))


def with_and_without(tables: Tables) -> Figure | None:
    """Every pair of runs that differ in the penalty alone, as a line from without to with."""
    twins = pairs(tables)
    if twins.empty:
        return None
    panels = []
    for name, title, form in _effects(tables):
        if name not in twins or twins[[name, f"{name}_without"]].dropna().empty:
            continue
        part = twins.dropna(subset=[name, f"{name}_without"])
        ends = [
            part.assign(
                side=side,
                value=part[column].astype(float),
                change=part[name].astype(float) - part[f"{name}_without"].astype(float),
            )
            for side, column in (("without", f"{name}_without"), ("with", name))
        ]
        columns = ["run", "run_without", "arm", "optimizer", "dataset", "seed"]
        columns += ["flatness_weight", "side", "value", "change"]
        frame = rounded(pd.concat(ends)[columns])
        x = alt.X(
            "side:N",
            sort=["without", "with"],
            title=None,
            scale=alt.Scale(domain=["without", "with"], padding=0.45),
            axis=alt.Axis(labelAngle=0, domain=False),
        )
        y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=_range(tables, name), nice=False))
        base = alt.Chart(frame).encode(x=x, y=y, color=tables.arms.colour())
        tips = [
            alt.Tooltip("run:N"),
            alt.Tooltip("run_without:N", title="twin without"),
            alt.Tooltip("flatness_weight:Q", title="weight λ", format="~g"),
            alt.Tooltip("value:Q", format=form),
            alt.Tooltip("change:Q", title="with − without", format="+.3f"),
        ]
        line = base.mark_line(strokeWidth=1 if len(part) > MANY else 2).encode(
            detail="run:N", opacity=opacity(0.75, 0.08)
        )
        dots = base.mark_circle(size=50).encode(opacity=opacity(1, 0.1), tooltip=tips)
        panels.append(Panel(title, alt.layer(line, dots), 260))
    if not panels:
        return None
    note = f" {tables.outcome.note}" if tables.outcome else ""
    caption = (
        f"{len(twins)} pair{'' if len(twins) == 1 else 's'} of runs that differ in the flatness"
        " penalty alone, each a line; scales span all finished runs. Whether the lines show an"
        f" effect is tested over the pairs, and stated in the text.{note}"
    )
    return Figure("penalty", TITLES["penalty"], caption, tuple(panels))


def by_weight(tables: Tables) -> Figure | None:
    """Outcome, loss, capability and stable rank by the weight λ of the penalty.

    One line per optimiser goes through the means.
    """
    done = tables.runs[(tables.runs["status"] == "done") & ~tables.runs["control"].astype(bool)]
    weights = done.groupby("optimizer")["flatness_weight"].nunique()
    done = done[done["optimizer"].isin(weights[weights >= 3].index)]
    if done.empty:
        return None
    if tables.outcome is not None:
        done = done.assign(outcome=done[tables.outcome.name].astype(float))
    first = {
        optimizer: next(name for name in tables.arms.names if name in set(group["arm"]))
        for optimizer, group in done.groupby("optimizer")
    }
    order = sorted(set(done["flatness_weight"]))
    names = [f"{weight:g}" for weight in order]
    panels = []
    for name, title, form in _effects(tables):
        if name not in done or done[name].dropna().empty:
            continue
        part = done.dropna(subset=[name])
        part = part.assign(
            value=part[name].astype(float),
            weight=part["flatness_weight"].map(lambda weight: f"{weight:g}"),
            own=part["arm"],
            arm=part["optimizer"].map(first),
        )
        columns = ["run", "arm", "own", "dataset", "seed", "optimizer", "weight", "value"]
        part = rounded(part[columns])
        x = alt.X(
            "weight:O",
            sort=names,
            title="weight λ of the penalty",
            scale=alt.Scale(domain=names),
            axis=alt.Axis(labelAngle=0),
        )
        y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, padding=14, nice=False))
        of_arms = part.groupby(["arm", "weight"], sort=False)["value"].mean().reset_index()
        means = alt.Chart(rounded(of_arms)).encode(x=x, y=y, color=tables.arms.colour())
        tips = [
            alt.Tooltip("run:N"),
            alt.Tooltip("own:N", title="arm"),
            alt.Tooltip("dataset:N", title="data"),
            alt.Tooltip("value:Q", format=form),
        ]
        dots = (
            alt.Chart(part)
            .mark_circle(size=40)
            .encode(x=x, y=y, color=tables.arms.colour(), opacity=opacity(0.6, 0.08), tooltip=tips)
        )
        lines = means.mark_line(strokeWidth=2).encode(opacity=opacity(1, 0.1))
        panels.append(Panel(title, alt.layer(lines, dots), 260))
    note = f" {tables.outcome.note}" if tables.outcome else ""
    caption = (
        "One dot per finished run, a line through each optimiser’s means, at the weights that were"
        " run (not to scale); 0 is without the penalty. Other settings may differ between the"
        f" weights: the pairs above differ in the penalty alone.{note}"
    )
    return Figure("weights", TITLES["weights"], caption, tuple(panels))


def _range(tables: Tables, name: str) -> list[float]:
    """From the lowest to the highest value over all finished runs.

    So a change is seen against the differences between runs.
    """
    column = tables.outcome.name if name == "outcome" and tables.outcome else name
    values = tables.runs.loc[tables.runs["status"] == "done", column].dropna().astype(float)
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - room, high + room]


def _effects(tables: Tables) -> list[tuple[str, str, str]]:
    """EFFECTS with the outcome's title and format; without an outcome the others."""
    if tables.outcome is None:
        return list(EFFECTS)
    outcome = ("outcome", capitalised(tables.outcome.title), tables.outcome.form)
    return [outcome, *EFFECTS]
