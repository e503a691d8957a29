"""Construction of a judge from its settings; packages for a kind are imported only when needed."""

from __future__ import annotations

from collections.abc import Sequence

from evilspectra.config.judge import JudgeConfig
from evilspectra.judging.judge import Judge


def make_judge(settings: JudgeConfig, files: Sequence[str] = ()) -> Judge:
    """The judge that settings describe.

    A local model is located now, and loaded when it is first asked; so is a class of the user's
    own. `files`: the files that name the judge; none for a command line.

    Raises:
        BadInput: there is no such judge, or something that it needs is missing.
    """
    if settings.kind == "openai":
        from evilspectra.judging.openai import OpenAIJudge

        return OpenAIJudge(settings)
    if settings.kind == "scripted":
        from evilspectra.judging.scripted import read_script

        return read_script(settings.model)
    if settings.kind == "class":
        from evilspectra.judging.own import ClassJudge

        return ClassJudge(settings, files)
    from evilspectra.judging.local import LocalJudge

    return LocalJudge(settings)
