"""Walk through libraries of models, and keep what each tells in a file."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ksurgeon.errors import FolderError, ModelNotFoundError
from ksurgeon.workers import cores
from tools.survey.limits import physical_memory
from tools.survey.pool import look_at_all
from tools.survey.result import Result, open_results
from tools.survey.tiny import LIBRARIES, names
from tools.survey.worker import Task

__all__ = ["SECONDS", "choose", "cores", "survey"]

SECONDS = 120
Progress = Callable[[int, int, str], None]


def choose(
    libraries: Sequence[str] = (), every: int = 1, only: Sequence[str] = (), convert: bool = False
) -> list[Task]:
    """The models that are asked for.

    Args:
        libraries: of ``LIBRARIES``; all of them where none is named.
        every: every N-th model of each library.
        only: names, or patterns of them such as ``swin*``, instead of all.
        convert: whether they are converted, too.

    Raises:
        ModelNotFoundError: a library is none of the three, or a name is that of no model in them.
    """
    unknown = [library for library in libraries if library not in LIBRARIES]
    if unknown:
        raise ModelNotFoundError(f"no library {unknown[0]!r} here; there are {', '.join(LIBRARIES)}")
    listed = {library: names(library) for library in libraries or LIBRARIES}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for known in listed.values() for name in known):
            raise ModelNotFoundError(
                f"no model {pattern!r} in {', '.join(listed)}; a survey takes one model of each of timm's "
                "modules, all of torchvision's, and transformers' by model type (patterns such as 'swin*' do)"
            )
    return [
        Task(library, name, convert)
        for library, known in listed.items()
        for name in known[::every]
        if not only or any(fnmatchcase(name, pattern) for pattern in only)
    ]


def survey(
    path: Path,
    tasks: Sequence[Task],
    *,
    workers: int | None = None,
    seconds: int = SECONDS,
    gibibytes: float | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> list[Result]:
    """Look at models in worker processes; returns all results that the file then has.

    Models that the file has a result of are left out, so that an interrupted survey goes on where it was. One
    that was not converted is looked at again where that is asked for.

    Args:
        path: file of results, one line of JSON a model; it is made where there is none.
        tasks: what ``choose`` gives.
        workers: processes, one thread each; as many as there are processors where none is given.
        seconds: CPU time that one model may take.
        gibibytes: memory that one process may take; an equal share of the machine's where none is given.
        again: whether models that failed are looked at again, with other limits, say.
        progress: called with the models done, all of them, and what became of the last.

    Raises:
        RecordError: the file holds something else.
        FolderError: the file cannot be written.
    """
    known = {(result.library, result.name): result for result in open_results(path)}
    left = [task for task in tasks if not _is_known(task, known.get((task.library, task.name)), again)]
    workers = workers or cores()
    gibibytes = gibibytes or physical_memory() / workers
    results = look_at_all(left, workers=workers, seconds=seconds, gibibytes=gibibytes)
    with path.open("a", encoding="utf-8") as file:
        for done, result in enumerate(results):
            known[result.library, result.name] = result
            try:
                file.write(result.model_dump_json(exclude_defaults=True) + "\n")
                file.flush()
            except OSError as error:
                raise FolderError(
                    f"{path} cannot be written: {error.strerror}; make room and go on"
                ) from error
            if progress is not None:
                progress(done, len(left), f"{result.library} {result.name}: {result.state}")
    if progress is not None:
        progress(len(left), len(left), "")
    return list(known.values())


def _is_known(task: Task, result: Result | None, again: bool) -> bool:
    failed = result is not None and bool(result.state == "failed" or (result.trip and result.trip.failed))
    if result is None or (again and failed):
        return False
    return not task.convert or result.trip is not None or result.state != "analysed"
