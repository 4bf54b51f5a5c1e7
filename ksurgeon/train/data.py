"""Training data that is ready: examples split, prepared, counted where they are broken, in batches."""

import logging
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ksurgeon.calibrate.examples import joined
from ksurgeon.calibrate.preprocess import Batch, Features, Preprocess, make_preprocess
from ksurgeon.errors import DataError
from ksurgeon.surgery.record import record_of
from ksurgeon.surgery.recorded import image_size
from ksurgeon.torch_private import pytree
from ksurgeon.train.examples import Source
from ksurgeon.train.order import batches_by_length, epoch_batches
from ksurgeon.train.settings import Settings
from ksurgeon.train.sources import open_source

__all__ = ["Data", "open_data"]

_log = logging.getLogger(__name__)
_SHOWN = 5
_AHEAD = 8  # examples that are tried before a place in a batch stays empty


@dataclass
class Data:
    """Examples of one source as a model takes them.

    Attributes:
        train: numbers of the examples to train on, in order.
        held_out: numbers of those that are only evaluated.
        held_out_preprocess: theirs, where it is another than that of training examples.
        lengths: of every example, where batches are better made of equally long ones.
        broken: examples that could not be read so far, by name and reason.
        seed: of the order of training examples; None: that of the settings.
    """

    source: Source
    preprocess: Preprocess
    settings: Settings
    train: list[int]
    held_out: list[int]
    held_out_preprocess: Preprocess | None = None
    lengths: Tensor | None = None
    broken: list[str] = field(default_factory=list)
    seed: int | None = None

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
        seed = self.settings.seed if self.seed is None else self.seed

        def order() -> Iterator[list[int]]:
            step = first_step
            while True:
                epoch, at = divmod(step, self.batches_per_epoch)
                batches = epoch_batches(self.train, self.batch, seed, epoch, self.lengths)
                for batch in batches[at:]:
                    mine = batch[rank::processes]
                    yield from (mine[start : start + micro] for start in range(0, share, micro))
                    step += 1

        loaded = iter(self._load(order(), f"training, process {rank}, step {first_step}", seed))
        passes = -(-share // micro)
        while True:
            yield [self._counted(next(loaded)) for _ in range(passes)]

    def batches(self, indices: Sequence[int], batch: int | None = None) -> Iterator[Batch]:
        """The examples of those numbers in batches of the size of a micro-batch, in order of their length.

        Held-out examples that cannot be read are left out.
        """
        size = batch or self.settings.micro_batch or self.batch
        found = not len(indices)
        for loaded in self._load(
            iter(batches_by_length(indices, size, self.lengths)), "evaluation", self.settings.seed
        ):
            self._count(loaded)
            if "inputs" in loaded:
                found = True
                yield loaded
        if not found:
            raise self._nothing()

    def _shares(self, processes: int) -> tuple[int, int]:
        """Examples of a process in a step, and of a micro-batch."""
        if self.batch % processes:
            raise DataError(
                f"a batch of {self.batch} examples cannot be shared by {processes} processes; give a batch "
                "that is a multiple"
            )
        share = self.batch // processes
        return share, min(self.settings.micro_batch or share, share)

    def _load(self, order: Iterator[list[int]], purpose: str, seed: int) -> "DataLoader[Any]":
        """Batches; the random numbers of processes that prepare them depend on the seed and the purpose."""
        seed = random.Random(f"{seed}, {purpose}").getrandbits(62)
        return DataLoader(
            _Prepared(self),
            batch_sampler=order,  # type: ignore[arg-type]
            num_workers=self.settings.workers,
            collate_fn=_Collate(self.preprocess, self.settings.channels_last),
            prefetch_factor=4 if self.settings.workers else None,
            generator=torch.Generator().manual_seed(seed),
        )

    def _counted(self, batch: Batch) -> Batch:
        self._count(batch)
        if "inputs" not in batch:
            raise self._nothing()
        return batch

    def _count(self, batch: Batch) -> None:
        for broken in batch.pop("broken", ()):
            self.count_broken(broken)

    def _nothing(self) -> DataError:
        return DataError(f"no example of a batch could be read; the last: {self.broken[-1]}")

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
    """Features by number; what cannot be read says so, and of training examples gives the next one's."""

    def __init__(self, data: Data) -> None:
        self.source, self.preprocess = data.source, data.preprocess
        self.train, self.held_out = data.train, frozenset(data.held_out)
        self.held_out_preprocess = data.held_out_preprocess or data.preprocess

    def __getitem__(self, number: int) -> tuple[int, Features | None, list[str]]:
        broken: list[str] = []
        preprocess = self.held_out_preprocess if number in self.held_out else self.preprocess
        for at in self._candidates(number):
            try:
                return at, preprocess.prepare(self.source.read(at)), broken
            except DataError:
                raise
            except Exception as error:
                broken.append(self.source.unreadable(at, error))
        return number, None, broken

    def _candidates(self, number: int) -> list[int]:
        """The example itself, and of training examples those that may take its place."""
        if number in self.held_out:
            return [number]
        first, count = bisect_left(self.train, number), len(self.train)
        return [self.train[(first + ahead) % count] for ahead in range(min(_AHEAD, count))]


class _Collate:
    """Joins features to a batch; a class, so that worker processes can be given it."""

    def __init__(self, preprocess: Preprocess, channels_last: bool) -> None:
        self.preprocess, self.channels_last = preprocess, channels_last

    def __call__(self, loaded: list[tuple[int, Features | None, list[str]]]) -> Batch:
        broken = [what for *_, names in loaded for what in names]
        sound = [(number, features) for number, features, _ in loaded if features is not None]
        if not sound:
            return {"broken": broken}
        batch = self.preprocess.join(sound)
        if self.channels_last:
            batch["inputs"] = pytree.tree_map_only(Tensor, _channels_last, batch["inputs"])
        batch["index"] = torch.tensor([number for number, _ in sound])
        return {"labels": None, "broken": broken, **batch}


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def open_data(
    data: Any,
    model: nn.Module,
    settings: Settings,
    *,
    preprocessor: Any = None,
    test: Any = None,
    test_preprocessor: Any = None,
) -> Data:
    """Training data for a model.

    Args:
        data: as ``open_source`` takes it, or what an earlier call gave.
        preprocessor: as ``make_preprocess`` takes it.
        test: the held-out examples, as ``data``, all of which are evaluated; left out, a share of the data.
        test_preprocessor: of held-out examples; left out, that of all.

    Raises:
        DataError: it is missing, empty, or of no use to the model.
    """
    if isinstance(data, Data):
        return data
    source = open_source(data, settings.limit)
    record = record_of(model)
    prepare = partial(
        make_preprocess,
        model,
        source,
        origin=record.source if record is not None else None,
        image_size=image_size(record.inputs if record is not None else None),
        task=settings.task,
        max_length=settings.max_length,
    )
    preprocess = prepare(preprocessor=preprocessor)
    numbers = torch.randperm(len(source), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    kept = min(round(settings.held_out * len(numbers)), settings.held_out_most)
    if test is not None:
        source, first = joined(source, open_source(test)), len(source)
        numbers, kept = [*range(first, len(source)), *range(first)], len(source) - first
    elif settings.held_out:
        kept = min(max(kept, 1), len(numbers) - 1)
    opened = Data(source, preprocess, settings, sorted(numbers[kept:]), sorted(numbers[:kept]))
    if test_preprocessor is not None:
        opened.held_out_preprocess = prepare(preprocessor=test_preprocessor)
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
            data.count_broken(data.source.unreadable(number, error))
    return lengths
