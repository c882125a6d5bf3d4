"""Tables divided among the processes of a training, each of which holds only its pieces, by TorchRec and FBGEMM.

TorchRec is no dependency: this module loads it where tables are made. It sends the ids of a process's rows of a batch
to the processes that hold the tables, and the vectors back. In the backward pass, the gradients go the same way, and
FBGEMM's kernel updates the rows at once.

NOTE[DIFF]: FBGEMM's kernels for processors have no Adam, so these tables learn by Adagrad (Duchi et al. 2011), with a
sum of squares for each number. With one for each row, steps would depend on how columns are divided and padded.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from pipeline.data.share import LOST, Share

UNIT = 4  # FBGEMM's tables have a multiple of so many columns
EPSILON = 1e-10  # of Adagrad, as in `pipeline.training.row_adagrad.RowAdagrad`


@dataclass(frozen=True)
class Piece:
    """Some columns of a table, with all its rows, in one process.

    Args:
        table: number of the table.
        start, stop: the columns, multiples of `UNIT`.
        rank: of the process.
    """

    table: int
    start: int
    stop: int
    rank: int


def pieces(rows: Sequence[int], widths: Sequence[int], number: int) -> list[Piece]:
    """Divide tables among processes: by table and column, in their order.

    A table of more numbers than the fair share of a process is cut, by columns, into as many pieces as there are
    processes, or as it has units. The largest piece that is left goes to the process that has least, and no two pieces
    of a table go to the same one.

    Args:
        rows: of each table.
        widths: columns of each table, multiples of `UNIT`.
        number: of processes.
    """
    fair = sum(count * width for count, width in zip(rows, widths, strict=True)) / number
    cut = []
    for table, (count, width) in enumerate(zip(rows, widths, strict=True)):
        units = width // UNIT
        parts = min(number, units) if count * width > fair else 1
        bounds = [UNIT * (units * part // parts) for part in range(parts + 1)]
        cut += [(count * (stop - start), table, start, stop) for start, stop in itertools.pairwise(bounds)]
    load = [0] * number
    placed: list[Piece] = []
    for size, table, start, stop in sorted(cut, key=lambda one: (-one[0], *one[1:])):
        free = set(range(number)) - {piece.rank for piece in placed if piece.table == table}
        rank = min(free, key=lambda one: (load[one], one))
        load[rank] += size
        placed.append(Piece(table, start, stop, rank))
    return sorted(placed, key=lambda piece: (piece.table, piece.start))


class Shards:
    """Tables of which every process has some pieces. All processes must call each method together.

    Args:
        rows: of each table.
        widths: columns of each table, multiples of `UNIT`.
        share: of this process.

    Attributes:
        pieces: of all processes.
        weights: of the own pieces, in the order of ``pieces``; changes to them are changes to the tables.
        squares: likewise Adagrad's sums of squared gradients.

    Raises:
        ValueError: if TorchRec does not load.
    """

    def __init__(self, rows: Sequence[int], widths: Sequence[int], share: Share) -> None:
        self.share, self.rows, self.pieces = share, list(rows), pieces(rows, widths, share.number)
        self.names = [f"table_{table}" for table in range(len(rows))]  # names of fields may not suit TorchRec
        with torch.random.fork_rng(devices=[]):  # each process draws numbers for its own pieces, which are replaced
            self._bags = self._made(rows, widths)
        found = self._bags.state_dict()
        state = self._bags.fused_optimizer.state_dict()["state"]
        self.weights, self.squares = [], []
        for table, name in enumerate(self.names):
            if any(piece.rank == share.rank for piece in self.pieces if piece.table == table):
                key = f"embedding_bags.{name}.weight"
                self.weights += [shard.tensor.detach() for shard in found[key].local_shards()]
                self.squares += [shard.tensor for shard in state[key][f"{name}.momentum1"].local_shards()]

    def _made(self, rows: Sequence[int], widths: Sequence[int]) -> Any:
        _load()
        import torchrec
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec.distributed import comm_ops, embeddingbag, types

        comm_ops.set_gradient_division(False)  # the losses are shares of the batch's, so gradients add up
        configs = [
            torchrec.EmbeddingBagConfig(
                num_embeddings=count,
                embedding_dim=width,
                name=name,
                feature_names=[name],
                pooling=torchrec.PoolingType.MEAN,
            )
            for name, count, width in zip(self.names, rows, widths, strict=True)
        ]
        plan = types.EmbeddingModuleShardingPlan()
        for table, name in enumerate(self.names):
            own = [piece for piece in self.pieces if piece.table == table]
            spec = [
                types.ShardMetadata([0, piece.start], [rows[table], piece.stop - piece.start], f"rank:{piece.rank}/cpu")
                for piece in own
            ]
            kind = types.ShardingType.COLUMN_WISE if len(own) > 1 else types.ShardingType.TABLE_WISE
            ranks = [piece.rank for piece in own]
            plan[name] = types.ParameterSharding(kind.value, "fused", ranks, types.EnumerableShardingSpec(spec))
        adagrad = {"optimizer": EmbOptimType.EXACT_ADAGRAD, "learning_rate": 0.0, "eps": EPSILON}
        return embeddingbag.EmbeddingBagCollectionSharder(fused_params=adagrad).shard(
            torchrec.EmbeddingBagCollection(tables=configs, device=torch.device("meta")),
            plan,
            types.ShardingEnv.from_process_group(distributed.GroupMember.WORLD),
            torch.device("cpu"),
        )

    def learn_at(self, lr: float) -> None:
        """Set the learning rate of the steps that follow."""
        optimizer = self._bags.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()  # hands the rate to the kernels, which update rows in the backward pass

    def means(self, ids: Tensor, sizes: Tensor) -> list[Tensor]:
        """The mean rows of bags, a tensor (b, width) for each table; zeros for an empty bag.

        Args:
            ids: (n,) int64, the row numbers of the own bags, table after table.
            sizes: (tables, b) int64, of the own bags.

        Raises:
            ConnectionError: if another process has ended.
        """
        from torchrec import KeyedJaggedTensor

        with exchanging():
            found = self._bags(KeyedJaggedTensor(self.names, ids, lengths=sizes.flatten())).wait()
        return [found[name] for name in self.names]  # TorchRec orders them by process

    def collected(self, weights: Sequence[Tensor]) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece and its weights, one after another, in the first process; nothing in the others.

        Args:
            weights: of the own pieces, as in the attribute ``weights``.

        Raises:
            ConnectionError: if another process has ended.
        """
        own = iter(weights)
        for piece in self.pieces:
            if piece.rank == self.share.rank:
                tensor = next(own)
            elif self.share.rank == 0:
                tensor = torch.empty(self.rows[piece.table], piece.stop - piece.start)
                with exchanging():
                    distributed.recv(tensor, piece.rank)
            if self.share.rank == 0:
                yield piece, tensor
            elif piece.rank == self.share.rank:
                with exchanging():
                    distributed.send(tensor, 0)


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """A block in which TorchRec or this module exchanges tensors between processes.

    Raises:
        ConnectionError: if another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise ConnectionError(LOST) from error


def _load() -> None:
    """Import TorchRec, without what it and FBGEMM tell their own developers.

    Raises:
        ValueError: if one of them is missing or does not load.
    """
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchrec  # noqa: F401
    except (ImportError, OSError) as error:
        why = str(error).strip().split("\n")[0]
        raise ValueError(
            f"retrain.tables torchrec needs TorchRec and FBGEMM, which do not load ({type(error).__name__}: {why}); "
            "install them with pip install --no-deps -r requirements-torchrec.lock, or set retrain.tables to local"
        ) from error
