"""What every backbone and every method has to hold, found in their folders: a new file is tested by being there."""

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.allocation.allocation import Allocation
from pipeline.allocation.evidence import Evidence
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.batch import Lookup
from pipeline.embeddings.contract import FieldEmbedding
from pipeline.embeddings.cost import bytes_per_field, cost, full_tables, prices
from pipeline.models.layers import FirstOrder
from pipeline.workflow.plug import check_options, names, plug

SCHEMA = Schema((Field("user", 7), Field("item", 5), Field("age", 3), Field("tags", 6, width=3)))
CANDIDATES = [[1, 2, 4], [2, 4], [1, 4], [0, 1, 2, 4]]
LOOKUP = Lookup(SCHEMA)
DIM, BATCH = 4, 64
SEARCHED = [name for name in names("methods") if name.startswith("autodim")]  # what all methods hold: test_methods.py
PLAIN = [*SEARCHED, "full", "uniform", "random"]


def draw_ids(seed: int = 0, rows: int = BATCH) -> Tensor:
    """(B, S) ids in which every value occurs, bags of one to three values among them."""
    generator = torch.Generator().manual_seed(seed)
    columns = [torch.arange(rows) % field.cardinality for field in SCHEMA.fields[:3]]
    columns = [column[torch.randperm(rows, generator=generator)] for column in columns]
    tags = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(rows)])
    tags[torch.arange(3) >= torch.randint(1, 4, (rows, 1), generator=generator)] = PADDING
    return torch.cat([torch.stack(columns, 1), tags], 1).int()


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters as after training, not as at the start: zeros would hide what they are multiplied with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient


def assert_every_parameter_has_a_gradient(module: nn.Module) -> None:
    without = [name for name, p in module.named_parameters() if p.grad is None or not bool(dense(p.grad).any())]
    assert not without
    assert all(bool(dense(p.grad).isfinite().all()) for p in module.parameters())


# --- backbones


def make_backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(plug("backbones", name).Backbone(SCHEMA, DIM))


