"""The data of the recipe translation: which pairs are taken, how they are aligned, and their vocabulary."""

import json

import pytest
from transformers import AutoTokenizer

from ksurgeon.errors import RecipeError
from ksurgeon.models.functions import find_function
from ksurgeon.recipes.schema import load_recipe
from tests.recipes.test_fetch import apt, deb

__all__ = ["apt"]

FOLDER = load_recipe("translation").folder


def function(name):
    return find_function(name, RecipeError, FOLDER)


DATA = function("translation_data.py:parallel").__globals__


def pairs(file):
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [(record["source"], record["target"]) for record in records]


def write(root, split, german, english):
    root.mkdir(exist_ok=True)
    for language, lines in (("de", german), ("en", english)):
        encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
        (root / f"{split}.{language}").write_bytes(b"".join(line + b"\n" for line in encoded))


def test_files_of_lines(tmp_path, monkeypatch, caplog):
    """Pairs with an empty side, of no UTF-8, and of 10,000 words are counted; the others stay in order."""
    monkeypatch.chdir(tmp_path)
    long = " ".join(["Wort"] * 10_000)
    german = ["\ufeffEine  Zeile\r", "", "Grüße", b"kaputt \xff", long, "kurz", "x\u2028y \x0c z"]
    write(tmp_path / "parallel", "train", german, ["One line", "empty", " ", "broken", "long", long, "x y"])
    write(tmp_path / "parallel", "valid", ["Tür"], ["Door"])
    write(tmp_path / "parallel", "test", ["Tür"], ["Door"])
    places = function("translation_data.py:parallel")(tmp_path / "cache")
    assert pairs(places["train"]) == [("Eine Zeile", "One line"), ("x y z", "x y")]
    assert pairs(places["valid"]) == pairs(places["test"]) == [("Tür", "Door")]
    counts = json.loads(places["train"].with_name("counts.json").read_text())
    assert counts == {
        "train": 2,
        "valid": 1,
        "test": 1,
        "left_out": {
            "with an empty side": 2,
            "with bytes that are no UTF-8": 1,
            "of more than 250 words": 2,
        },
    }
    assert "left out of 9 pairs: 2 of more than 250 words, 2 with an empty side, 1 with bytes" in caplog.text


def test_other_files_are_other_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parallel = function("translation_data.py:parallel")
    for split in ("train", "valid", "test"):
        write(tmp_path / "parallel", split, [f"eins {split}"], [f"one {split}"])
    first = parallel(tmp_path / "cache")
    assert parallel(tmp_path / "cache") == first
    write(tmp_path / "parallel", "train", ["zwei", "ein <pad>", "null\0"], ["two", "a <pad>", "null\0"])
    second = parallel(tmp_path / "cache")
    assert pairs(first["train"]) == [("eins train", "one train")]
    assert pairs(second["train"]) == [("zwei", "two")]
    left_out = json.loads(second["train"].with_name("counts.json").read_text())["left_out"]
    assert left_out == {"with <pad> or </s> in them": 1, "with bytes that are no UTF-8": 1}


@pytest.mark.parametrize("name", ["libreoffice", "debian", "parallel"])
def test_sacrebleu_is_asked_for_before_the_training(name, tmp_path, monkeypatch):
    prepare = function(f"translation_data.py:{name}")
    monkeypatch.setitem(prepare.__globals__, "find_spec", lambda package: None)
    with pytest.raises(
        RecipeError, match=r"sacrebleu is not installed.*pip install 'ksurgeon\[translation\]'"
    ):
        prepare(tmp_path)


def test_documents_of_debian_are_in_one_split(apt, tmp_path):
    """And no sentence of training is among those that are held out."""
    german, english = {}, {}
    for number in range(60):
        for language, files in (("de", german), ("en-US", english)):
            text = "".join(f'<p id="{k}">Das hier {number} ist {k} {language}</p>' for k in range(3))
            both = f'<p id="both">In allen Seiten steht {language}</p>'
            files[f"usr/share/libreoffice/help/{language}/text/page{number}.html"] = (text + both).encode()
    deb(apt / "libreoffice-help-de.deb", german)
    deb(apt / "libreoffice-help-en-us.deb", english)
    places = function("translation_data.py:libreoffice")(tmp_path / "cache")
    split_of = {}
    for split in ("train", "valid", "test"):
        for source, _ in pairs(places[split]):
            if source.startswith("Das"):
                assert split_of.setdefault(source.split()[2], split) == split
    assert len(split_of) == 60 and len(set(split_of.values())) == 3
    common = [split for split in ("train", "valid", "test") for s, _ in pairs(places[split]) if "allen" in s]
    assert common == ["train"]


