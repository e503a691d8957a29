"""Sentences written from the numbers: what is shown, with its interval; "not shown" where the interval crosses; and where a result contradicts the paper, that it does.

A sentence is *shown* where its 95 % interval, simultaneous where several groups are compared, is clear of nothing-at-all. It *contradicts* the paper where
the opposite of what the paper reports is shown; a result that is not shown contradicts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evilspectra.analysis.estimate import Estimate
from evilspectra.analysis.outcome import LABELS
from evilspectra.analysis.result import Analysis, Sentence

#: The paper's order of misalignment, least first, and what the penalty did to mean alignment there (paper, abstract and section on the regulariser).
PAPER_ORDER = ("muon", "adam", "lion")
PAPER_PENALTY = {"adam": 6.6, "lion": 8.0, "muon": 2.1, "sgd": -3.5}
#: What the paper calls one thing for its comparisons: Adam and AdamW did alike.
_ALIKE = {"adamw": "adam"}
#: Outcomes on which the paper says something.
PAPER_OUTCOMES = ("mean_alignment", "misalignment")
_SPECTRAL = {
    "frobenius_nuclear": "the Frobenius/nuclear ratio",
    "condition_number": "ln of the condition number",
    "stable_rank": "stable rank",
}
_MOST = 6


def sentences(found: Analysis) -> tuple[Sentence, ...]:
    """All that the analysis says, most general first."""
    return tuple(
        one
        for part in (
            _design,
            _variance,
            _ranking,
            _loss,
            _equal_loss,
            _training,
            _flatness,
            _penalty,
            _seeds,
            _counting,
        )
        for one in part(found)
    )


# --- numbers --------------------------------------------------------------------------------------------------------


def figure(value: float) -> str:
    """Three significant digits, with the sign that typography has for minus.

    >>> figure(-12.3456), figure(0.0), figure(1234.5)
    ('−12.3', '0', '1234')
    """
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ("0" if float(text) == 0 else text).replace("-", "−")


def signed(value: float) -> str:
    """The same with a plus.

    >>> signed(6.6), signed(-3.5)
    ('+6.6', '−3.5')
    """
    return ("+" if float(f"{value:.3g}") > 0 else "") + figure(value)


def within(one: Estimate, plus: bool = False) -> str:
    """A number with its interval.

    >>> within(Estimate(0.5, 0.25, 0.75, "t"), plus=True)
    '+0.5 [+0.25, +0.75]'
    """
    say = signed if plus else figure
    return say(one.value) + (
        f" [{say(one.low)}, {say(one.high)}]"
        if one.low is not None and one.high is not None
        else f" (no interval: {one.note})"
    )


def percent(one: Estimate) -> str:
    """A share as a percentage with its interval.

    >>> percent(Estimate(0.742, 0.5, 0.81, "noncentral F"))
    '74.2 % [50.0 %, 81.0 %]'
    """
    ends = (
        f" [{one.low:.1%}, {one.high:.1%}]" if one.low is not None and one.high is not None else ""
    )
    return f"{one.value:.1%}{ends}".replace("%", " %")


def probability(p: float | None) -> str:
    """
    >>> probability(0.00001), probability(0.0432), probability(None)
    ('p < 0.001', 'p = 0.043', 'not tested')
    """
    return "not tested" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _name(found: Analysis) -> str:
    return LABELS.get(found.outcome, found.outcome).split(" (")[0] + (
        " on the logit scale" if found.scale == "logit" else ""
    )


def _like(name: str) -> str:
    return _ALIKE.get(name.lower(), name.lower())


# --- parts ----------------------------------------------------------------------------------------------------------


def _design(found: Analysis) -> Iterator[Sentence]:
    if found.factors:
        yield Sentence("design", f"{found.design.sentence}.")
    if found.left_out:
        yield Sentence(
            "design",
            f"Left out: {'; '.join(f'{count} {reason}' for reason, count in found.left_out.items())}.",
        )
    for one in found.variance.confounded if found.variance else found.design.confounded:
        yield Sentence("design", f"{one.sentence[0].upper()}{one.sentence[1:]}.")


def _variance(found: Analysis) -> Iterator[Sentence]:
    if found.variance is None:
        yield Sentence(
            "variance",
            f"What goes with {_name(found)} cannot be said: {found.reasons['variance']}.",
        )
        return
    for one in found.variance.type2:
        test = (
            f"F({one.df}, {found.variance.residual_df}) = {figure(one.f)}, {probability(one.p)}"
            if one.p is not None
            else "not tested"
        )
        by_permutation = (
            f", by permutation {probability(one.permutation)}"
            if one.permutation is not None
            else ""
        )
        if one.eta.low is None:
            yield Sentence(
                "variance",
                f"The share of {one.term} in the variance of {_name(found)} cannot be said: {one.eta.note}.",
                False,
            )
        elif one.eta.low > 0:
            which = (
                "the interaction"
                if "×" in one.term and "+" not in one.term
                else "what is confounded,"
                if "+" in one.term
                else "the factor"
            )
            size = (
                found.outcome in PAPER_OUTCOMES
                and one.term in ("base", "model.base")
                and "optimizer" not in found.factors
                and tuple(map(_like, found.levels.get("optimizer", ()))) == ("adam",)
            )
            against = (
                "; this contradicts the paper, where size and family mattered little under Adam"
                if size
                else ""
            )
            yield Sentence(
                "variance",
                f"{_capital(which)} {one.term} goes with {percent(one.eta)} of the variance of {_name(found)} that the other terms leave (partial η², {test}{by_permutation}){against}.",
                True,
                bool(against),
            )
        else:
            yield Sentence(
                "variance",
                f"{'The interaction' if '×' in one.term else 'The factor'} {one.term} is not shown to go with any of the variance of {_name(found)}: partial η² {percent(one.eta)}, {test}{by_permutation}.",
                False,
            )


def _ranking(found: Analysis) -> Iterator[Sentence]:
    ranking = found.stability.ranking
    if ranking is None:
        return
    order = ", ".join(
        f"{_level(ranking.factor, one.group)} {figure(one.mean.value)} (rank {one.low if one.low == one.high else f'{one.low} to {one.high}'})"
        for one in ranking.groups
    )
    direction = {
        1: "highest first, which is best",
        -1: "lowest first, which is best",
        0: "highest first",
    }[ranking.better]
    pairs = ranking.differences
    clear = sum(one.clear_of(0.0) for one in pairs.values())
    verdict = (
        "no two are shown to differ"
        if not clear
        else f"{clear} of {len(pairs)} pairs are shown to differ"
    )
    yield Sentence(
        "ranking",
        f"By {_name(found)}, {direction}: {order}; {verdict} (95 % for all pairs at once).",
        bool(clear),
    )
    if ranking.factor == "optimizer" and found.outcome in PAPER_OUTCOMES:
        yield from _against_order(found)


def _level(factor: str, group: str) -> str:
    """A level by its name, a number with the factor's before it.

    >>> _level("optimizer", "muon"), _level("flatness_weight", "0.3")
    ('muon', 'flatness_weight = 0.3:')
    """
    return (
        f"{factor} = {group}:"
        if group.replace(".", "", 1).replace("e-", "", 1).isdigit()
        else group
    )


def _against_order(found: Analysis) -> Iterator[Sentence]:
    assert found.stability.ranking is not None
    for (first, second), one in found.stability.ranking.differences.items():
        places = [_like(name) for name in (first, second)]
        if not set(places) <= set(PAPER_ORDER) or places[0] == places[1]:
            continue
        better, worse = (
            (first, second)
            if PAPER_ORDER.index(places[0]) < PAPER_ORDER.index(places[1])
            else (second, first)
        )
        ours = (one.value if better == first else -one.value) * found.better
        text = f"{first} − {second}: {within(one, plus=True)}"
        if not one.clear_of(0.0):
            yield Sentence(
                "ranking",
                f"That {better} stays more aligned than {worse}, as in the paper, is not shown here ({text}).",
                False,
            )
        elif ours > 0:
            yield Sentence(
                "ranking",
                f"As in the paper, {better} stays more aligned than {worse} ({text}).",
                True,
            )
        else:
            yield Sentence(
                "ranking",
                f"This contradicts the paper: {worse} stays more aligned than {better} here ({text}); the paper has {better} more aligned.",
                True,
                True,
            )


def _loss(found: Analysis) -> Iterator[Sentence]:
    fit = found.loss_fit
    if fit is None:
        if "loss" in found.reasons:
            yield Sentence(
                "loss",
                f"How {_name(found)} goes with the loss cannot be said: {found.reasons['loss']}.",
            )
        return
    lines = ", ".join(
        f"{one.group} {'none' if one.r2.value != one.r2.value else format(one.r2.value, '.2f')}"
        for one in fit.lines
    )
    adjusted = (
        ""
        if fit.separate_adjusted is None or fit.common_adjusted is None
        else f"; stratified, adjusted: {fit.separate_adjusted:.2f} with separate slopes, {fit.common_adjusted:.2f} with a common slope"
    )
    yield Sentence(
        "loss",
        f"R² of {_name(found)} on ln(loss): pooled {within(fit.pooled.r2)}; within {fit.group} {lines}{adjusted}.",
    )
    slope = fit.common_slope
    claims = found.outcome in PAPER_OUTCOMES
    if not slope.clear_of(0.0):
        yield Sentence(
            "loss",
            f"Within {fit.group}, that {_name(found)} changes with the loss is not shown: slope {within(slope, plus=True)} per unit of ln(loss).",
            False,
        )
    else:
        against = claims and slope.value * found.better < 0
        tail = (
            "; this contradicts the paper, where a lower loss goes with less alignment"
            if against
            else ", as in the paper"
            if claims
            else ""
        )
        yield Sentence(
            "loss",
            f"Within {fit.group}, {_name(found)} changes by {within(slope, plus=True)} per unit of ln(loss){tail}.",
            True,
            against,
        )
    for one, equal, unequal in (
        (fit.slopes_equal, "that the slopes differ", "The slopes differ"),
        (
            fit.intercepts_equal,
            "that the lines differ at equal loss",
            "At equal slopes the lines differ",
        ),
    ):
        if one.p is not None and one.f is not None:
            test = f"F({one.df}, {one.residual_df}) = {figure(one.f)}, {probability(one.p)}"
            yield Sentence(
                "loss",
                f"{unequal} between levels of {fit.group} ({test})."
                if one.p < 0.05
                else f"{_capital(equal)} between levels of {fit.group} is not shown ({test}).",
                one.p < 0.05,
            )
    given = f"{fit.group} given the loss {percent(fit.given_loss)}, the loss given {fit.group} {percent(fit.given_group)}"
    known = fit.given_loss.low is not None and fit.given_loss.low > 0
    yield Sentence(
        "loss",
        f"Partial R²: {given}; that {fit.group} says something beyond the loss is {'shown' if known else 'not shown'}.",
        known,
    )


def _equal_loss(found: Analysis) -> Iterator[Sentence]:
    if found.loss_fit is None:
        return
    one = found.loss_fit.equal_loss
    if one.reason:
        yield Sentence("equal loss", f"{_capital(one.reason)}.")
    if one.loss is not None:
        means = ", ".join(
            f"{name} {within(mean)}"
            for name, mean in sorted(
                one.means.items(), key=lambda item: -item[1].value * (found.better or 1)
            )
        )
        yield Sentence("equal loss", f"At a loss of {figure(one.loss)}: {means}.")
    for text, pairs in (("by fit", one.differences), ("by matched pairs", one.matched)):
        clear = [
            pair
            for pair in pairs
            if pair.difference.clear_of(0.0) and (pair.p is None or pair.p < 0.05)
        ]
        said = "; ".join(
            f"{pair.first} − {pair.second} {within(pair.difference, plus=True)}"
            + (f" ({pair.pairs} pairs)" if pair.pairs else "")
            for pair in clear[:_MOST]
        )
        more = f"; and {len(clear) - _MOST} more" if len(clear) > _MOST else ""
        if pairs:
            yield Sentence(
                "equal loss",
                f"At equal loss, {text}, {len(clear)} of {len(pairs)} pairs are shown to differ{': ' + said + more if said else ''}.",
                bool(clear),
            )


def _training(found: Analysis) -> Iterator[Sentence]:
    path = found.training
    if path is None:
        if "training" in found.reasons:
            yield Sentence(
                "training",
                f"Whether {found.group or 'a factor'} says more than the loss in the course of training cannot be said: {found.reasons['training']}.",
            )
        return
    last = path.moments[-1]
    claims = found.outcome in PAPER_OUTCOMES and path.group == "optimizer"
    both = f"partial R² {percent(last.given_loss)} of {path.group} given the loss against {percent(last.given_group)} of the loss given {path.group}"
    numbers = f"{both}; ln ratio of what the loss alone and {path.group} alone leave {within(last.advantage, plus=True)}"
    if not last.advantage.clear_of(0.0):
        yield Sentence(
            "training",
            f"That {path.group} says more than the loss at the last checkpoint (step {last.step:g}) is not shown: {numbers}.",
            False,
        )
    elif last.advantage.value > 0:
        yield Sentence(
            "training",
            f"At the last checkpoint (step {last.step:g}) {path.group} says more than the loss{', as the paper has it' if claims else ''}: {numbers}.",
            True,
        )
    else:
        against = (
            "; this contradicts the paper, where after enough training the optimiser says more"
            if claims
            else ""
        )
        yield Sentence(
            "training",
            f"At the last checkpoint (step {last.step:g}) the loss says more than {path.group}: {numbers}{against}.",
            True,
            claims,
        )
    if path.change is not None:
        ends = f"from step {path.moments[0].step:g} to {last.step:g} that ratio changed by {within(path.change, plus=True)}"
        clear = path.change.clear_of(0.0)
        yield Sentence(
            "training",
            f"{_capital(ends)}: {('a move towards ' + path.group if path.change.value > 0 else 'a move towards the loss') if clear else 'a change is not shown'}.",
            clear,
        )
    if path.warning:
        yield Sentence("training", f"Caution: {path.warning}.")


def _flatness(found: Analysis) -> Iterator[Sentence]:
    if found.mediation is None:
        return
    for one in found.mediation.beyond:
        given = " and ".join(one.given)
        if one.partial.low is None:
            yield Sentence(
                "flatness",
                f"Whether {_plain(one.measure)} says something of {_name(found)} beyond {given} cannot be said: {one.partial.note}.",
                False,
            )
        elif not one.partial.clear_of(0.0):
            yield Sentence(
                "flatness",
                f"Beyond {given}, that {_plain(one.measure)} goes with {_name(found)} is not shown: partial correlation {within(one.partial, plus=True)} (alone {within(one.simple, plus=True)}).",
                False,
            )
        else:
            flatter = 1 if one.measure in ("stable_rank", "spectral_entropy") else -1
            safer = one.partial.value * flatter * found.better > 0
            against = found.outcome in PAPER_OUTCOMES and not safer
            tail = (
                ""
                if not found.better
                else ": the flatter, the safer"
                if safer
                else ": the flatter, the less safe"
                + ("; this contradicts the paper's reading of flatness" if against else "")
            )
            numbers = f"partial correlation {within(one.partial, plus=True)} (alone {within(one.simple, plus=True)})"
            yield Sentence(
                "flatness",
                f"Beyond {given}, {_plain(one.measure)} goes with {_name(found)}: {numbers}{tail}. This shows no cause.",
                True,
                against,
            )


def _penalty(found: Analysis) -> Iterator[Sentence]:
    if found.mediation is None or not found.mediation.effects:
        if found.mediation and "flatness penalty" in found.mediation.reasons:
            yield Sentence(
                "penalty",
                f"What the flatness penalty does cannot be said: {found.mediation.reasons['flatness penalty']}.",
            )
        return
    for one in found.mediation.effects:
        if one.measure not in (found.outcome, "train_loss", "capability"):
            continue
        where = f"under {one.optimizer}" + (
            f" with λ = {one.weight:g}" if one.weight is not None else " over all λ"
        )
        what, number = (
            _plain(one.measure),
            f"{within(one.difference, plus=True)}, {one.pairs} pair{'' if one.pairs == 1 else 's'}",
        )
        if not one.difference.clear_of(0.0):
            yield Sentence(
                "penalty",
                f"That the penalty changes {what} {where} is not shown ({number}).",
                False,
            )
            continue
        paper = PAPER_PENALTY.get(_like(one.optimizer)) if one.measure in PAPER_OUTCOMES else None
        safer = one.difference.value * (-1 if one.measure == "misalignment" else 1)
        against = paper is not None and paper * safer < 0
        tail = (
            f"; this contradicts the paper, which has {signed(paper)} points of mean alignment there"
            if against and paper is not None
            else f"; the paper has {signed(paper)} points of mean alignment there"
            if paper is not None
            else ""
        )
        yield Sentence(
            "penalty", f"The penalty changes {what} {where} by {number}{tail}.", True, against
        )
    for measure, (f, p) in found.mediation.heterogeneity.items():
        if measure == found.outcome:
            shown = p is not None and p < 0.05
            yield Sentence(
                "penalty",
                f"That its effect on {_plain(measure)} differs between optimisers is {'shown' if shown else 'not shown'} (F = {figure(f)}, {probability(p)}).",
                shown,
            )


def _seeds(found: Analysis) -> Iterator[Sentence]:
    stable, parts = found.stability, found.components
    if parts and parts.generation_var:
        beyond = (
            f"; between training seeds beyond that {within(parts.seed_var)}"
            if parts.seed_var
            else ""
        )
        yield Sentence(
            "seeds",
            f"Between generation seeds of one run, {_name(found)} has a variance of {within(parts.generation_var)}{beyond}.",
        )
    if parts and parts.judge:
        eta = parts.judge.eta
        yield Sentence(
            "seeds",
            f"The judge goes with {percent(eta)} of the variance of {_name(found)} that the run leaves (partial η²).",
            eta.low is not None and eta.low > 0,
        )
    if stable.pooled is None:
        yield Sentence(
            "seeds",
            f"Whether differences survive the seed cannot be said: {stable.reasons['seeds']}.",
        )
        return
    portion = found.components.seed_share if found.components else None
    also = f", {percent(portion)} of all variance" if portion else ""
    yield Sentence(
        "seeds",
        f"Between seeds of one cell, {_name(found)} has a standard deviation of {within(stable.pooled)}{also}.",
    )
    for one in stable.needed[:4]:
        at = f" at {one.answers} answers a run" if one.answers else ""
        yield Sentence(
            "seeds",
            f"A difference of {figure(one.d)} shows with 80 % power {f'from {one.seeds} seeds a group' if one.seeds else 'not below 200 seeds a group'}{at}.",
        )


def _counting(found: Analysis) -> Iterator[Sentence]:
    variants = found.stability.variants
    if not variants:
        return
    orders = {one.order for one in variants}
    shown = set.intersection(*(set(one.shown) for one in variants))
    ever = set.union(*(set(one.shown) for one in variants))
    reverse = [pair for pair in ever if pair[::-1] in ever]
    same = (
        f"the order {' > '.join(variants[0].order)} is the same in all"
        if len(orders) == 1
        else f"the order is not the same: {'; '.join(' > '.join(one) for one in sorted(orders)[:3])}"
    )
    yield Sentence(
        "counting",
        f"Counted in {len(variants)} ways (judge and definition), {same}; {len(shown)} of the {len(ever)} differences that any way shows are shown by all.",
        len(orders) == 1,
    )
    if reverse:
        yield Sentence(
            "counting",
            f"Two ways of counting show opposite differences: {', '.join(f'{a} and {b}' for a, b in sorted(reverse)[:3])}.",
            True,
        )
    etas = sorted(one.eta.value for one in variants)
    yield Sentence(
        "counting",
        f"The share of {found.group} is {etas[0]:.1%} to {etas[-1]:.1%} over the ways of counting.".replace(
            "%", " %"
        ),
    )


def _plain(measure: str) -> str:
    return (LABELS | _SPECTRAL).get(measure, measure.replace("_", " ")).split(" (")[0]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def paragraphs(found: Sequence[Sentence]) -> dict[str, list[str]]:
    """Topic → its sentences, topics in their order."""
    by_topic: dict[str, list[str]] = {}
    for one in found:
        by_topic.setdefault(one.topic, []).append(one.text)
    return by_topic