def draw_embedded(rows: int = BATCH) -> Tensor:
    return torch.randn(rows, len(SCHEMA), DIM, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", names("backbones"))
def test_a_backbone_gives_one_logit_a_row_for_any_number_of_rows(name: str) -> None:
    backbone = make_backbone(name)
    assert backbone(LOOKUP(draw_ids()), draw_embedded()).shape == (BATCH,)
    backbone.eval()
    for rows in (1, 2, BATCH):
        assert backbone(LOOKUP(draw_ids()[:rows]), draw_embedded()[:rows]).shape == (rows,)


@pytest.mark.parametrize("name", names("backbones"))
def test_rows_of_a_batch_do_not_see_each_other_in_a_backbone(name: str) -> None:
    backbone = make_backbone(name).eval()
    ids, embedded = draw_ids(), draw_embedded()
    together = backbone(LOOKUP(ids), embedded)
    for row in range(5):
        alone = backbone(LOOKUP(ids[row : row + 1]), embedded[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    assert len(torch.unique(together)) > BATCH // 2


@pytest.mark.parametrize("name", names("backbones"))
def test_every_parameter_of_a_backbone_gets_a_gradient_and_so_does_every_field(name: str) -> None:
    backbone, embedded = make_backbone(name), draw_embedded().requires_grad_()
    weight = torch.randn(BATCH, generator=torch.Generator().manual_seed(4))
    (backbone(LOOKUP(draw_ids()), embedded) * weight).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    backbone.eval().zero_grad()  # in training BatchNorm cancels the bias before it
    (backbone(LOOKUP(draw_ids()), embedded) * weight).sum().backward()
    assert_every_parameter_has_a_gradient(backbone)
    assert bool(dense(embedded.grad).abs().sum((0, 2)).all())


@pytest.mark.parametrize("name", names("backbones"))
def test_a_backbone_gives_logits_not_probabilities(name: str) -> None:
    logits = make_backbone(name).eval()(LOOKUP(draw_ids()), 5 * draw_embedded()).detach()
    assert float(logits.min()) < 0 and float(logits.max()) > 1


@pytest.mark.parametrize("name", names("backbones"))
def test_a_backbone_uses_the_embedding_and_ids_for_its_first_order_alone(name: str) -> None:
    backbone = make_backbone(name).eval()
    logits = backbone(LOOKUP(draw_ids()), draw_embedded())
    assert not torch.allclose(logits, backbone(LOOKUP(draw_ids()), 2 * draw_embedded()))
    uses_ids = not torch.equal(logits, backbone(LOOKUP(draw_ids(1)), draw_embedded()))
    assert uses_ids == any(isinstance(module, FirstOrder) for module in backbone.modules())


@pytest.mark.parametrize("name", names("backbones"))
def test_a_backbone_s_options_are_those_of_its_signature_all_with_a_default(name: str) -> None:
    backbone = plug("backbones", name).Backbone
    first, second, *options = inspect.signature(backbone).parameters.values()
    assert (first.name, second.name) == ("schema", "dim")
    for option in options:
        assert option.kind is option.KEYWORD_ONLY and option.default is not option.empty, option
    check_options(backbone, {option.name: option.default for option in options}, "here")
    with pytest.raises(ValueError, match="here: no option 'nope'"):
        check_options(backbone, {"nope": 1}, "here")


# --- methods that give every field a dimension


def draw_scores(seed: int = 0) -> np.ndarray:
    """(F, N) log-probabilities as a search leaves them: -inf where a field has fewer candidates."""
    rng = np.random.default_rng(seed)
    scores = np.full((len(SCHEMA), 4), -np.inf)
    for f, offered in enumerate(CANDIDATES):
        scores[f, : len(offered)] = np.log(rng.dirichlet(np.ones(len(offered))))
    return scores


def evidence(method: ModuleType, **given: Any) -> Evidence:
    """What ``derive`` is given: to a method that searches its scores, to a control the bytes to come near."""
    priced = prices(method.build, SCHEMA, CANDIDATES, DIM)
    full = full_tables(SCHEMA, DIM).bytes
    own: Mapping[str, Any] = {"scores": draw_scores()} if method.search is not None else {"match": full // 2}
    return Evidence(SCHEMA, DIM, tuple(map(tuple, CANDIDATES)), priced, full, **{**own, **given})


def built(name: str, **given: Any) -> tuple[FieldEmbedding, Schema, Allocation]:
    """search (if any) -> derive -> build, of the fields that are kept."""
    method = plug("methods", name)
    torch.manual_seed(0)
    if method.search is not None and "scores" not in given:
        given["scores"] = supernet(name).scores().detach().numpy()
    allocation = method.derive(evidence(method, **given))
    kept = SCHEMA.subset(allocation.kept())
    dims = {field: allocation.dims[field] for field in kept.names}
    return method.build(kept, DIM, Allocation(name, dims, allocation.settings)), kept, allocation


def supernet(name: str) -> FieldEmbedding:
    """A searched embedding in the middle of its search."""
    method = plug("methods", name)
    torch.manual_seed(0)
    made: FieldEmbedding = method.search(SCHEMA, DIM, CANDIDATES, prices(method.build, SCHEMA, CANDIDATES, DIM))
    randomised(made)
    made.before_step(50, 100)
    return made


def ids_of(kept: Schema, seed: int = 0) -> Tensor:
    return draw_ids(seed)[:, SCHEMA.slots_of(kept.names)]


@pytest.mark.parametrize("name", PLAIN)
def test_a_method_goes_from_search_to_vectors_of_every_kept_field(name: str) -> None:
    embedding, kept, allocation = built(name)
    assert allocation.method == name
    allocation.check(SCHEMA)
    for rows in (1, BATCH):
        assert embedding(Lookup(kept)(ids_of(kept)[:rows])).shape == (rows, len(kept), embedding.dim)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_built_costs_what_its_prices_say(name: str) -> None:
    embedding, kept, allocation = built(name)
    method = plug("methods", name)
    claimed = bytes_per_field(method.build, SCHEMA, allocation.dims, embedding.dim)
    assert list(claimed) == list(SCHEMA.names)
    assert cost(embedding.packed()).bytes == sum(claimed.values())
    assert {field for field, size in claimed.items() if size} == set(kept.names)
    if embedding.dim == DIM:
        priced = prices(method.build, SCHEMA, [[d] for d in allocation.dims.values()], DIM)
        assert dict(zip(allocation.dims, priced[:, 0].tolist(), strict=True)) == claimed


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("seed", range(5))
def test_a_searched_allocation_takes_candidates_and_keeps_the_budget(name: str, seed: int) -> None:
    method = plug("methods", name)
    free = evidence(method, scores=draw_scores(seed))
    spent = {}
    least = int(free.prices.min(1).sum())
    for budget in (None, free.full_bytes // 2, least):
        embedding, _, allocation = built(name, scores=draw_scores(seed), budget=budget)
        for field, offered in zip(SCHEMA.names, CANDIDATES, strict=True):
            assert allocation.dims[field] in offered
        spent[budget] = cost(embedding.packed()).bytes
        assert budget is None or spent[budget] <= budget
    assert spent[least] == least  # nothing else is possible
    with pytest.raises(ValueError, match=f"no choice costs {least - 1} bytes or less: the least is {least} bytes, "):
        method.derive(evidence(method, scores=draw_scores(seed), budget=least - 1))


@pytest.mark.parametrize("name", SEARCHED)
def test_a_budget_that_all_choices_keep_changes_nothing(name: str) -> None:
    method = plug("methods", name)
    plenty = int(prices(method.build, SCHEMA, [[4]] * 4, DIM).sum()) * 10
    assert method.derive(evidence(method, budget=plenty)) == method.derive(evidence(method))


@pytest.mark.parametrize("name", SEARCHED)
def test_without_a_search_s_scores_nothing_is_derived(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs the scores"):
        plug("methods", name).derive(evidence(plug("methods", name), scores=None))


@pytest.mark.parametrize("name", SEARCHED)
def test_every_parameter_of_a_supernet_gets_a_gradient_and_its_scores_are_probabilities(name: str) -> None:
    embedding = supernet(name)
    embedded = embedding(LOOKUP(draw_ids()))
    assert embedded.shape == (BATCH, len(SCHEMA), DIM)
    weight = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(5))
    embedding.objective((embedded * weight).sum(), "arch").backward()
    assert_every_parameter_has_a_gradient(embedding)
    owned = {id(parameter) for parameter in embedding.parameters()}
    assert embedding.arch_parameters() and all(id(parameter) in owned for parameter in embedding.arch_parameters())
    p = embedding.scores().detach().exp()
    torch.testing.assert_close(p.sum(1), torch.ones(len(SCHEMA)))
    assert [int((row > 0).sum()) for row in p] == [len(offered) for offered in CANDIDATES]
