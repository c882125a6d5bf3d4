"""Dense layers in a few bits: what they are rounded to, how they train on, and the tensors that serve them."""

import copy

import pytest
import torch
from torch import nn

from pipeline.data.schema import Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.cost import cost
from pipeline.experiment.experiment import suitable
from pipeline.models.dense import Dense, packed, round_dense, unpack
from pipeline.models.layers import MLP
from pipeline.workflow.plug import plug

SCHEMA = Schema((Field("user", 9), Field("item", 5), Field("tags", 4, width=2)))
DIM = 8


def layer(bits: int = 0) -> Dense:
    torch.manual_seed(0)
    made = Dense(30, 7)
    if bits:
        made.round_to(bits)
    return made


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_rounded_weight_is_a_code_times_the_scale_of_its_output(bits: int) -> None:
    before, rounded = layer(), layer(bits)
    codes = rounded.weight / rounded.scale.float()[:, None]
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)
    assert int(codes.abs().max().round()) <= 2 ** (bits - 1) - 1
    error = (rounded.weight - before.weight).square().sum(1)
    fitting = before.weight.abs().amax(1) / (2 ** (bits - 1) - 1)  # no weight is clipped
    steps = fitting[:, None]
    assert bool((error <= ((before.weight / steps).round() * steps - before.weight).square().sum(1) + 1e-6).all())


def test_fewer_than_two_bits_or_more_than_eight_are_refused() -> None:
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f"2 to 8 bits, got {bits}"):
            layer().round_to(bits)


def test_rounded_weights_train_through_the_rounding_and_settle_again() -> None:
    rounded, inputs = layer(4).train(), torch.randn(5, 30)
    rounded(inputs).sum().backward()
    torch.testing.assert_close(rounded.weight.grad, inputs.sum(0).expand(7, -1))
    served = rounded.weight.detach().clone()
    with torch.no_grad():
        rounded.weight.add_(0.2 * rounded.scale.float()[:, None])
    torch.testing.assert_close(rounded(inputs), nn.functional.linear(inputs, served, rounded.bias))
    rounded.finish()
    torch.testing.assert_close(rounded.weight, nn.Parameter(served))


def test_the_bits_are_part_of_the_state() -> None:
    rounded, other = layer(3), Dense(30, 7)
    other.load_state_dict(rounded.state_dict())
    assert other.bits == 3 and torch.equal(other.weight, rounded.weight)


@pytest.mark.parametrize("name", suitable(interactions=False))
@pytest.mark.parametrize("bits", [3, 8])
def test_the_packed_tensors_are_enough_to_serve_a_backbone(name: str, bits: int) -> None:
    torch.manual_seed(0)
    backbone = plug("backbones", name).Backbone(SCHEMA, DIM)
    ids = torch.tensor([[1, 2, 0, 1], [8, 4, 3, -1], [0, 0, 2, 0]]).int()
    occ, embedded = Lookup(SCHEMA)(ids), torch.randn(3, 3, DIM)
    for _ in range(3):  # running statistics that are not those of the start
        backbone(Lookup(SCHEMA)(ids), torch.randn(3, 3, DIM))
    round_dense(backbone, bits)
    backbone.eval()
    tensors = packed(backbone)
    other = copy.deepcopy(backbone)
    for value in [*other.parameters(), *other.buffers()]:
        if value.is_floating_point():
            value.data.fill_(torch.nan)
    unpack(other, tensors)
    torch.testing.assert_close(other(occ, embedded), backbone(occ, embedded), rtol=1e-4, atol=1e-5)


def test_a_packed_mlp_takes_its_codes_a_scale_and_a_bias_for_each_output() -> None:
    mlp = MLP(40, (16, 8), 0.0).eval()
    plain = cost(packed(mlp)).bytes
    assert plain == 4 * (40 * 16 + 16 * 8 + 8 + 25 + 4 * 24)  # weights, biases and BatchNorm
    round_dense(mlp, 4)
    spare = 3 * 2  # at the end of each string of bits
    assert cost(packed(mlp)).bytes == (40 * 16 + 16 * 8 + 8) // 2 + spare + (4 + 4) * 25
