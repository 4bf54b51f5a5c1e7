"""Text files of anybody: regular ones, of a size, and with nothing in them that breaks what comes after."""

import os

import pytest

from ksurgeon.files import parse_json, parse_toml, read_regular


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for strange in ("fifo", "/dev/zero", "."):
        with pytest.raises(OSError):
            read_regular(tmp_path / strange)
    (tmp_path / "text").write_text("é")
    (tmp_path / "link").symlink_to(tmp_path / "text")
    assert read_regular(tmp_path / "link") == "é"


def test_a_file_has_a_largest_size(tmp_path):
    (tmp_path / "text").write_bytes(b"x" * 11)
    assert len(read_regular(tmp_path / "text", 11)) == 11
    with pytest.raises(OSError, match="larger"):
        read_regular(tmp_path / "text", 10)


@pytest.mark.parametrize(
    "value", ["9" * 5000, str(2**70), "[" * 3000 + "]" * 3000, "[" * 70 + "]" * 70, r'"a\u0000b"', '"\ud800"']
)
def test_what_no_file_of_ours_holds_is_a_value_error(value):
    with pytest.raises(ValueError):
        parse_json(f'{{"a": {value}}}')
    with pytest.raises(ValueError):
        parse_toml(f"a = {value}")


def test_hexadecimal_numbers_have_a_limit_too():
    assert parse_toml("a = 0xff") == {"a": 255}
    with pytest.raises(ValueError, match="64 bits"):
        parse_toml("a = 0x" + "f" * 5000)
