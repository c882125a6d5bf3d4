"""The memory of a history is a GRU with attention over its items, whatever the padding; pairs are scored one by one."""

import pytest
import torch
from torch import Tensor

from pipeline.chain import encoder
from pipeline.chain.encoder import Encoder, Memory, Pairs
from pipeline.chain.world import DETAIL, ENTRANCE, NOTHING, State

VECTORS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def state(histories: list[list[int]], shown: list[int], skips: list[int]) -> State:
    page = [ENTRANCE if item == NOTHING else DETAIL for item in shown]
    return State(*(torch.tensor(part) for part in (histories, page, shown, skips)))


def remembered(memory: Memory, items: list[int]) -> Tensor:
    """p of one history by the equations: Cho et al. 2014 in PyTorch's form for the GRU, then the attention."""
    gru = memory.gru
    hidden, outputs = torch.zeros(gru.hidden_size, dtype=torch.float64), []
    for item in items:
        from_item = gru.weight_ih_l0 @ VECTORS[item] + gru.bias_ih_l0
        from_hidden = gru.weight_hh_l0 @ hidden + gru.bias_hh_l0
        (reset_i, update_i, new_i), (reset_h, update_h, new_h) = from_item.chunk(3), from_hidden.chunk(3)
        update = torch.sigmoid(update_i + update_h)
        new = torch.tanh(new_i + torch.sigmoid(reset_i + reset_h) * new_h)
        hidden = (1 - update) * new + update * hidden
        outputs.append(hidden)
    if not outputs:
        return hidden
    scores = torch.stack([memory.weigh.weight[0] @ torch.tanh(memory.attend(h)) for h in outputs])
    return sum(weight * h for weight, h in zip(scores.softmax(0), outputs, strict=True))  # type: ignore[return-value]


def test_a_memory_is_a_gru_with_attention_over_the_items_of_the_history() -> None:
    torch.manual_seed(0)
    built = Encoder(VECTORS, 4, 2, memories=2).double()
    histories = [[5], [], [1, 2, 3, 0], [2, 2]]
    padded = [[NOTHING] * (4 - len(items)) + items for items in histories]
    found = built.remember(state(padded, [NOTHING] * 4, [0] * 4))
    for number, memory in enumerate(built.memories):
        expected = torch.stack([remembered(memory, items) for items in histories])  # type: ignore[arg-type]
        torch.testing.assert_close(found[:, number], expected)
    assert not found[1].any()
    assert built.remember(state(padded, [NOTHING] * 4, [0] * 4)[torch.tensor([], dtype=torch.int64)]).shape == (0, 2, 4)


def test_the_context_is_the_capped_number_of_skips_and_the_shown_item() -> None:
    built = Encoder(VECTORS, 4, 2).double()
    found = built.context(state([[0]] * 3, [NOTHING, 4, NOTHING], [1, 0, 9]))
    expected = [[0, 1, 0, 0, 0, 0], [1, 0, 0, *VECTORS[4].tolist()], [0, 0, 1, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_the_item_vectors_belong_to_somebody_else() -> None:
    built = Encoder(VECTORS, 4, 2)
    assert torch.equal(built.vectors, VECTORS)
    own = {id(parameter) for parameter in built.parameters()}
    assert id(built.table) not in own and not any("table" in name for name in built.state_dict())


def test_all_pairs_are_scored_as_each_pair_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    pairs = Pairs(5, 3, 8, 2).double()
    features = torch.randn(4, 5, dtype=torch.float64)
    one_by_one = torch.stack([torch.stack([pairs(f[None], v[None])[0] for v in VECTORS]) for f in features])
    first, second = pairs.state[0], pairs.state[2]
    plain = pairs.out((second(first(features[1]).relu()) + pairs.item.weight @ VECTORS[5]).relu())
    torch.testing.assert_close(one_by_one[1, 5], plain)
    torch.testing.assert_close(pairs(features, VECTORS.expand(4, 6, 3)), one_by_one)
    for size in (1, 2**20):  # an item at a time, all items at once
        monkeypatch.setattr(encoder, "GRID", size)
        torch.testing.assert_close(pairs.grid(features, VECTORS), one_by_one)
