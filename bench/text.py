"""Text and names that users bring: files in any encoding that says what it is, names in any spelling and bytes."""

import codecs
import os
import stat
import unicodedata
from pathlib import Path

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
        found = path.stat()
        if found.st_size > most or stat.S_ISFIFO(found.st_mode):
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
