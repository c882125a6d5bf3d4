"""Embedding tables for a model and a training loop of your own; docs/library.md explains them. ::

    from pipeline.api import Allocation, Field, Schema, Tables

    schema = Schema((Field("user", 6041), Field("item", 3707), Field("genres", 19, width=6)))
    tables = Tables(schema, dim=16, allocation=Allocation.load("allocation.json"))
    vectors = tables(ids)

`PADDING` is -1, the id that fills the unused slots of a bag.

The names in ``__all__`` are the public interface. Everything else can change without notice.
"""

from pipeline.allocation.allocation import Allocation
from pipeline.api.tables import Tables
from pipeline.api.torchrec import FieldTable, field_tables
from pipeline.compress import Report, TableReport, compress, restore
from pipeline.data.schema import PADDING, Field, Schema
from pipeline.embeddings.cost import Cost
from pipeline.training.row_adam import RowAdam

__all__ = [
    "PADDING",
    "Allocation",
    "Cost",
    "Field",
    "FieldTable",
    "Report",
    "RowAdam",
    "Schema",
    "TableReport",
    "Tables",
    "compress",
    "field_tables",
    "restore",
]
