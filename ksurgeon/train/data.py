"""Training data that is ready: examples split, prepared, counted where they are broken, in batches."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from ksurgeon.errors import DataError
from ksurgeon.train.examples import Source
from ksurgeon.train.order import batches_by_length, epoch_batches
from ksurgeon.train.preprocess import Batch, Features, Preprocess, make_preprocess
from ksurgeon.train.settings import Settings
from ksurgeon.train.sources import open_source

__all__ = ["Data", "open_data"]

_log = logging.getLogger(__name__)
_SHOWN = 5


@dataclass
class Data:
    """Examples of one source as a model takes them.

    Attributes:
        train: numbers of the examples to train on.
        held_out: numbers of those that are only evaluated.
        lengths: of every example, where batches are better made of equally long ones.
        broken: examples that could not be read so far, by name and reason.
    """

    source: Source
    preprocess: Preprocess
    settings: Settings
    train: list[int]
    held_out: list[int]
    lengths: Tensor | None = None
    broken: list[str] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """Examples of a training step: those of the settings, or all there are."""
        return min(self.settings.batch, len(self.train))

    @property
    def batches_per_epoch(self) -> int:
        """Steps that one pass takes; examples that fill no batch are left for the next pass."""
        return len(self.train) // self.batch

    def training_batches(self, first_step: int, rank: int = 0, processes: int = 1) -> Iterator[list[Batch]]:
        """Without end, for each step from ``first_step`` on, this process's micro-batches.

        Which examples a step has, in which order, depends on the seed and the number of the step alone.
        """
        share, micro = self._shares(processes)

        def order() -> Iterator[list[int]]:
            step = first_step
            while True:
                epoch, at = divmod(step, self.batches_per_epoch)
                batches = epoch_batches(self.train, self.batch, self.settings.seed, epoch, self.lengths)
                for batch in batches[at:]:
                    mine = batch[rank::processes]
                    yield from (mine[start : start + micro] for start in range(0, share, micro))
                    step += 1

        loaded = iter(self._load(order()))
        passes = -(-share // micro)
        while True:
            yield [self._counted(next(loaded)) for _ in range(passes)]

    def batches(self, indices: Sequence[int], batch: int | None = None) -> Iterator[Batch]:
        """The examples of those numbers in batches of the size of a micro-batch, in order of their length."""
        size = batch or self.settings.micro_batch or self.batch
        for loaded in self._load(iter(batches_by_length(indices, size, self.lengths))):
            if "inputs" in self._counted(loaded):
                yield loaded

    def _shares(self, processes: int) -> tuple[int, int]:
        """Examples of a process in a step, and of a micro-batch."""
        if self.batch % processes:
            raise DataError(
                f"a batch of {self.batch} examples cannot be shared by {processes} processes; give a batch "
                "that is a multiple"
            )
        share = self.batch // processes
        return share, min(self.settings.micro_batch or share, share)

    def _load(self, order: Iterator[list[int]]) -> "DataLoader[Any]":
        return DataLoader(
            _Prepared(self.source, self.preprocess),
            batch_sampler=order,  # type: ignore[arg-type]
            num_workers=self.settings.workers,
            collate_fn=_Collate(self.preprocess, self.settings.channels_last),
            prefetch_factor=4 if self.settings.workers else None,
            generator=torch.Generator(),
        )

    def _counted(self, batch: Batch) -> Batch:
        for broken in batch.pop("broken", ()):
            self.count_broken(broken)
        if "inputs" not in batch:
            raise DataError(f"no example of a batch could be read; the last: {self.broken[-1]}")
        return batch

    def count_broken(self, what: str) -> None:
        """Name an example that could not be read.

        Raises:
            DataError: there have been more than the settings allow.
        """
        if what in self.broken:
            return
        self.broken.append(what)
        _log.warning("skipped: %s", what)
        limit, total = self.settings.broken, len(self.source) + len(self.source.broken)
        allowed = limit if limit >= 1 else limit * total
        if len(self.broken) > allowed:
            shown = "\n".join(f"  {name}" for name in self.broken[:_SHOWN])
            raise DataError(
                f"{len(self.broken)} of {total} examples of {self.source.name} cannot be read, more than the "
                f"{allowed:g} allowed (setting broken):\n{shown}"
            )


class _Prepared(Dataset[Any]):
    """Features by number; what cannot be read gives the next number's, and says so."""

    def __init__(self, source: Source, preprocess: Preprocess) -> None:
        self.source, self.preprocess = source, preprocess

    def __getitem__(self, number: int) -> tuple[int, Features | None, list[str]]:
        broken: list[str] = []
        for ahead in range(min(8, len(self.source))):
            at = (number + ahead) % len(self.source)
            try:
                return at, self.preprocess.prepare(self.source.read(at)), broken
            except DataError:
                raise
            except Exception as error:
                first = (str(error).strip() or repr(error)).splitlines()[0]
                broken.append(f"{self.source.names(at)}: {type(error).__name__}: {first}")
        return number, None, broken


class _Collate:
    """Joins features to a batch; a class, so that worker processes can be given it."""

    def __init__(self, preprocess: Preprocess, channels_last: bool) -> None:
        self.preprocess, self.channels_last = preprocess, channels_last

    def __call__(self, loaded: list[tuple[int, Features | None, list[str]]]) -> Batch:
        broken = [what for *_, names in loaded for what in names]
        sound = [(number, features) for number, features, _ in loaded if features is not None]
        if not sound:
            return {"broken": broken}
        try:
            batch = self.preprocess.collate([features for _, features in sound])
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"examples {', '.join(str(n) for n, _ in sound[:4])}, … make no batch: {error}"
            ) from error
        if self.channels_last:
            batch["inputs"] = pytree.tree_map_only(Tensor, _channels_last, batch["inputs"])
        batch["index"] = torch.tensor([number for number, _ in sound])
        return {"labels": None, "broken": broken, **batch}


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def open_data(data: Any, model: nn.Module, settings: Settings, *, preprocessor: Any = None) -> Data:
    """Training data for a model.

    Args:
        data: as ``open_source`` takes it, or what an earlier call gave.
        preprocessor: as ``make_preprocess`` takes it.

    Raises:
        DataError: it is missing, empty, or of no use to the model.
    """
    if isinstance(data, Data):
        return data
    source = open_source(data, settings.limit)
    preprocess = make_preprocess(model, source, settings.task, settings.max_length, preprocessor)
    numbers = torch.randperm(len(source), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    kept = min(round(settings.held_out * len(numbers)), settings.held_out_most)
    if settings.held_out:
        kept = min(max(kept, 1), len(numbers) - 1)
    opened = Data(source, preprocess, settings, sorted(numbers[kept:]), sorted(numbers[:kept]))
    for broken in source.broken:
        opened.count_broken(broken)
    if preprocess.length is not None:
        opened.lengths = _lengths(opened, preprocess)
    return opened


def _lengths(data: Data, preprocess: Preprocess) -> Tensor:
    assert preprocess.length is not None
    lengths = torch.zeros(len(data.source), dtype=torch.int32)
    for number in range(len(data.source)):
        try:
            lengths[number] = preprocess.length(data.source.read(number))
        except Exception as error:
            data.count_broken(f"{data.source.names(number)}: {type(error).__name__}: {error}")
    return lengths
