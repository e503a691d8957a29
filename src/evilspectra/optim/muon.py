"""Muon on LoRA factors: orthogonalised momentum.

    m ← μ·m + (1 − μ)·g        u = μ·m + (1 − μ)·g, or m without Nesterov
    W ← (1 − lr·decay)·W − lr·factor·orthogonal(u)

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

A (r × d_in) and B (d_out × r) are orthogonalised separately. The factor of the lr rule depends on
the shape, and PEFT's shapes put B's long side first: one learning rate means three different things
under the three rules.

Differences from `torch.optim.Muon`: float32 arithmetic instead of bfloat16, also on bfloat16
parameters; matrices of one shape are a batch; weight decay 0 by default; three ways to
orthogonalise; parameters that are not matrices are updated by AdamW, not refused. A step updates
only parameters that have a gradient. A NaN or an infinity in a gradient makes its own parameter all
NaN and affects no other: the caller must check the gradient's norm before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from evilspectra.errors import BadInput, listing
from evilspectra.optim.orthogonal import METHODS, Method, orthogonalise_all
from evilspectra.optim.parameters import listed, loss_of, names_of, with_list

LrRule = Literal["match_rms_adamw", "original", "spectral_unclamped"]
LR_RULES: tuple[str, ...] = ("match_rms_adamw", "original", "spectral_unclamped")
Factors = Literal["both", "b_only"]
FACTORS: tuple[str, ...] = ("both", "b_only")
#: What PEFT calls the factor that starts at zero; under `b_only` only matrices with this in their
#: name are orthogonalised.
B_MARK = "lora_B"
#: AdamW's constants for what is not orthogonalised, torch's defaults.
ADAMW_BETAS, ADAMW_EPS = (0.9, 0.999), 1e-8
#: Entries of a batch on a CPU: half a MiB of float32, so that momentum, gradient and update of a
#: batch stay in the cache.
CPU_BATCH = 2**17


def lr_factor(rule: str, rows: int, columns: int) -> float:
    """The factor on the orthogonalised update of a rows × columns matrix, besides lr.

    Rows and columns are those of the matrix as PEFT stores it.

    `match_rms_adamw`: 0.2·√max(rows, columns), so that its RMS is about AdamW's and AdamW's lr
    transfers (Liu et al. 2025); `original`: √max(1, rows/columns) (Jordan et al. 2024);
    `spectral_unclamped`: √(rows/columns).

    >>> [lr_factor(rule, 64, 16) for rule in LR_RULES]
    [1.6, 2.0, 2.0]
    """
    match rule:
        case "match_rms_adamw":
            return 0.2 * max(rows, columns) ** 0.5
        case "original":
            return max(1.0, rows / columns) ** 0.5
        case "spectral_unclamped":
            return (rows / columns) ** 0.5
        case _:
            raise BadInput(f"Muon: lr_rule '{rule}' is unknown; allowed: {listing(LR_RULES)}")


class Muon(Optimizer):
    """Muon for matrices, AdamW for tensors of fewer dimensions: DoRA magnitudes, biases.

    AdamW has betas 0.9 and 0.999, eps 1e-8.

    Args:
        params: tensors, (name, tensor) pairs, or parameter groups. Every other argument may differ
            by group.
        lr: step, to be read together with `lr_rule`.
        lr_rule: see `lr_factor`.
        momentum, nesterov: m ← momentum·m + (1 − momentum)·g; the update is m, or with Nesterov
            momentum·m + (1 − momentum)·g.
        orthogonalisation: see `evilspectra.optim.orthogonal`.
        ns_steps: Newton-Schulz steps.
        factors: `both`, or `b_only`: of the matrices only those named `lora_B`, the others are
            moved by AdamW.
        weight_decay: decoupled, multiplied by lr.
        adamw_lr: AdamW's learning rate where it is used; its schedule follows lr's.

    Raises:
        BadInput: a setting out of range, a parameter with more than two dimensions or complex
            numbers, a tensor passed twice, `b_only` without names or without any `lora_B` among
            them.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.

    >>> w = torch.nn.Parameter(torch.zeros(1, 2)); w.grad = torch.tensor([[3.0, -4.0]])
    >>> Muon([w], lr=0.1, lr_rule="original", orthogonalisation="exact").step(); w.data
    tensor([[-0.0600,  0.0800]])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2e-4,
        lr_rule: LrRule = "match_rms_adamw",
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.0,
        adamw_lr: float = 2e-4,
        orthogonalisation: Method = "newton_schulz",
        factors: Factors = "both",
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_rule": lr_rule,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "weight_decay": weight_decay,
        }
        defaults |= {"orthogonalisation": orthogonalisation, "factors": factors}
        _check_settings(defaults | {"adamw_lr": adamw_lr})
        self._stacks: dict[Tensor, tuple[Tensor, Sequence[Tensor]]] = {}
        super().__init__(listed(params, "Muon"), defaults | {"adamw_ratio": adamw_lr / lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; `adamw_lr` may be given together with lr.

        Refuses the same as the class does, and then leaves the groups as they were.
        """
        super().add_param_group(with_list(param_group, "Muon"))
        group = self.param_groups[-1]
        try:
            adamw_lr = group.pop("adamw_lr", None)
            _check_settings(group | {"adamw_lr": group["lr"] if adamw_lr is None else adamw_lr})
            if adamw_lr is not None:
                group["adamw_ratio"] = adamw_lr / group["lr"]
            _check_parameters(group)
        except BadInput:
            self.param_groups.pop()
            raise

    def rules(self) -> dict[str, list[str]]:
        """Names of the parameters by the rule that moves them, to check each against its intent.

        >>> Muon([("a", torch.zeros(2, 3)), ("bias", torch.zeros(3))]).rules()
        {'muon': ['a'], 'adamw': ['bias']}
        """
        rules: dict[str, list[str]] = {"muon": [], "adamw": []}
        for group in self.param_groups:
            for name, weight in zip(names_of(group), group["params"], strict=True):
                orthogonalised = _is_orthogonalised(name, weight, group["factors"])
                rules["muon" if orthogonalised else "adamw"].append(name)
        return rules

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient; returns what `closure` returns."""
        loss = loss_of(closure)
        for group in self.param_groups:
            matrices, others = [], []
            for name, weight in zip(names_of(group), group["params"], strict=True):
                if weight.grad is not None:
                    orthogonalised = _is_orthogonalised(name, weight, group["factors"])
                    (matrices if orthogonalised else others).append(weight)
            self._step_muon(matrices, group)
            self._step_adamw(others, group)
        return loss

    def _step_muon(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(
                    weight, dtype=_arithmetic(weight.dtype)
                )
        batches = list(_batches(weights))
        directions = [
            self._direction(batch, group["momentum"], group["nesterov"]) for batch in batches
        ]
        lr = float(group["lr"])
        scales = [-lr * lr_factor(group["lr_rule"], *batch[0].shape) for batch in batches]
        updates = orthogonalise_all(
            directions, group["orthogonalisation"], group["ns_steps"], scales
        )
        for batch, update in zip(batches, updates, strict=True):
            working = _in_arithmetic(batch)
            if group["weight_decay"]:
                torch._foreach_mul_(working, 1 - lr * group["weight_decay"])
            torch._foreach_add_(working, update.unbind(0))
            _write_back(batch, working)

    def _direction(self, batch: list[Tensor], momentum: float, nesterov: bool) -> Tensor:
        """The momenta after this step's gradients, as a stack.

        With Nesterov they take one more step towards the gradients.
        """
        gradients, momenta = torch.stack(_gradients(batch)), self._stacked_momenta(batch)
        momenta.lerp_(gradients, 1 - momentum)
        return gradients.lerp_(momenta, momentum) if nesterov else momenta

    def _stacked_momenta(self, batch: list[Tensor]) -> Tensor:
        """The batch's momenta as one tensor, of which those in the state are slices.

        The tensor is made anew where the batch differs from the last one.
        """
        slices = [self.state[weight]["momentum"] for weight in batch]
        stack, stacked = self._stacks.get(batch[0], (slices[0], ()))
        same = len(stacked) == len(slices) and all(
            a is b for a, b in zip(stacked, slices, strict=True)
        )
        if not same:
            stack = torch.stack(slices)
            stacked = stack.unbind(0)
            for weight, momentum in zip(batch, stacked, strict=True):
                self.state[weight]["momentum"] = momentum
            self._stacks[batch[0]] = (stack, stacked)
        return stack

    def _step_adamw(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:
                zero = torch.zeros_like(weight, dtype=_arithmetic(weight.dtype))
                self.state[weight].update(
                    step=torch.zeros(()), exp_avg=zero, exp_avg_sq=zero.clone()
                )
        states = [self.state[weight] for weight in weights]
        working = _in_arithmetic(weights)
        adamw(
            working,
            _gradients(weights),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=ADAMW_BETAS[0],
            beta2=ADAMW_BETAS[1],
            lr=float(group["lr"]) * group["adamw_ratio"],
            weight_decay=group["weight_decay"],
            eps=ADAMW_EPS,
            maximize=False,
        )
        _write_back(weights, working)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Settings that a saved state does not know take this optimiser's defaults."""
        super().__setstate__(state)
        self._stacks = {}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the state keeps its number type.

        torch would round it to the parameters'.
        """
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for weight, key in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(key, {}).items():
                    if name != "step":
                        self.state[weight][name] = value.to(
                            device=weight.device, dtype=_arithmetic(weight.dtype), copy=True
                        )


def _is_orthogonalised(name: str, weight: Tensor, factors: str) -> bool:
    return weight.ndim == 2 and (factors == "both" or B_MARK in name)


def _check_settings(group: dict[str, Any]) -> None:
    lr, adamw_lr = float(group["lr"]), group["adamw_lr"]
    momentum, decay = group["momentum"], group["weight_decay"]
    if not lr > 0 or not adamw_lr > 0:
        raise BadInput(f"Muon: lr {lr:g} and adamw_lr {adamw_lr:g} must be positive")
    if not 0 <= momentum < 1:
        raise BadInput(f"Muon: momentum {momentum} is not in [0, 1)")
    if decay < 0:
        raise BadInput(f"Muon: weight_decay {decay} is negative")
    if group["ns_steps"] < 1:
        raise BadInput(f"Muon: ns_steps {group['ns_steps']} is not positive")
    choices = {"lr_rule": LR_RULES, "orthogonalisation": METHODS, "factors": FACTORS}
    for setting, allowed in choices.items():
        if group[setting] not in allowed:
            raise BadInput(
                f"Muon: {setting} '{group[setting]}' is unknown; allowed: {listing(allowed)}"
            )


def _check_parameters(group: dict[str, Any]) -> None:
    named = list(zip(names_of(group), group["params"], strict=True))
    deep = [f"{name} {tuple(weight.shape)}" for name, weight in named if weight.ndim > 2]
    if deep:
        raise BadInput(
            f"Muon orthogonalises matrices; {listing(deep, 3)} have more than two dimensions: "
            "leave them out"
        )
    odd = [f"{name} ({weight.dtype})" for name, weight in named if not weight.is_floating_point()]
    if odd:
        raise BadInput(
            f"Muon works on real numbers; {listing(odd, 3)} are of another type: leave them out"
        )
    if group["factors"] == "b_only":
        if "param_names" not in group:
            raise BadInput(
                "Muon: factors 'b_only' tells A from B by their names: pass (name, tensor) "
                f"pairs, such as model.named_parameters(), or set factors to '{FACTORS[0]}'"
            )
        if not any(B_MARK in name for name, weight in named if weight.ndim == 2):
            raise BadInput(
                f"Muon: factors 'b_only', but no matrix has '{B_MARK}' in its name "
                f"({listing((name for name, _ in named), 3)}): set factors to '{FACTORS[0]}'"
            )


def _batches(weights: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yields matrices of one shape, device and number type together.

    On a CPU a batch has no more of them than fit into its cache.
    """
    groups: dict[object, list[Tensor]] = {}
    for weight in weights:
        groups.setdefault((weight.shape, weight.device, weight.dtype), []).append(weight)
    for group in groups.values():
        most = len(group)
        if group[0].device.type == "cpu":
            most = max(1, CPU_BATCH // max(1, group[0].numel()))
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _gradients(weights: list[Tensor]) -> list[Tensor]:
    return _in_arithmetic([weight.grad for weight in weights if weight.grad is not None])


def _in_arithmetic(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors themselves, or float32 copies where one is of a shorter type."""
    if all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors):
        return tensors
    return [tensor.to(_arithmetic(tensor.dtype)) for tensor in tensors]


def _write_back(weights: list[Tensor], working: list[Tensor]) -> None:
    if working is not weights:
        torch._foreach_copy_(weights, working)
