"""The form for serving answers as the trained model does, in float32 to the bit where sums keep their order."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.allocation.allocation import Allocation
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.cost import cost
from pipeline.experiment.experiment import suitable
from pipeline.experiment.method import build
from pipeline.models.factored import Vectors
from pipeline.models.model import Model, assemble
from pipeline.serving.packed import PackedTables, pack, settle
from pipeline.serving.served import Served
from pipeline.serving.tables import FEW
from pipeline.workflow.plug import plug

PLAIN = Schema((Field("user", 70), Field("item", 50), Field("age", 8), Field("city", 30), Field("hour", 24)))
BAGS = Schema((Field("user", 70), Field("tags", 40, width=3), Field("age", 8), Field("genres", 20, width=2)))
MIXED = {"user": 8, "item": 2, "age": 16, "city": 5, "hour": 2, "tags": 2, "genres": 16}
EPSILON = float(torch.finfo(torch.float32).eps)


def trained(schema: Schema, dims: Mapping[str, int] = MIXED, backbone: str = "deepfm") -> Model:
    torch.manual_seed(0)
    allocation = Allocation("autodim", {name: dims[name] for name in schema.names})
    model = assemble(schema, 16, allocation, build, plug("backbones", backbone).Backbone)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def draw(schema: Schema, batch: int) -> Tensor:
    """(B, S) int32; every bag holds 1 to all of its slots."""
    rng = np.random.default_rng(batch)
    columns = []
    for field in schema.fields:
        values = rng.integers(field.cardinality, size=(batch, field.width))
        filled = rng.integers(1, field.width + 1, size=(batch, 1))
        columns.append(np.where(np.arange(field.width) < filled, values, PADDING))
    return torch.from_numpy(np.concatenate(columns, 1).astype(np.int32))


def embedded(served: Served, ids: Tensor) -> Tensor:
    """(B, F, D) that the backbone of a served model is given."""
    given: list[Tensor] = []
    hook = served.backbone.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1]))
    served(ids)
    hook.remove()
    return given[0].dense() if isinstance(given[0], Vectors) else given[0]


def with_packed(served: Served, packed: Mapping[str, Tensor]) -> Served:
    tables = served.tables
    return Served(served.schema, PackedTables(tables.schema, tables.dims, 16, packed), served.backbone, served.made)


@pytest.mark.parametrize("schema", [PLAIN, BAGS], ids=["plain", "bags"])
@pytest.mark.parametrize("batch", [1, FEW, FEW + 1, 300])
def test_every_backbone_answers_as_it_was_trained(schema: Schema, batch: int) -> None:
    ids = draw(schema, batch)
    for backbone in suitable(interactions=False):
        model = trained(schema, backbone=backbone)
        with torch.no_grad():
            expected = model(ids)
        torch.testing.assert_close(Served.of(model)(ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schema", [PLAIN, BAGS], ids=["plain", "bags"])
@pytest.mark.parametrize("batch", [1, 300])
def test_full_tables_answer_bit_for_bit(schema: Schema, batch: int) -> None:
    model = trained(schema, dict.fromkeys(schema.names, 16))
    ids = draw(schema, batch)
    with torch.no_grad():
        assert torch.equal(Served.of(model)(ids), model(ids))


@pytest.mark.parametrize("schema", [PLAIN, BAGS], ids=["plain", "bags"])
@pytest.mark.parametrize("batch", [1, 300])
def test_a_backbone_that_wants_all_vectors_multiplied_out_gets_them(schema: Schema, batch: int) -> None:
    model, ids = trained(schema), draw(schema, batch)
    served = Served.of(model)
    expected = served(ids)
    asked: list[Tensor] = []

    class Multiplied(type(served.backbone)):  # type: ignore[misc]
        factored = False

        def forward(self, occ: object, vectors: Tensor) -> Tensor:
            asked.append(vectors)
            return super().forward(occ, vectors)

    served.backbone.__class__ = Multiplied
    served = Served(schema, served.tables, served.backbone, served.made)
    torch.testing.assert_close(served(ids), expected, rtol=1e-5, atol=1e-5)
    assert asked[0].shape == (batch, len(schema), 16)


@pytest.mark.parametrize("backbone", ["deepfm", "wide_deep"])
def test_an_mlp_without_hidden_layers_is_served_too(backbone: str) -> None:
    allocation = Allocation("autodim", {name: MIXED[name] for name in PLAIN.names})
    made = plug("backbones", backbone).Backbone
    model = assemble(PLAIN, 16, allocation, build, made, {"hidden": []}).eval()
    ids = draw(PLAIN, 20)
    with torch.no_grad():
        torch.testing.assert_close(Served.of(model)(ids), model(ids), rtol=1e-5, atol=1e-5)


def test_packed_rows_are_the_settled_rows_bit_for_bit_and_those_as_wide_as_d_the_trained_ones() -> None:
    embedding = trained(PLAIN).embedding
    tables, projections = settle(embedding)
    assert torch.equal(tables[16], embedding.tables["16"].weight) and set(projections) == {2, 5, 8}
    flat, start = pack(embedding)["table"], 0
    for d in (2, 5, 8, 16):
        assert torch.equal(flat[start : start + tables[d].numel()].view(-1, d), tables[d])
        start += tables[d].numel()
    assert start == len(flat)


def test_settled_projections_have_orthonormal_rows_and_settled_rows_their_vectors_lengths() -> None:
    embedding = trained(PLAIN).embedding
    tables, projections = settle(embedding)
    for d, lifts in projections.items():
        torch.testing.assert_close(lifts @ lifts.transpose(1, 2), torch.eye(d).expand(len(lifts), d, d))
    rows = tables[2].split([50, 24])  # of item and hour
    for i, trained_rows in enumerate(embedding.tables["2"].weight.split([50, 24])):
        vectors = trained_rows @ embedding.projections["2"][i]
        torch.testing.assert_close(rows[i] @ projections[2][i], vectors)
        torch.testing.assert_close(rows[i].norm(dim=1), vectors.norm(dim=1))


def test_a_projection_of_lower_rank_loses_nothing() -> None:
    embedding = trained(PLAIN).embedding
    with torch.no_grad():
        embedding.projections["8"][0, 3:] = embedding.projections["8"][0, :1]
        vectors = embedding.tables["8"].weight @ embedding.projections["8"][0]
    tables, projections = settle(embedding)
    torch.testing.assert_close(tables[8] @ projections[8][0], vectors, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 300])
def test_vectors_are_off_by_no_more_than_roundings_can_amount_to(batch: int) -> None:
    model = trained(PLAIN)
    served, ids = Served.of(model), draw(PLAIN, batch)
    ours = embedded(served, ids)
    exact = model.double().embedding(model.lookup(ids))
    magnitude = embedded(with_packed(served, {name: value.abs() for name, value in served.packed().items()}), ids)
    # Of a sum of at most 8 products, whatever its order, whose factors were rounded once.
    bound = magnitude.double() * (8 + 2) * EPSILON / 2 * 1.01
    bound[:, PLAIN.names.index("age")] = 0  # as wide as D: looked up and no more
    assert bool(((ours.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("schema", [PLAIN, BAGS], ids=["plain", "bags"])
@pytest.mark.parametrize("batch", [1, 300])
def test_int8_vectors_are_off_by_half_a_scale_through_the_projections(schema: Schema, batch: int) -> None:
    model = trained(schema)
    ids = draw(schema, batch)
    served, rounded = Served.of(model), Served.of(model, int8=True)
    exact, ours = embedded(served, ids), embedded(rounded, ids)
    halves = rounded.packed()["scale"].float() / 2
    rows = torch.tensor([len(table.weight) for table in model.embedding.tables.values()])
    widths = torch.tensor([table.weight.shape[1] for table in model.embedding.tables.values()])
    table = halves.repeat_interleave(widths.repeat_interleave(rows))
    bound = embedded(with_packed(served, {"table": table, "projection": served.packed()["projection"].abs()}), ids)
    assert bool(((ours - exact).abs() <= bound + 1e-5).all()) and not torch.equal(ours, exact)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("dropped", "slots"), [("tags", [1, 2, 3]), ("user", [0])])
def test_a_dropped_field_is_neither_kept_nor_looked_at(dropped: str, slots: list[int], int8: bool) -> None:
    model = trained(BAGS, MIXED | {dropped: 0})
    served, ids = Served.of(model, int8), draw(BAGS, 20)
    changed = ids.clone()
    changed[:, slots] = 0
    assert torch.equal(served(ids), served(changed))
    assert len(served.packed()["table"]) == sum(f.cardinality * MIXED[f.name] for f in BAGS.fields if f.name != dropped)
    if not int8:
        with torch.no_grad():
            torch.testing.assert_close(served(ids), model(ids), rtol=1e-5, atol=1e-5)


def test_unknown_values_and_the_last_value_of_every_field_have_rows_of_their_own() -> None:
    model = trained(PLAIN)
    ids = torch.tensor([[0] * 5, [69, 49, 7, 29, 23]], dtype=torch.int32)
    with torch.no_grad():
        torch.testing.assert_close(Served.of(model)(ids), model(ids), rtol=1e-5, atol=1e-5)
        assert model(ids)[0] != model(ids)[1]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "dims", [MIXED, dict.fromkeys(MIXED, 16), MIXED | {"age": 0}], ids=["mixed", "full", "dropped"]
)
def test_a_saved_model_answers_as_before_and_as_many_bytes_are_claimed_as_stored(
    dims: dict[str, int], int8: bool, tmp_path: Path
) -> None:
    served = Served.of(trained(BAGS, dims), int8)
    served.save(tmp_path / "model.safetensors")
    loaded = Served.load(tmp_path / "model.safetensors")
    for batch in (1, 50):
        ids = draw(BAGS, batch)
        assert torch.equal(loaded(ids), served(ids))
    rows = sum(f.cardinality for f in BAGS.fields if dims[f.name])
    numbers = sum(f.cardinality * dims[f.name] for f in BAGS.fields)
    lifted = sum(d for f in BAGS.fields if (d := dims[f.name]) < 16) * 16 * 4
    claimed = cost(loaded.packed()).bytes_by_kind
    assert claimed.get("table") == numbers * (1 if int8 else 4)
    assert claimed.get("scale", 0) == (2 * rows if int8 else 0) and claimed["projection"] == lifted
    stored = (tmp_path / "model.safetensors").stat().st_size
    backbone = sum(value.nbytes for value in served.backbone.state_dict().values())
    assert sum(claimed.values()) + backbone < stored < sum(claimed.values()) + backbone + 5000


def test_float32_claims_what_the_trained_embedding_claims() -> None:
    model = trained(BAGS)
    assert cost(Served.of(model).packed()) == cost(model.embedding.packed())


def test_a_file_that_is_cut_short_foreign_or_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        Served.load(path)
    Served.of(trained(PLAIN)).save(path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not a model, whatever its name is"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors: is not a complete file of a served model"):
            Served.load(path)
    save_file({"table": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors: is not a complete file of a served model"):
        Served.load(path)


HUGE = 10**12


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda about: about["schema"]["fields"][0].update(width=HUGE), "at most 2,147,483,647 ids and 131,072 slots"),
        (lambda about: about["schema"]["fields"][0].update(width=10**6), "at most 2,147,483,647 ids and 131,072 slots"),
        (lambda about: about["schema"]["fields"][0].update(cardinality=HUGE), "at most 2,147,483,647 ids"),
        (lambda about: about["schema"]["fields"][0].update(cardinality=2.5), "must be whole numbers of at least 1"),
        (lambda about: about.update(dim=HUGE), "dim must be a whole number from 1 to 4,096, got 1000000000000"),
        (lambda about: about["tables"]["settings"]["dims"].update(user=HUGE), "packed tensors must have the shapes"),
        (lambda about: about["backbone"]["options"].update(hidden=[1] * 100_000), "its backbone has 100,000 layers"),
        (lambda about: about["backbone"]["options"].update(hidden=[HUGE]), "Error.s. in loading state_dict"),
        (lambda about: about["backbone"]["options"].update(layers=3), "backbone: there is no 'layers'"),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused_before_they_take_memory(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    path = tmp_path / "model.safetensors"
    Served.of(trained(PLAIN)).save(path)
    with safe_open(path, "pt") as file:
        about, tensors = json.loads(file.metadata()["served"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about)
    save_file(tensors, path, {"served": json.dumps(about)})
    with pytest.raises(ValueError, match=rf"model\.safetensors: is not a complete file .*{why}.*; save the model a"):
        Served.load(path)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a file of a served model; name the file"):
        Served.load(tmp_path)


def test_numbers_that_are_not_finite_are_refused_at_the_latest_when_they_are_read(tmp_path: Path) -> None:
    model = trained(PLAIN)
    served = Served.of(model)
    served.packed()["table"].fill_(float("nan"))
    with pytest.raises(ValueError, match=r"an output is not finite, so a table or a weight of the model is damaged"):
        served(draw(PLAIN, 2))
    torch.nn.init.constant_(next(model.backbone.parameters()), float("nan"))
    Served.of(model).save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is not a complete file .*backbone\..* holds numbers that are not finite"):
        Served.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_an_id_that_a_field_does_not_have_is_not_answered_with_the_row_of_another(wrong: int) -> None:
    served, ids = Served.of(trained(BAGS)), draw(BAGS, 3)
    for slot, field in enumerate(BAGS.slot_fields):
        spoilt = ids.clone()
        spoilt[1, slot] = wrong
        if wrong == PADDING and BAGS.fields[field].width > 1:  # an empty slot of a bag
            assert served(spoilt).shape == (3,)
            continue
        with pytest.raises(
            ValueError, match=rf"row 1, field '{BAGS.names[field]}': an id must be from .*, got {wrong};"
        ):
            served(spoilt)
    with pytest.raises(ValueError, match=rf"ids must have the shape \(3, {BAGS.num_slots}\), got"):
        served(ids[:, 1:])


def test_a_table_that_does_not_fit_the_dims_is_refused() -> None:
    served = Served.of(trained(PLAIN))
    with pytest.raises(ValueError, match=r"must have the shapes .*'table': \(986,\).*, got .*'table': \(3,\)"):
        with_packed(served, served.packed() | {"table": torch.zeros(3)})


def test_an_embedding_of_another_kind_is_refused() -> None:
    model = trained(PLAIN)
    model.embedding = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"MixedTables or CodedTables can be served as it is, got Identity"):
        Served.of(model)


def test_the_trained_model_can_be_trained_on_after_it_was_packed() -> None:
    model = trained(PLAIN).train()
    Served.of(model, int8=True)
    assert model.training and model.backbone.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    served = Served.of(trained(PLAIN))
    served.save(tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    served.made = ("deepfm", {"hidden": object()})  # no JSON
    with pytest.raises(TypeError):
        served.save(tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before
