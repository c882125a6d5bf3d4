"""Dense layers whose weights are rounded to a few bits after training, and the tensors that serve a backbone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.coding.bitstring import Layout, pack, read

SHARES = tuple(float(share) for share in np.linspace(0.3, 1.0, 29))  # of a row's largest weight, tried as largest level


class Dense(nn.Linear):
    """A linear layer: (..., I) -> (..., O). After `round_to`, its weights are codes of a few bits.

    A weight is its code times the scale of its output; codes go from -top to top, top = 2**(bits - 1) - 1. Rounded
    weights can be trained on: the forward pass rounds them, and the gradient passes through (straight-through
    estimator, Bengio et al. 2013). `finish` then settles them.

    Attributes:
        bits: of a code; 0 before `round_to`.
        scale: (O,) float16.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        self.bits = 0
        self.register_buffer("scale", torch.zeros(outputs, dtype=torch.float16))

    scale: Tensor

    @torch.no_grad()
    def round_to(self, bits: int) -> None:
        """Round the weights to codes of ``bits`` bits. The scale of an output has the smallest squared error.

        Raises:
            ValueError: for fewer than 2 bits, or more than 8.
        """
        if not 2 <= bits <= 8:
            raise ValueError(f"dense weights must have 2 to 8 bits, got {bits}")
        self.bits = bits
        largest = self.weight.abs().amax(1) / (2 ** (bits - 1) - 1)
        least = torch.full_like(largest, torch.inf)
        for share in SHARES:
            scale = (share * largest).half()
            error = (self.weight - self._codes(scale) * scale.float()[:, None]).square().sum(1)
            self.scale.copy_(torch.where(error < least, scale, self.scale))
            least = torch.minimum(error, least)
        self.finish()

    @torch.no_grad()
    def finish(self) -> None:
        """Settle rounded weights on their levels."""
        if self.bits:
            self.weight.copy_(self._codes(self.scale) * self.scale.float()[:, None])

    def codes(self) -> Tensor:
        """(O, I) the codes of rounded weights, whole numbers in float32."""
        return self._codes(self.scale)

    def _codes(self, scale: Tensor) -> Tensor:
        top = 2 ** (self.bits - 1) - 1
        steps = torch.where(scale > 0, scale.float(), torch.inf)[:, None]
        return (self.weight.detach() / steps).round_().clamp_(-top, top)

    def forward(self, inputs: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.bits:
            weight = weight + (self.codes() * self.scale.float()[:, None] - weight.detach())
        return nn.functional.linear(inputs, weight, self.bias)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.bits, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.bits = int(state)


def round_dense(backbone: nn.Module, bits: int) -> None:
    """Round the weights of all dense layers of a backbone; see `Dense.round_to`.

    Raises:
        ValueError: if one of them is a plain `torch.nn.Linear`.
    """
    for name, module in backbone.named_modules():
        if isinstance(module, Dense):
            module.round_to(bits)
        elif isinstance(module, nn.Linear):
            raise ValueError(
                f"retrain.dense_bits: layer {name!r} of the backbone is a torch.nn.Linear, which cannot be rounded; "
                "make it a pipeline.models.dense.Dense"
            )


def settle(backbone: nn.Module, bits: int | None = None) -> None:
    """Settle the dense weights of a backbone on what is served.

    Args:
        backbone: trained.
        bits: to round them for the first time; None to settle those that are rounded already.

    Raises:
        ValueError: as `round_dense`.
    """
    if bits is not None:
        round_dense(backbone, bits)
    for module in backbone.modules():
        if isinstance(module, Dense):
            module.finish()


def packed(backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors that serve a trained backbone.

    Rounded weights are packed codes. A BatchNorm behind a rounded layer is folded into its scales and its bias, so it
    takes no bytes of its own. All else is kept as it is.
    """
    kept: dict[str, Tensor] = {}
    done = set()
    for name, layer, norm_name, norm in _rounded(backbone):
        scale, bias = layer.scale.float(), layer.bias if layer.bias is None else layer.bias.detach()
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            gain = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
            scale, bias = scale * gain, (bias - norm.running_mean) * gain + norm.bias.detach()
            done.add(norm_name)
        codes = layer.codes() + 2 ** (layer.bits - 1)
        kept |= {f"{name}.codes": pack(_layout(layer), [codes]), f"{name}.scale": scale}
        kept |= {} if bias is None else {f"{name}.bias": bias}
        done.add(name)
    for key, tensor in backbone.state_dict().items():
        owner, _, own = key.rpartition(".")
        unused = own in ("_extra_state", "num_batches_tracked") or (own == "scale" and _is_dense(backbone, owner))
        if owner not in done and not unused:
            kept[key] = tensor
    return kept


@torch.no_grad()
def unpack(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set all numbers of a backbone that `packed` reads from the tensors that it returns.

    Args:
        backbone: with the structure and the numbers of bits of the packed one; changed in place. Afterwards its layers
            have weights as any other numbers: their bits are 0.
        tensors: of `packed`.
    """
    left = dict(tensors)
    for name, layer, _, norm in list(_rounded(backbone)):
        bits = torch.full((layer.weight.numel(),), layer.bits)
        codes = read(left.pop(f"{name}.codes"), torch.arange(len(bits)) * bits, bits).view_as(layer.weight)
        scale = left.pop(f"{name}.scale").float()[:, None]
        layer.weight.copy_((codes - 2 ** (layer.bits - 1)) * scale)
        layer.bits = 0
        if norm is not None:  # folded: what is left of it is the identity
            norm.load_state_dict(nn.BatchNorm1d(norm.num_features).state_dict())
            assert norm.running_var is not None
            norm.running_var.fill_(1 - norm.eps)
    state = backbone.state_dict()
    for key, tensor in left.items():
        state[key].copy_(tensor)


def _rounded(backbone: nn.Module) -> Iterator[tuple[str, Dense, str, nn.BatchNorm1d | None]]:
    """Name and layer of each rounded layer, and of the BatchNorm right behind it, if there is one."""
    after: dict[str, tuple[str, nn.Module]] = {}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Sequential):
            children = [(f"{name}.{child}".strip("."), of_child) for child, of_child in module.named_children()]
            after |= {first: second for (first, _), second in itertools.pairwise(children)}
    for name, module in backbone.named_modules():
        if isinstance(module, Dense) and module.bits:
            norm_name, norm = after.get(name, ("", None))
            foldable = isinstance(norm, nn.BatchNorm1d) and module.bias is not None
            yield name, module, norm_name, cast(nn.BatchNorm1d, norm) if foldable else None


def _layout(layer: Dense) -> Layout:
    return Layout(np.array([layer.out_features]), np.full((1, layer.in_features), layer.bits))


def _is_dense(backbone: nn.Module, name: str) -> bool:
    return isinstance(backbone.get_submodule(name), Dense)
