"""Debian packages are opened without installing them."""

import io
import os
import tarfile

import pytest

from ksurgeon.errors import RecipeError
from recipes.fetch import descriptions, package_lists, unpack_deb


def deb(file, members):
    """An archive of ``ar`` as dpkg-deb writes it: a version, an empty control part, and the content."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(f"./{name}")
            if isinstance(data, bytes):
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            else:
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": content.getvalue()}
    with file.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for name, data in parts.items():
            stream.write(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode())
            stream.write(data + b"\n" * (len(data) % 2))


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An ``apt-get`` that has one package, ``pictures``."""
    place = tmp_path / "bin"
    place.mkdir()
    program = place / "apt-get"
    program.write_text(f'#!/bin/sh\nexec cp "{place}/$2.deb" .\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    return place


def test_a_package_with_a_link_into_another_one(apt, tmp_path):
    deb(apt / "pictures.deb", {"usr/a.txt": b"of a", "usr/font.ttf": "../share/not-here.ttf"})
    place = unpack_deb("pictures", tmp_path / "cache")
    assert (place / "usr" / "a.txt").read_text() == "of a"
    assert (place / "usr" / "font.ttf").is_symlink()
    (apt / "pictures.deb").unlink()
    assert unpack_deb("pictures", tmp_path / "cache") == place


def test_a_package_that_there_is_not(apt, tmp_path):
    with pytest.raises(RecipeError, match="apt-get download nothing failed"):
        unpack_deb("nothing", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_lists_of_packages(tmp_path, monkeypatch):
    """apt is asked for the languages alone, and only the lists stay."""
    german, english = "Package: a\nDescription-de: Spiel\n", "Package: a\nDescription-en: A good game\n"
    monkeypatch.setattr(
        "recipes.fetch._run",
        lambda command, where, environment=None: _apt(command, where, {"de": german, "en": english}),
    )
    assert package_lists(tmp_path, ("de", "en")) == {"de": german, "en": english}
    kept = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.txt")}
    assert kept == {"package-lists-de-en/de.txt", "package-lists-de-en/en.txt"}
    assert descriptions(tmp_path) == ["A good game"]


def _apt(command, where, lists):
    if command[0] == "apt-get":
        asked = (where / "apt.conf").read_text().split("Acquire::Languages ")[1]
        for language in lists:
            if f'"{language}";' in asked:
                (where / "lists" / f"bookworm_Translation-{language}").write_text("packed")
        return ""
    return lists[command[-1].rpartition("-")[2]]
