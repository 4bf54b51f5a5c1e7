"""German and English sentences that say the same, out of Debian packages."""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function

__all__ = ["Pair", "everything", "libreoffice"]

package_lists = find_function("fetch.py:package_lists", RecipeError, Path(__file__).parent)
unpack_deb = find_function("fetch.py:unpack_deb", RecipeError, Path(__file__).parent)


class Pair(NamedTuple):
    """A sentence in both languages, and the document that it is from."""

    document: str
    german: str
    english: str


class _Manual(NamedTuple):
    """A manual of which both languages have the same files with the same elements."""

    name: str
    packages: tuple[str, str]  # the German one, and the English one
    folders: tuple[str, str]
    suffix: str
    elements: str
    endings: tuple[str, str] = ("", "")  # of the files' names in German, and in English


_TEXT = "p|h1|h2|h3|h4|dt|td"
_MANUALS = (
    _Manual(
        "gnome",
        ("gnome-user-docs",) * 2,
        ("usr/share/help/de", "usr/share/help/C"),
        ".page",
        "p|title|desc|cite|td",
    ),
    _Manual(
        "gimp",
        ("gimp-help-de", "gimp-help-en"),
        ("usr/share/gimp/2.0/help/de", "usr/share/gimp/2.0/help/en"),
        ".html",
        _TEXT,
    ),
    _Manual(
        "handbook",
        ("debian-handbook",) * 2,
        ("usr/share/doc/debian-handbook/html/de-DE", "usr/share/doc/debian-handbook/html/en-US"),
        ".html",
        f"{_TEXT}|div",
    ),
    _Manual(
        "reference",
        ("debian-reference-de", "debian-reference-en"),
        ("usr/share/debian-reference",) * 2,
        ".html",
        _TEXT,
        (".de.html", ".en.html"),
    ),
)
_OFFICE = "usr/share/libreoffice/help/{}/text"
_MARKED = re.compile(r'<(p|h[1-6])\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)
_GERMAN_END = re.compile(r'(?<=[.!?:])\s+(?=[A-ZÄÖÜ„»"(])')
_ENGLISH_END = re.compile(r'(?<=[.!?:])\s+(?=[A-Z"(“])')


def libreoffice(folder: Path) -> Iterator[Pair]:
    """The help of LibreOffice: paragraphs of the same file with the same mark.

    Raises:
        RecipeError: this is no Debian, or the packages cannot be downloaded.
    """
    german = _files(unpack_deb("libreoffice-help-de", folder) / _OFFICE.format("de"), ".html")
    english = _files(unpack_deb("libreoffice-help-en-us", folder) / _OFFICE.format("en-US"), ".html")
    for name in sorted(german.keys() & english.keys()):
        ours, theirs = _marked(_read(german[name])), _marked(_read(english[name]))
        for mark, text in ours.items():
            if mark in theirs:
                yield from _sentences(f"libreoffice {name}", text, theirs[mark])


def everything(folder: Path) -> Iterator[Pair]:
    """The help of LibreOffice, four manuals, and the descriptions of all packages.

    Raises:
        RecipeError: this is no Debian, or the packages cannot be downloaded.
    """
    yield from libreoffice(folder)
    for manual in _MANUALS:
        yield from _of_manual(manual, folder)
    yield from _described(folder)


def _of_manual(manual: _Manual, folder: Path) -> Iterator[Pair]:
    german, english = (
        _files(unpack_deb(package, folder) / place, manual.suffix)
        for package, place in zip(manual.packages, manual.folders, strict=True)
    )
    for name, file in sorted(german.items()):
        other = english.get(name.replace(*manual.endings) if manual.endings[0] else name)
        if other is None or other == file:
            continue
        ours, theirs = (_elements(_read(one), manual.elements) for one in (file, other))
        if [kind for kind, _ in ours] == [kind for kind, _ in theirs]:
            for (_, text), (_, translated) in zip(ours, theirs, strict=True):
                yield from _sentences(f"{manual.name} {name}", text, translated)


def _described(folder: Path) -> Iterator[Pair]:
    """Descriptions of packages, paragraph by paragraph; packages of one family are one document."""
    lists = package_lists(folder, ("de", "en"))
    german, english = (_descriptions(lists[language], language) for language in ("de", "en"))
    for digest in sorted(german.keys() & english.keys()):
        (_, ours), (package, theirs) = german[digest], english[digest]
        if len(ours) == len(theirs):
            for text, translated in zip(ours, theirs, strict=True):
                yield from _sentences(f"description {package.split('-')[0]}", text, translated)


def _descriptions(text: str, language: str) -> dict[str, tuple[str, list[str]]]:
    """Packages and the paragraphs of their descriptions, by the digest of the English original."""
    found = {}
    for record in text.split("\n\n"):
        fields = {name: _field(record, name) for name in ("Package", "Description-md5")}
        described = _field(record, f"Description-{language}")
        if not described or not all(fields.values()):
            continue
        first, *lines = described.split("\n")
        paragraphs = "\n".join(line.strip() for line in lines).split("\n.\n")
        texts = (" ".join(paragraph.split()) for paragraph in paragraphs)
        found[fields["Description-md5"]] = fields["Package"], [first.strip(), *filter(None, texts)]
    return found


def _field(record: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}: (.*?)(?=^\S|\Z)", record, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in folder.rglob(f"*{suffix}") if file.is_file()}


def _read(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace")  # U+FFFD is counted where pairs are chosen


def _marked(text: str) -> dict[str, str]:
    """Paragraphs by their marks; the first where a mark stands twice."""
    texts: dict[str, str] = {}
    for found in _MARKED.finditer(text):
        texts.setdefault(found[2], _plain(found[3]))
    return texts


def _elements(text: str, names: str) -> list[tuple[str, str]]:
    """Names and texts of the elements that have no other of them inside."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    inner = rf"<({names})\b[^>]*>((?:(?!<(?:{names})\b).)*?)</\1>"
    return [(found[1], _plain(found[2])) for found in re.finditer(inner, text, re.DOTALL)]


def _plain(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


def _sentences(document: str, german: str, english: str) -> Iterator[Pair]:
    """Sentence by sentence where both have as many, otherwise the whole."""
    split: tuple[Callable[[str], list[str]], ...] = (_GERMAN_END.split, _ENGLISH_END.split)
    ours, theirs = (cut(text) for cut, text in zip(split, (german, english), strict=True))
    if len(ours) != len(theirs):
        ours, theirs = [german], [english]
    for one, other in zip(ours, theirs, strict=True):
        yield Pair(document, one.strip(), other.strip())
