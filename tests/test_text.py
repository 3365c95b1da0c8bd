"""Text files of the user's in every encoding that says what it is, and one line for those that do not."""

import os

import pytest

from bench.options.options import load_suite
from bench.spec import UsageError
from bench.text import composed, printable, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding):
    (tmp_path / "a").write_bytes("é = 1\r\nb = 2\r".encode(encoding))
    assert read_text(tmp_path / "a", "file") == "é = 1\nb = 2\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("é".encode("latin-1"), "byte 0 is no UTF-8; save it as UTF-8"),
        (b"\xef\xbb\xbfa\xff", "is no UTF-8; save it as UTF-8"),
        (b"\xff\xfea", "is no UTF-16; save it as UTF-8"),
        ("ab".encode("utf-16-le"), "it has zero bytes, as UTF-16 without a byte-order mark has; save it as UTF-8"),
    ],
)
def test_other_bytes(tmp_path, data, reason):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UsageError, match=f"cannot read the suite {tmp_path / 'a'}: .*{reason}"):
        read_text(tmp_path / "a", "suite")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"expected a list of at most 1048576 bytes in a file, got \S+pipe"):
        read_text(tmp_path / "pipe", "list")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_suite_as_an_editor_of_windows_saves_it(tmp_path, encoding):
    (tmp_path / "mine.toml").write_bytes('description = "é"\r\nseeds = "2"\r\n'.encode(encoding))
    assert load_suite(str(tmp_path / "mine.toml")) == {"description": "é", "seeds": "2"}


def test_names_of_files():
    assert printable(os.fsdecode(b"caf\xe9/\xc3\xa9.png")) == r"caf\xe9/é.png"
    assert composed("e\u0301") == composed("é") == "é"
