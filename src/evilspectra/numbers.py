"""Numbers as text: digits and signs, shares in per cent, p-values, intervals, counts, durations.

Text for a page has the signs of typography ("−0.5", "7.4 %", "–" for a missing number), text for a
terminal those of the keyboard ("-0.5", "7.4%", "-").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

#: A missing number on a page.
DASH = "–"
#: A format specification, or a function that writes a number.
Form: TypeAlias = str | Callable[[float], str]


class WithEnds(Protocol):
    """A number with the two ends of its interval, None where there is no interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def number(value: float | None, form: Form, none: str = "-") -> str:
    """A number in a form, or `none` for None.

    >>> number(0.0625, ".3f"), number(0.0625, ".1%"), number(-2, figure), number(None, ".3f")
    ('0.062', '6.2%', '−2', '-')
    >>> number(1234567, ","), number(None, ",", "unknown")
    ('1,234,567', 'unknown')
    """
    if value is None:
        return none
    return format(value, form) if isinstance(form, str) else form(value)


def minus(text: str) -> str:
    """A number's text with the sign that typography has for minus.

    >>> minus("-0.250")
    '−0.250'
    """
    return text.replace("-", "−")


def figure(value: float) -> str:
    """Three significant digits.

    >>> figure(-12.3456), figure(0.0), figure(1234.5)
    ('−12.3', '0', '1234')
    """
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "0" if float(text) == 0 else minus(text)


def signed_figure(value: float) -> str:
    """Three significant digits with a sign.

    >>> signed_figure(6.6), signed_figure(-3.5), signed_figure(0.0)
    ('+6.6', '−3.5', '0')
    """
    return ("+" if float(f"{value:.3g}") > 0 else "") + figure(value)


def signed(value: float, decimals: int = 3) -> str:
    """Decimals with a sign; zero has a plus.

    >>> signed(-0.0254), signed(-0.0001), signed(1.26, 1)
    ('−0.025', '+0.000', '+1.3')
    """
    return minus(f"{round(value, decimals) + 0.0:+.{decimals}f}")


def percent(share: float, decimals: int = 1, unit: str = " %") -> str:
    """A share in per cent.

    >>> percent(0.742), percent(0.742, 0), percent(0.742, unit="")
    ('74.2 %', '74 %', '74.2')
    """
    return f"{100 * share:.{decimals}f}{unit}"


def p_value(p: float | None, form: str = ".3g", none: str = "-") -> str:
    """A p-value, from 0.001 on in a form.

    >>> p_value(0.00001), p_value(0.04325), p_value(0.04325, ".3f"), p_value(None)
    ('< 0.001', '0.0432', '0.043', '-')
    """
    return "< 0.001" if p is not None and p < 0.001 else number(p, form, none)


def probability(p: float | None) -> str:
    """A p-value within a sentence.

    >>> probability(0.00001), probability(0.0432), probability(None)
    ('p < 0.001', 'p = 0.043', 'not tested')
    """
    if p is None:
        return "not tested"
    text = p_value(p, ".3f")
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def brackets(interval: WithEnds, form: Form) -> str:
    """The ends of an interval in brackets; empty where there is none.

    >>> from evilspectra.intervals import Estimate
    >>> brackets(Estimate(0.5, 0.25, 0.75), ".1%"), brackets(Estimate(0.5, None, None), ".1%")
    ('[25.0%, 75.0%]', '')
    """
    if interval.low is None or interval.high is None:
        return ""
    return f"[{number(interval.low, form)}, {number(interval.high, form)}]"


def bracketed(
    interval: WithEnds | None,
    form: Form,
    unit: str = "",
    none: str = "-",
) -> str:
    """A number, its unit, and its interval in brackets if there is one.

    >>> from evilspectra.intervals import Estimate
    >>> half = Estimate(0.5, 0.25, 0.75)
    >>> bracketed(half, "+.2f"), bracketed(half, percent), bracketed(half, figure, " nats")
    ('+0.50 [+0.25, +0.75]', '50.0 % [25.0 %, 75.0 %]', '0.5 nats [0.25, 0.75]')
    >>> bracketed(Estimate(0.5, None, None), ".1%"), bracketed(None, ".1%")
    ('50.0%', '-')
    """
    if interval is None:
        return none
    text = f"{number(interval.value, form)}{unit}"
    ends = brackets(interval, form)
    return f"{text} {ends}" if ends else text


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(3.2), clock(4000)
    ('0:03', '66:40')
    """
    total = round(seconds)
    return f"{total // 60}:{total % 60:02d}"


def duration(seconds: float) -> str:
    """Seconds, minutes and seconds, or hours and minutes.

    >>> duration(3.2), duration(75), duration(7300)
    ('3 s', '1:15 min', '2:01 h')
    """
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    return f"{clock(total)} min" if total < 3600 else f"{clock(total // 60)} h"
