"""Targets that start with ``re:``: regular expressions that no name takes long to match.

Python's ``re`` takes exponential time for some expressions, such as ``(\\w+_?)+x``, and cannot be stopped. It
is used where an expression leaves few choices for a name; any other is matched here by sets of positions:
every part of it is tried once at every position, so that time grows with the square of the name.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["compile_target"]

_parser: Any = vars(re)["_parser"]
_constants: Any = vars(re)["_constants"]
_LONGEST, _DEEPEST, _MOST, _FAST = 1000, 20, 1000, 10**7
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S", "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W",
}  # fmt: skip

Matcher = Callable[[str], bool]
_Part = Callable[[str, int], frozenset[int]]
"""Where a part of an expression may end that begins at a position of a name."""


@lru_cache(maxsize=1024)
def compile_target(expression: str) -> Matcher:
    """What tells whether a name matches an expression in full.

    Raises:
        ValueError: it is no regular expression, too long, nested too deep, or one that repeats and refers
            back to a group or is possessive, too.
    """
    if len(expression) > _LONGEST:
        raise ValueError(f"not a regular expression of {_LONGEST} letters at most ({len(expression)})")
    try:
        compiled = re.compile(expression)
        tree = _parser.parse(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression ({error})") from error
    choices = _choices(tree, 0, 1)
    bounded = _sequence(tree, tree.state.flags) if choices > 1 else None

    def matches(name: str) -> bool:
        if bounded is None or (len(name) + 2) ** choices <= _FAST:
            return compiled.fullmatch(name) is not None
        return len(name) in bounded(name, 0)

    return matches


def _choices(tree: Any, depth: int, times: int) -> int:
    """How many repeats of varying length and alternatives there are; one that is repeated counts as many."""
    if depth > _DEEPEST:
        raise ValueError(f"not a regular expression nested at most {_DEEPEST} levels deep")
    number = 0
    for operator, argument in tree:
        name = str(operator)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = argument
            number += times * (low != high)
            number += _choices(inner, depth + 1, times * min(int(high), 99))
        elif name == "BRANCH":
            number += times * (len(argument[1]) - 1)
            number += sum(_choices(option, depth + 1, times) for option in argument[1])
        elif name in ("SUBPATTERN", "ATOMIC_GROUP"):
            number += _choices(argument[-1] if name == "SUBPATTERN" else argument, depth + 1, times)
        elif name in ("ASSERT", "ASSERT_NOT"):
            number += _choices(argument[1], depth + 1, times)
        elif name == "GROUPREF_EXISTS":
            number += sum(_choices(option, depth + 1, times) for option in argument[1:] if option)
    return number


def _sequence(tree: Any, flags: int) -> _Part:
    parts = [_part(operator, argument, flags) for operator, argument in tree]

    def ends(name: str, start: int) -> frozenset[int]:
        places = frozenset((start,))
        for part in parts:
            places = _all_ends(part, name, places)
        return places

    return _once_for_each_place(ends)


def _part(operator: Any, argument: Any, flags: int) -> _Part:
    match str(operator):
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
            return _letter(str(operator), argument, flags)
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _repeat(argument[0], argument[1], _sequence(argument[2], flags))
        case "SUBPATTERN":
            _, added, removed, inner = argument
            return _sequence(inner, (flags | added) & ~removed)
        case "BRANCH":
            options = [_sequence(option, flags) for option in argument[1]]
            return lambda name, start: frozenset().union(*(option(name, start) for option in options))
        case "AT":
            return _anchor(str(argument))
        case "ASSERT" | "ASSERT_NOT":
            return _look(argument[0], argument[1], flags, str(operator) == "ASSERT")
    raise ValueError(
        "not a regular expression whose time is bounded: it repeats, and refers back to a group or is "
        "possessive"
    )


def _letter(operator: str, argument: Any, flags: int) -> _Part:
    accepts = _one_of([(operator, argument)] if operator != "IN" else argument)
    if operator == "ANY":
        accepts = (lambda letter: True) if flags & re.DOTALL else (lambda letter: letter != "\n")
    spellings = (lambda letter: {letter, letter.lower(), letter.upper()}) if flags & re.I else (lambda _: {_})

    def ends(name: str, start: int) -> frozenset[int]:
        fits = start < len(name) and any(accepts(spelling) for spelling in spellings(name[start]))
        return frozenset((start + 1,)) if fits else frozenset()

    return ends


def _one_of(members: Sequence[tuple[Any, Any]]) -> Callable[[str], bool]:
    negated = False
    tests: list[Callable[[str], bool]] = []
    for operator, argument in members:
        match str(operator):
            case "NEGATE":
                negated = True
            case "LITERAL":
                tests.append(lambda letter, code=argument: ord(letter) == code)  # type: ignore[misc]
            case "NOT_LITERAL":
                tests.append(lambda letter, code=argument: ord(letter) != code)  # type: ignore[misc]
            case "RANGE":
                tests.append(lambda letter, ends=argument: ends[0] <= ord(letter) <= ends[1])  # type: ignore[misc]
            case "CATEGORY":
                tests.append(re.compile(_CATEGORIES[str(argument)]).match)  # type: ignore[arg-type]
    return lambda letter: any(test(letter) for test in tests) != negated


def _repeat(low: int, high: int, body: _Part) -> _Part:
    def ends(name: str, start: int) -> frozenset[int]:
        places, seen = frozenset((start,)), set[int]()
        for _ in range(min(low, len(name) + 1)):
            places = _all_ends(body, name, places)
        for _ in range(min(int(high) - low, len(name) + 1)):
            seen |= places
            places = _all_ends(body, name, places) - seen
            if not places:
                break
        return frozenset(seen | places)

    return _once_for_each_place(ends)


def _anchor(kind: str) -> _Part:
    tests: dict[str, Callable[[str, int], bool]] = {
        "AT_BEGINNING": lambda name, place: place == 0,
        "AT_BEGINNING_STRING": lambda name, place: place == 0,
        "AT_END": lambda name, place: place == len(name),
        "AT_END_STRING": lambda name, place: place == len(name),
        "AT_BOUNDARY": lambda name, place: re.compile(r"\b").match(name, place) is not None,
        "AT_NON_BOUNDARY": lambda name, place: re.compile(r"\B").match(name, place) is not None,
    }
    return lambda name, start: frozenset((start,)) if tests[kind](name, start) else frozenset()


def _look(direction: int, tree: Any, flags: int, expected: bool) -> _Part:
    """A look ahead, or back over a part whose width is known."""
    inner, (width, _) = _sequence(tree, flags), tree.getwidth()

    def ends(name: str, start: int) -> frozenset[int]:
        begin = start if direction > 0 else start - width
        found = begin >= 0 and inner(name, begin)
        return frozenset((start,)) if bool(found) == expected else frozenset()

    return ends


def _all_ends(part: _Part, name: str, places: frozenset[int]) -> frozenset[int]:
    return frozenset().union(*(part(name, place) for place in places))


def _once_for_each_place(part: _Part) -> _Part:
    return lru_cache(maxsize=_MOST)(part)
