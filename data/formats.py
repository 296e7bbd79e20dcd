"""What a file is: found from its first bytes, then from its name, and refused by what it is if it holds no text."""

import codecs
import re
import tarfile

from sentence_distill.data.errors import UserError
from sentence_distill.data.sources import HEAD_BYTES, Source
from sentence_distill.data.streams import compression_of, cut_short

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}
# UTF-32's begins with UTF-16's, so it comes first.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_UNPACK = "unpack it first, or name a file in it as fsspec does: "
_EXTRACT = "extract its text first, into a .txt file or JSON lines"
_NO_TEXT = (
    (b"PK\x03\x04", "a zip archive, or an Office file, which is one", f"{_UNPACK}zip://NAME::FILE.zip"),
    (b"PK\x05\x06", "an empty zip archive", "name a file that holds text"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (b"!<arch>\n", "an ar archive", "unpack it first"),
    (b"%PDF-", "a PDF", _EXTRACT),
    (b"%!PS", "PostScript", _EXTRACT),
    (b"{\\rtf", "RTF", _EXTRACT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", _EXTRACT),
    (b"\x89PNG\r\n", "a PNG image", "name a file that holds text"),
    (b"\xff\xd8\xff", "a JPEG image", "name a file that holds text"),
    (b"\x7fELF", "a program", "name a file that holds text"),
    (b"SQLite format 3\x00", "an SQLite database", "export its table as CSV or JSON lines"),
    (b"\x89HDF\r\n", "an HDF5 file", "write its text as Parquet or JSON lines"),
    (b"\x93NUMPY", "a NumPy array", "write its text as Parquet or JSON lines"),
    (b"Obj\x01", "an Avro file", "convert it to Parquet or JSON lines"),
)
# Letters that could begin a text as well: these files hold zero bytes too.
_NO_TEXT_WITH_ZEROS = (
    (b"GIF8", "a GIF image", "name a file that holds text"),
    (b"RIFF", "a RIFF file (sound, film or WebP)", "name a file that holds text"),
    (b"OggS", "an Ogg file", "name a file that holds text"),
    (b"ORC", "an ORC file", "convert it to Parquet"),
    (b"FEA1", "a Feather file of version 1", "write it as version 2, which is Arrow, or as Parquet"),
)
# A page, or a dump of a wiki.
_MARKUP = (
    (re.compile(rb"<!doctype\s+html|<html[\s>]", re.IGNORECASE), "an HTML page", _EXTRACT),
    (re.compile(rb"<mediawiki[\s>]"), "a dump of a wiki", "extract its articles with WikiExtractor first"),
    (re.compile(rb"<\?xml[\s?]"), "XML", _EXTRACT),
)

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FEWEST_CONTROLS, _CONTROL_SHARE = 8, 0.05


def detect_format(source: Source) -> str:
    """Return the one of `FORMATS` that a file has, from its first bytes if they are distinctive, else from its name.

    Raises:
        UserError: it can't be read, or holds no text: an archive, a page, an image.
    """
    with cut_short(source.name):
        head = source.head()
    name = source.plain_name.lower()
    named = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if named == "arrow" and head[:4] == b"\xff\xff\xff\xff":  # a stream, as `datasets` saves
        return "arrow"
    if head and named in ("parquet", "arrow"):
        raise UserError(f"{source.name} is named as {named}, and is none; check where it is from")
    return format_of_text(source.name, head, named)


def format_of_text(name: str, head: bytes, named: str | None = None) -> str:
    """Return the format of a file or stream that is neither Parquet nor Arrow.

    Args:
        name: of it, for messages.
        head: its first bytes, decompressed.
        named: the format that its name stands for.

    Raises:
        UserError: it holds no text.
    """
    refuse_no_text(name, head)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"<doc "):
        return "wikiextractor"
    if named in (None, "jsonl") and re.match(rb"\[\s*(\{\s*[\"}]|\])", start):
        return "json"
    if named is not None:
        return "json" if named == "jsonl" and start.startswith(b"[") and name.lower().endswith(".json") else named
    return "jsonl" if re.match(rb"\{\s*\"", start) else "text"


def refuse_no_text(name: str, head: bytes, *, markup: bool = True) -> None:
    """Refuse what is no text in UTF-8, by what it is.

    Args:
        name: of the file or stream, for messages.
        head: its first bytes, decompressed.
        markup: refuse pages and XML too; False if the user says what the file is.

    Raises:
        UserError: it says what, and what to do.
    """
    head = head[:HEAD_BYTES]
    # Most lines of the other encodings are UTF-8 too, with a zero byte at each letter.
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            raise UserError(f"{name} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8")
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for magic, what, advice in (*_NO_TEXT, *(_NO_TEXT_WITH_ZEROS if b"\0" in head else ())):
        if head.startswith(magic):
            raise UserError(f"{name} is {what}, not text; {advice}")
    for pattern, what, advice in _MARKUP if markup else ():
        # An XML declaration, a comment or a processing instruction may stand before the first tag.
        if pattern.match(start) or (start.startswith((b"<?xml", b"<!--")) and pattern.search(start)):
            raise UserError(f"{name} is {what}, not text; {advice}")
    if _is_tar(head):
        raise UserError(f"{name} is a tar archive, not text; {_UNPACK}tar://NAME::FILE.tar")
    if compression_of(head) is not None:
        raise UserError(f"{name} is compressed twice, or is a compressed file inside an archive; decompress it once")
    # A stray control character makes no binary file of a text.
    if (controls := len(_CONTROL.findall(head))) >= _FEWEST_CONTROLS and controls > _CONTROL_SHARE * len(head):
        if encoding := _unmarked_encoding(head):
            raise UserError(f"{name} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8")
        raise UserError(f"{name} is a binary file, not text; name a file that holds text")


def _is_tar(head: bytes) -> bool:
    """Return whether a tar archive begins with `head`; its header has a checksum, and no magic in old ones."""
    if len(head) < 512 or not head[:512].strip(b"\0"):
        return False
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unmarked_encoding(head: bytes) -> str:
    """Return the encoding of text of mostly ASCII letters without a byte-order mark, or ""."""
    even, odd = head[0 : len(head) // 2 * 2 : 2], head[1::2]
    for zeros, encoding in ((odd, "UTF-16LE"), (even, "UTF-16BE")):
        others = even if zeros is odd else odd
        if len(zeros) > 1 and zeros.count(0) > 0.7 * len(zeros) and others.count(0) < 0.1 * len(others):
            return encoding
    return ""
