"""Compress the embedding tables of a PyTorch model that is already trained. ::

    from pipeline.compress import compress

    small, report = compress(model, batches, losses, budget=0.025)

Nothing is trained. The tables are found by type, their effect on the loss is measured on some batches, and each number
gets bits by the loss that they save; see `pipeline.coding`.
"""

from pipeline.compress.compress import Report, TableReport, compress
from pipeline.compress.tables import CodedEmbedding, restore

__all__ = ["CodedEmbedding", "Report", "TableReport", "compress", "restore"]
