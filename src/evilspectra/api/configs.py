"""The config of a run, from a file, a preset or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evilspectra.api.arguments import PathLike, Settings, name, settings_mapping
from evilspectra.api.layers import Layers, layers

if TYPE_CHECKING:
    from evilspectra.config.sections import Config


def load_config(
    source: PathLike | Mapping[str, Any] | Config, *, settings: Settings = ()
) -> Config:
    """Reads and checks the config of a run, defaults filled in.

    A config is a frozen tree of settings: `config.train.steps`, `config.optimizer.lr`. Bounds and
    defaults of all of them: `evilspectra config show`.

    Args:
        source: a YAML file, a preset's name, a mapping of settings (nested, or with dotted keys),
            or a config to change.
        settings: laid on top; a mapping, or assignments such as "train.steps=30".

    Raises:
        BadInput: no such file or preset, a sweep file, an unknown setting or an unusable value.

    >>> config = load_config({"optimizer": {"name": "lion"}}, settings=["train.steps=30"])
    >>> config.optimizer.lr, config.train.steps
    (5e-05, 30)
    """
    return config_of(source, layers(settings))


def config_of(source: PathLike | Mapping[str, Any] | Config, above: Layers) -> Config:
    """As `load_config`, of settings that are layers already."""
    from evilspectra.config.loading import build, load, named
    from evilspectra.config.sections import Config
    from evilspectra.config.yaml_files import assignments, merge

    if isinstance(source, Config):
        if not above:
            return source
        values = source.model_dump(mode="json")
    elif isinstance(source, Mapping):
        values = settings_mapping(source, "source")
    else:
        return load(name(source, "source"), above)
    return build(merge(named(values), assignments(above)), "the config")
