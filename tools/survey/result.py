"""What a survey tells of one model, and the file that keeps it: one line of JSON a model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ksurgeon.errors import FolderError, RecordError

__all__ = ["Result", "State", "Trip", "open_results"]

State = Literal["analysed", "failed", "not run", "not built", "not installed"]


class Trip(BaseModel):
    """What became of an exact conversion.

    Attributes:
        failed: the first step that went wrong and how; empty if none did.
        replaced: sites that were replaced.
        steady: whether the model does not amplify rounding, in its outputs as one does that picks the best of
            its proposals, or in its gradients.
        change: of the outputs, relative to what they were.
        gradients: change of the gradients of what was not replaced, relative.
        generated: tokens that were compared; 0 where the model generates none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    failed: str = ""
    replaced: int = 0
    steady: bool = True
    change: float = 0.0
    gradients: float = 0.0
    generated: int = 0


class Result(BaseModel):
    """What a survey tells of one model.

    Attributes:
        library, name: the model.
        state: "analysed"; "failed": ksurgeon crashed, hung or ran out of memory; "not run": on no example
            inputs known; "not built"; "not installed": it needs a library that is not here.
        reason: why it was not analysed.
        seconds: CPU time that finding took.
        kinds: sites by kind.
        traced: modules traced.
        failures: modules not traced, by class and reason.
        parameters: entries of all parameters.
        linear: entries of those that take part in a matrix product, as the oracle tells.
        listed, replaceable: entries of those that are sites, and sites that can be replaced.
        missed: what the oracle saw and the finder is silent about.
        reasons: sites that cannot be replaced, by reason.
        trip: what became of an exact conversion, if one was asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    library: str
    name: str
    state: State
    reason: str = ""
    seconds: float = 0.0
    kinds: dict[str, int] = {}
    traced: int = 0
    failures: dict[str, int] = {}
    parameters: int = 0
    linear: int = 0
    listed: int = 0
    replaceable: int = 0
    missed: tuple[str, ...] = ()
    reasons: dict[str, int] = {}
    trip: Trip | None = None

    @property
    def untraced(self) -> int:
        """Modules that were not traced."""
        return sum(self.failures.values())


def open_results(path: Path) -> list[Result]:
    """The results in a file, the latest of each model; none where there is no file yet.

    A last line that an interrupted run wrote half is cut off.

    Raises:
        RecordError: the file holds something else.
        FolderError: it cannot be read or written.
    """
    try:
        path.touch()
        with path.open("r+b") as file:
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            results = _parse(whole.splitlines(), path)
            if len(whole) < len(content):
                if content[len(whole) : len(whole) + 1] != b"{":
                    raise _foreign(path, len(whole.splitlines()) + 1)
                file.truncate(len(whole))
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror}; name another file") from error
    return results


def _parse(lines: Iterable[bytes], path: Path) -> list[Result]:
    latest: dict[tuple[str, str], Result] = {}
    for number, line in enumerate(lines, 1):
        try:
            result = Result.model_validate_json(line)
        except ValidationError as error:
            raise _foreign(path, number) from error
        latest[result.library, result.name] = result
    return list(latest.values())


def _foreign(path: Path, number: int) -> RecordError:
    return RecordError(
        f"line {number} of {path} is no result of a survey by this version; name another file, or remove it"
    )
