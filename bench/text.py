"""Text from people and for people: files in any encoding, names in any spelling and bytes, lines for a terminal."""

import codecs
import os
import stat
import unicodedata
from pathlib import Path

import click

from bench.spec import UsageError

LARGEST = 2**20  # bytes of a text file
MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF8: "UTF-8-sig",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path, what: str, most: int = LARGEST) -> str:
    """A text file of the user's: UTF-8, or what its byte-order mark says, which is no part of it. Lines end in a \\n.

    ``what`` it is, for the message. Raises UsageError for a file that cannot be read, has more than ``most`` bytes, or
    is in no such encoding.
    """
    try:
        status = path.stat()
        if status.st_size > most or stat.S_ISFIFO(status.st_mode):
            raise UsageError(f"expected a {what} of at most {most} bytes in a file, got {printable(path)}")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the {what} {printable(path)}: {error.strerror}") from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is no {encoding.removesuffix('-sig')}"
        raise UsageError(f"cannot read the {what} {printable(path)}: {reason}; save it as UTF-8") from None
    if "\0" in text:
        reason = "it has zero bytes, as UTF-16 without a byte-order mark has"
        raise UsageError(f"cannot read the {what} {printable(path)}: {reason}; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def printable(name: Path | str) -> str:
    r"""The name of a file, whatever its bytes: those that are no UTF-8 as ``\xe9``."""
    return as_bytes(name).decode("utf-8", "backslashreplace")


def composed(name: str) -> str:
    """The name of a file as every system sorts and compares it: its bytes as UTF-8 whatever the locale, composed (NFC).

    A disk of macOS has ``é`` as two characters, others as one.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", as_bytes(name).decode("utf-8", "surrogateescape"))


def as_bytes(name: Path | str) -> bytes:
    """As the disk has it; in UTF-8 where the locale does not know its letters."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return str(name).encode("utf-8", "surrogateescape")


def plain(text: str) -> str:
    """``text`` on one line, for a terminal: what is no letter, digit, sign or blank is shown by its number.

    >>> plain("\x1b[2J") == r"\x1b[2J"
    True
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(text: str, err: bool = False) -> None:
    """A line for people, on standard output or standard error; whoever wrote the text does not move the cursor."""
    click.echo(plain(text), err=err)