def test_files_that_do_not_go_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parallel = function("translation_data.py:parallel")
    with pytest.raises(RecipeError, match=r"there is no train\.de, train\.en, valid\.de.* in .*parallel"):
        parallel(tmp_path / "cache")
    for split in ("train", "valid", "test"):
        write(tmp_path / "parallel", split, ["eins", "zwei"], ["one", "two"])
    (tmp_path / "parallel" / "valid.en").write_text("one\n")
    with pytest.raises(RecipeError, match=r"valid\.de and valid\.en .* one ends before line 2"):
        parallel(tmp_path / "cache")
    (tmp_path / "parallel" / "valid.en").write_text("\n\n")
    with pytest.raises(RecipeError, match="no pair is left for valid; left out were 2 with an empty side"):
        parallel(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_is_held_out_is_not_in_training():
    lines = [
        ("train", "a", "b"),
        ("train", "c", "d"),
        ("test", "a", "x"),
        ("valid", "y", "d"),
        ("test", "e", "f"),
    ]
    left_out = DATA["Counter"]()
    assert list(DATA["_apart"](lines, left_out)) == [lines[0], lines[1], lines[4]]
    assert dict(left_out) == {"held out that stand in training": 2}
    twice = [("train", "a", "b"), ("test", "a", "b"), ("train", "a", "c"), ("train", "d", "d")]
    assert list(DATA["_once"](twice, left_out)) == [twice[0], twice[2]]


def test_help_pages_are_aligned_by_their_marks(apt, tmp_path):
    german = """<p id="a">Öffnen Sie&nbsp;die <b>Datei</b>. Schließen Sie sie.</p>
        <h1 id="only">Nur hier</h1> <p id="b">Eins. Zwei. Drei.</p><p>ohne</p>"""
    english = """<p class="x" id="b">One. Two.</p><p id="a">Open the <i>file</i>. Close it.</p>"""
    place = "usr/share/libreoffice/help/{}/text/swriter/one.html"
    deb(apt / "libreoffice-help-de.deb", {place.format("de"): german.encode()})
    deb(apt / "libreoffice-help-en-us.deb", {place.format("en-US"): english.encode()})
    found = [tuple(pair) for pair in function("translation_debian.py:libreoffice")(tmp_path / "cache")]
    document = "libreoffice swriter/one.html"
    assert found == [
        (document, "Öffnen Sie die Datei.", "Open the file."),
        (document, "Schließen Sie sie.", "Close it."),
        (document, "Eins. Zwei. Drei.", "One. Two."),
    ]


def test_manuals_are_aligned_by_their_elements(apt, tmp_path):
    """Files with the same elements in the same order, and those alone."""
    debian = function("translation_debian.py:libreoffice").__globals__
    reference = next(manual for manual in debian["_MANUALS"] if manual.name == "reference")
    place = "usr/share/debian-reference/{}"
    german = {"one.de.html": b"<h1>Titel</h1><div><p>Ein Satz</p></div>", "two.de.html": b"<p>Text</p>"}
    english = {
        "one.en.html": b"<h1>Title</h1><!-- <p>no</p> --><p>A sentence</p>",
        "two.en.html": b"<h1>x</h1>",
    }
    for language, files in (("de", german), ("en", english)):
        content = {place.format(name): text for name, text in files.items()}
        deb(apt / f"debian-reference-{language}.deb", content)
    found = list(debian["_of_manual"](reference, tmp_path / "cache"))
    document = "reference one.de.html"
    assert found == [(document, "Titel", "Title"), (document, "Ein Satz", "A sentence")]


def test_descriptions_are_aligned_by_their_digests(tmp_path):
    lists = tmp_path / "package-lists-de-en"
    lists.mkdir()
    record = "Package: {}\nDescription-md5: {}\nDescription-{}: {}\n"
    german = "Ein Spiel\n Zeile eins\n geht weiter.\n .\n Zweiter Absatz."
    english = "A game\n line one\n goes on.\n .\n Second paragraph."
    records = [record.format("game-data", "1", "de", german), record.format("b", "2", "de", "Anderes")]
    (lists / "de.txt").write_text("\n".join(records))
    records = [record.format("game-data", "1", "en", english), record.format("b", "3", "en", "Other")]
    (lists / "en.txt").write_text("\n".join(records))
    described = function("translation_debian.py:libreoffice").__globals__["_described"]
    assert [tuple(pair) for pair in described(tmp_path)] == [
        ("description game", "Ein Spiel", "A game"),
        ("description game", "Zeile eins geht weiter.", "line one goes on."),
        ("description game", "Zweiter Absatz.", "Second paragraph."),
    ]


def test_the_vocabulary_holds_every_text(tmp_path):
    """Also letters and spaces that training never had; the most common words are one token."""
    DATA["_write_model"](tmp_path, ["Die Datei öffnen", "Open the file"] * 20, 400)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Die Datei öffnen", "漢字  with 🙂 two\tspaces", "<b>ß</b>"):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("Die Datei öffnen")["input_ids"]) == 4
    padded = tokenizer(["Open", "Open the file"], padding=True, return_tensors="pt")
    assert padded["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
