"""Stand-ins put in their places: once for many traces, by one thread at a time, and always taken away."""

import builtins
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ksurgeon.find.patches import Holder, Place, places, places_in
from ksurgeon.find.proxies import ValueTracer, current
from ksurgeon.torch_private import compilation_lock

__all__ = ["following", "one_at_a_time", "patch_globals", "patched"]

_ABSENT: Any = object()
_FAKE_TENSORS = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True)
class _Patch:
    holder: Holder
    name: str
    original: Any
    stand_in: Any


_lock = threading.RLock()
_present: list[_Patch] = []
# One for each original, ever: what has met it once, such as compiled code, knows it again.
_stand_ins: dict[tuple[Any, int], Any] = {}
_originals: dict[int, Any] = {}  # of stand-ins, by their id


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Inside, no other thread finds or traces, and nothing is traced, even if a forward that is got here."""
    with _lock, following(None):
        yield


@contextmanager
def following(tracer: ValueTracer | None) -> Iterator[None]:
    """Inside, stand-ins tell the tracer what this thread does; without one they do what originals do."""
    before = current.tracer
    try:
        current.tracer = tracer
        yield
    finally:
        current.tracer = before


@contextmanager
def patched() -> Iterator[None]:
    """Inside, stand-ins are in all their places; other threads that want them there wait, or to compile."""
    with _lock:
        if _present:
            yield
            return
        with _no_compilation():
            try:
                _FAKE_TENSORS.addFilter(_is_not_tracing)  # it logs a traceback of what a trace catches
                _put(places())
                yield
            finally:
                _end()


@contextmanager
def _no_compilation() -> Iterator[None]:
    """``torch.compile`` notes what stands where, some of it for good: inside, no other thread compiles.

    Its import notes types of torch. A trace imports it anyway, and must not while there are stand-ins.
    """
    with compilation_lock():
        yield


def patch_globals(scope: dict[str, Any]) -> None:
    """Put stand-ins among the globals of a forward, while all others are there."""
    _put(places_in(scope))


def _put(new: Iterable[Place]) -> None:
    patches = [patch for place in new if (patch := _patch(place))]
    _present.extend(patches)
    for patch in patches:
        _set(patch.holder, patch.name, patch.stand_in)


def _patch(place: Place) -> _Patch | None:
    """The patch for a place; None where there is nothing to patch, or a patch."""
    holder, name, make = place
    original = _names_in(holder).get(name, _ABSENT)
    if id(original) in _originals:
        if any(patch.holder is holder and patch.name == name for patch in _present):
            return None
        # Left over: another tool put back what it had found here.
        return _Patch(holder, name, _originals[id(original)], original)
    plain = original if original is not _ABSENT else getattr(builtins, name, None)
    if isinstance(holder, type):
        plain = getattr(holder, name)  # what a descriptor gives
    if plain is None:
        return None
    stand_in = _stand_ins.get((make, id(plain))) or make(plain)
    _stand_ins[make, id(plain)], _originals[id(stand_in)] = stand_in, plain
    return _Patch(holder, name, original, stand_in)


def _take_away() -> None:
    """Put the originals back, but where another tool has put something of its own meanwhile."""
    _FAKE_TENSORS.removeFilter(_is_not_tracing)
    for patch in reversed(_present):
        if _names_in(patch.holder).get(patch.name) is patch.stand_in:
            _set(patch.holder, patch.name, patch.original)


def _end() -> None:
    try:
        _take_away()
    except BaseException:  # a second Ctrl-C
        _take_away()
        raise
    finally:
        _present.clear()


def _is_not_tracing(_: object) -> bool:
    return current.tracer is None


def _names_in(holder: Holder) -> Any:
    return vars(holder) if isinstance(holder, type) else holder


def _set(holder: Holder, name: str, value: Any) -> None:
    if isinstance(holder, type):
        setattr(holder, name, value)
    elif value is _ABSENT:
        del holder[name]
    else:
        holder[name] = value


def _in_a_forked_child() -> None:
    """The thread that traced, and that holds the lock, is not there any more."""
    global _lock
    if not _lock._is_owned():  # type: ignore[attr-defined]
        _lock = threading.RLock()
        _end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_child)
