"""The teacher's outputs: computed for every batch, or once for every example and kept."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.errors import FolderError
from ksurgeon.kernels.cache import cache_folder
from ksurgeon.surgery.folders import written_whole
from ksurgeon.train.data import Data
from ksurgeon.train.log import Listener
from ksurgeon.train.objective import Objective, Teacher
from ksurgeon.train.outputs import term_of
from ksurgeon.train.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TargetSource", "target_source"]

TargetSource = Callable[[Batch], dict[str, Tensor]]

_SMALL = 4096  # entries of an example's output up to which outputs are kept
_FILE = "targets.safetensors"


class Kept:
    """Outputs of examples, looked up by their numbers.

    Args:
        teacher: is asked for those that are not known yet; None where all are.
    """

    def __init__(self, outputs: dict[str, Tensor], teacher: Teacher | None = None) -> None:
        self.outputs, self.teacher = outputs, teacher
        self._known: set[int] = set()

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        index = batch["index"].cpu()
        if self.teacher is not None and not self._known.issuperset(index.tolist()):
            found = self.teacher(batch)
            for name, kept in self.outputs.items():
                kept[index] = found[name].to("cpu", kept.dtype)
            self._known.update(index.tolist())
        return {n: t[index].to(batch["index"].device) for n, t in self.outputs.items()}


def target_source(
    teacher: Teacher,
    objective: Objective,
    data: Data,
    settings: Settings,
    accelerator: "Accelerator",
    listener: Listener,
) -> TargetSource:
    """The teacher itself, or its outputs kept where that is asked for, or sensible.

    Kept outputs of texts lie in the cache folder, under a name made from the teacher's weights and the texts,
    so that the next training of another student has them at once. A training whose time is limited computes
    those of an example when it meets it, unless it is told to keep them.
    """
    if settings.cache_teacher is False:
        return teacher
    first = next(data.batches(data.train[:2]))
    from accelerate.utils import send_to_device

    found = teacher(send_to_device(first, accelerator.device))
    wanted = {n: t for n, t in found.items() if objective.wants(term_of(n))}
    small = {
        name
        for name, t in wanted.items()
        if term_of(name) in ("logits", "embedding", "outputs") and t.dim() == 2 and t.shape[1] <= _SMALL
    }
    if not wanted or small != set(wanted) or data.settings.task in ("causal-lm", "masked-lm", "seq2seq"):
        if settings.cache_teacher:
            listener.note("the teacher's outputs are not kept: they are more than a vector for each example")
        return teacher
    place = _place(teacher, data, sorted(small), accelerator.mixed_precision)
    if place is not None and (place / _FILE).is_file():
        return Kept(load_file(place / _FILE))
    like = {n: wanted[n] for n in sorted(small)}
    if settings.minutes is not None and not settings.cache_teacher:
        return Kept(_empty(data, like), teacher)
    outputs = _compute(teacher, data, like, accelerator, listener)
    if place is not None and accelerator.is_main_process:
        try:
            with written_whole(place) as temporary:
                save_file(outputs, temporary / _FILE)
        except FolderError as error:
            listener.note(f"the teacher's outputs are not kept for the next training: {error}")
    return Kept(outputs)


def _compute(
    teacher: Teacher,
    data: Data,
    like: dict[str, Tensor],
    accelerator: "Accelerator",
    listener: Listener,
) -> dict[str, Tensor]:
    """All outputs, every process its share of the examples, in an order that depends on the data alone."""
    from accelerate.utils import send_to_device

    count, outputs = len(data.source), _empty(data, like)
    mine = list(range(count))[accelerator.process_index :: accelerator.num_processes]
    listener.stage("asking the teacher", len(mine))
    done = 0
    for batch in data.batches(mine, max(32, data.settings.micro_batch or data.batch)):
        index = batch["index"]
        with accelerator.autocast():
            found = teacher(send_to_device(batch, accelerator.device))
        for name, kept in outputs.items():
            kept[index] = found[name].to("cpu", kept.dtype)
        done += len(index)
        listener.part(done, "")
    if accelerator.num_processes > 1:
        for name, kept in outputs.items():
            outputs[name] = accelerator.reduce(kept.to(accelerator.device)).cpu()
    return outputs


def _empty(data: Data, like: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: torch.zeros(len(data.source), t.shape[1], dtype=t.dtype) for n, t in like.items()}


def _place(teacher: Teacher, data: Data, names: list[str], precision: str) -> Path | None:
    """Where the outputs of these texts lie; None for other examples, which are not told apart so easily."""
    if data.source.modality != "text":
        return None
    about = (names, data.settings.max_length, data.settings.task, precision)
    digest = hashlib.sha256(repr(about).encode())
    digest.update(f"{teacher.reader.pooling} {type(teacher.model).__name__} {torch.__version__}".encode())
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for number in range(len(data.source)):
        try:
            digest.update(repr(data.source.read(number).value).encode())
        except Exception:  # counted when it is used
            digest.update(b"?")
    return cache_folder() / "targets" / digest.hexdigest()[:32]
