"""Whether a teacher can teach a student, found out before the training."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ksurgeon.calibrate.preprocess import Batch
from ksurgeon.errors import KsurgeonError, TrainingError
from ksurgeon.find.inputs import as_call, evaluating, tensors_of
from ksurgeon.train.blocks import pair_blocks
from ksurgeon.train.objective import Objective, Teacher
from ksurgeon.train.outputs import Reader, term_of
from ksurgeon.train.settings import Settings

__all__ = ["match_teacher"]

_ADVICE = "give the model that the student was made from, or one of the same inputs and outputs"


def match_teacher(objective: Objective, teacher: nn.Module, first: Batch, settings: Settings) -> Teacher:
    """The teacher, once it is known that it can teach this student.

    Args:
        objective: is given the pairs of blocks that can be compared, and projections where widths differ.
        first: a batch, on the device of both models.

    Raises:
        TrainingError: teacher or student does not run on the batch, or the teacher's outputs have other names
            or shapes.
    """
    model = objective.student
    pairs = pair_blocks(model, teacher) if objective.wants("hidden") else []
    asked = Teacher(
        teacher, Reader(settings.task, teacher, objective.reader.pooling), [its for _, its in pairs]
    )
    objective.pairs = pairs
    with _running("teacher", teacher, first):
        targets = asked(first)
    with _running("student", model, first):
        objective.fit_projections(first, targets)
        asked.blocks = tuple(its for _, its in objective.pairs)
        with evaluating(objective):
            _, outputs = objective.terms_and_outputs({**first, "labels": None}, None)
    common = outputs.keys() & targets.keys()
    if not common and not objective.pairs and first.get("labels") is None:
        raise TrainingError(
            f"teacher and student do not match: the teacher gives {_shapes(targets)}, the student "
            f"{_shapes(outputs)}; {_ADVICE}"
        )
    for name in sorted(name for name in common if objective.wants(term_of(name))):
        if outputs[name].shape != targets[name].shape:
            raise TrainingError(
                f"teacher and student do not match: {name} is {tuple(targets[name].shape)} of the teacher "
                f"and {tuple(outputs[name].shape)} of the student, the batch first; {_ADVICE}, or set "
                f"weights.{term_of(name)} = 0"
            )
    return asked


@contextmanager
def _running(who: str, model: nn.Module, first: Batch) -> Iterator[None]:
    try:
        yield
    except KsurgeonError:
        raise
    except Exception as error:
        first_line = (str(error).strip() or "no message").splitlines()[0]
        own, given = _dtypes(list(model.parameters())), _dtypes(tensors_of(as_call(first["inputs"])))
        advice = f"; {_ADVICE}" if who == "teacher" else ""
        if given and own != given:
            advice = (
                f": its parameters are {own}, the data {given}; bring the model to the data's dtype, as by "
                'model.float(); precision="bf16" then computes in half precision'
            )
        matter = "teacher and student do not match: " if who == "teacher" else ""
        raise TrainingError(
            f"{matter}the {who} does not run on the student's inputs ({type(error).__name__}: {first_line})"
            f"{advice}"
        ) from error


def _dtypes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(t.dtype) for t in tensors if t.is_floating_point()}))


def _shapes(outputs: dict[str, Tensor]) -> str:
    own = {name: tensor for name, tensor in outputs.items() if not name.startswith("hidden.")}
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in own.items()) or "nothing"
