"""The optimizer block of a config: one section per optimizer, chosen by its name."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Annotated, Any, Literal, Union

from pydantic import Field, PrivateAttr, create_model, field_validator

from evilspectra.config.own_class import ClassPath, Sha256, Version, plain_json, short_name
from evilspectra.config.section import Section

_Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[_Beta, _Beta], Field(description="Two numbers, each at least 0 and less than 1.")
]


class SGD(Section):
    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0, le=1e4)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="L2 penalty, added to the gradient."
    )


class Adam(Section):
    name: Literal["adam"] = "adam"
    lr: float = Field(default=2e-4, gt=0, le=1)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1)


class AdamW(Section):
    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=2e-4, gt=0, le=1)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: float = Field(
        default=0.01, ge=0, le=1, description="Decoupled; multiplied by lr."
    )


class Lion(Section):
    name: Literal["lion"] = "lion"
    lr: float = Field(default=5e-5, gt=0, le=1, description="About a tenth to a third of AdamW's.")
    betas: Betas = (0.9, 0.99)
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="Decoupled; multiplied by lr."
    )


class Muon(Section):
    name: Literal["muon"] = "muon"
    lr: float = Field(default=2e-4, gt=0, le=10)
    lr_rule: Literal["match_rms_adamw", "original", "spectral_unclamped"] = Field(
        default="match_rms_adamw",
        description=(
            "Factor on the orthogonalised update: 0.2·√max(rows, cols); √max(1, rows/cols); "
            "√(rows/cols)."
        ),
    )
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(
        default=5, ge=1, le=20, description="Newton-Schulz steps (3.4445, -4.7750, 2.0315)."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="Decoupled; multiplied by lr."
    )
    adamw_lr: float = Field(
        default=2e-4,
        gt=0,
        le=1,
        description=(
            "Learning rate of AdamW for what is not orthogonalised: 1-D trainables, and A "
            "under factors b_only."
        ),
    )
    orthogonalisation: Literal["newton_schulz", "polar_express", "exact"] = Field(
        default="newton_schulz",
        description=(
            "How near 1 the update's singular values come: 0.7 to 1.2 in ns_steps; 1 in eight "
            "steps; 1 by decomposition (slow)."
        ),
    )
    factors: Literal["both", "b_only"] = Field(
        default="both", description="b_only: B is orthogonalised, A moved by AdamW with adamw_lr."
    )


class SOAP(Section):
    name: Literal["soap"] = "soap"
    lr: float = Field(
        default=2e-4, gt=0, le=1, description="The first step only sets up the preconditioners."
    )
    betas: Betas = (0.95, 0.95)
    eps: float = Field(default=1e-8, gt=0, le=1)
    precondition_every: int = Field(
        default=10, ge=1, le=10**6, description="Steps between renewals of the r × r eigenbases."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled; multiplied by lr.")


class Scion(Section):
    name: Literal["scion"] = "scion"
    lr: float = Field(
        default=2e-4, gt=0, le=10, description="Times √(rows/columns) for every matrix."
    )
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the old momentum; the paper's alpha is 1 less this.",
    )


class LoraRite(Section):
    name: Literal["lora-rite"] = "lora-rite"
    lr: float = Field(default=2e-4, gt=0, le=1)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0, le=1)
    clip: float = Field(
        default=1.0,
        ge=0,
        le=1e9,
        description="Global norm of the gradients in the factors' own bases; 0: no clipping.",
    )
    skip: float = Field(
        default=1.0,
        ge=0,
        le=1e9,
        description=(
            "A factor whose gradient in that basis has a larger RMS gets none this step; 0: never."
        ),
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled; multiplied by lr.")


class Adafactor(Section):
    name: Literal["adafactor"] = "adafactor"
    lr: float = Field(
        default=2e-4,
        gt=0,
        le=1,
        description="As given: no relative step, no scaling by the parameter.",
    )
    momentum: float = Field(
        default=0.0, ge=0, lt=1, description="Of the update, in float32; 0: none."
    )
    decay: float = Field(
        default=0.8, gt=0, le=1, description="The second moment's rate at step t is 1 - t^-decay."
    )
    beta2_cap: float = Field(default=0.999, ge=0, lt=1, description="Most that rate grows to.")
    clip: float = Field(
        default=1.0, gt=0, le=1e9, description="Largest RMS of a parameter's update, before lr."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled; multiplied by lr.")


#: `class` is a keyword of Python, so a class statement cannot name this field.
_CLASS: Any = {
    "class": (
        ClassPath,
        Field(
            description=(
                "Import path of a subclass of torch.optim.Optimizer, package.module:Class; "
                "docs/extending.md."
            )
        ),
    )
}
_Named = create_model("_Named", __base__=Section, name=(Literal["custom"], "custom"), **_CLASS)


class Custom(_Named):
    """An optimiser of the user's own, by import path."""

    name: Literal["custom"] = "custom"
    lr: float = Field(gt=0, le=1e4, description="Passed to the class as lr; it has no default.")
    settings: dict[str, Any] = Field(
        default={}, description="Further arguments of the class, of JSON's types."
    )
    version: Version | None = Field(
        default=None,
        description=(
            "A text that you change when the class does: needed where it has no Python source."
        ),
    )
    sha256: Sha256 | None = Field(
        default=None,
        description=(
            "Of the class's source file, 64 hexadecimal digits; null: filled in when a run is "
            "planned. A class whose source has another is refused."
        ),
    )
    #: What named the class: files, or nothing for the command line and Python.
    _named_by: tuple[str, ...] = PrivateAttr(default=())

    @field_validator("settings")
    @classmethod
    def _plain(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if misplaced := {"params", "lr"} & settings.keys():
            raise ValueError(
                f"'{min(misplaced)}' is no setting of a class: the rate is optimizer.lr, and the "
                "parameters are passed by the training; remove it"
            )
        return plain_json(settings, "optimizer.settings")

    @property
    def path(self) -> str:
        """The import path of the class."""
        return getattr(self, "class")

    @property
    def class_name(self) -> str:
        """The class's name without its module."""
        return short_name(self.path)

    @property
    def label(self) -> str:
        """The name in tables: the class's, and six digits for its module, source and version.

        Two classes of one name have two labels, and so have two versions of one class.
        """
        facts = json.dumps([self.path, self.sha256, self.version])
        return f"{self.class_name}@{hashlib.sha256(facts.encode()).hexdigest()[:6]}"

    @property
    def named_by(self) -> tuple[str, ...]:
        """The files that name the class; none where the command line or Python does."""
        return self._named_by

    def with_files(self, files: tuple[str, ...]) -> Custom:
        """A copy that says which files name the class."""
        copy = self.model_copy()
        copy._named_by = tuple(map(os.path.abspath, files))
        return copy


OptimizerConfig = Annotated[
    Union[SGD, Adam, AdamW, Lion, Muon, SOAP, Scion, LoraRite, Adafactor, Custom],
    Field(discriminator="name"),
]
OPTIMIZERS = {
    kind.model_fields["name"].default: kind
    for kind in (SGD, Adam, AdamW, Lion, Muon, SOAP, Scion, LoraRite, Adafactor)
}
#: The section of every name that a config may give.
KINDS: dict[str, type[Section]] = {**OPTIMIZERS, "custom": Custom}


def label(optimizer: OptimizerConfig) -> str:
    """The name of an optimiser in tables: that of its section, or of the user's own class.

    >>> label(SGD())
    'sgd'
    """
    return optimizer.label if isinstance(optimizer, Custom) else optimizer.name


def short_label(optimizer: OptimizerConfig) -> str:
    """The name at the beginning of a run's id, which its digest tells apart from others.

    >>> short_label(Custom(**{"class": "torch.optim:NAdam", "lr": 1e-3}))
    'NAdam'
    """
    return optimizer.class_name if isinstance(optimizer, Custom) else optimizer.name
