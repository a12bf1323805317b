"""Captions of videos: what models with text read beside, or instead of, the frames.

A file of captions names videos and what can be seen in them:

- CSV or TSV with a header: a column `path`, `video`, `video_id`, `filename` or `id`, and `caption`,
  `captions`, `description` or any of these with a number (`description_0`, `description_1`, ...);
- JSON lines with the same names as keys, or one JSON list of such objects: the files of Memento10k
  as its authors give them out;
- no header, `NAME<TAB>words-joined-by-hyphens`: VideoMem's file.

Several captions of a video stand in several lines, in several columns or in a JSON list. One that
is given twice counts twice, as in training.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from memcli.errors import UsageError, VideoError, VideoErrorCode
from memcli.inputs import VIDEO_SUFFIXES
from memcli.spec import MAX_CAPTION_LENGTH, MAX_CAPTIONS
from memcli.text import decodable, printable, unhyphenated

MAX_FILE_BYTES = 1 << 30
NAME_COLUMNS = ("path", "video", "video_id", "filename", "id")
_CAPTION_COLUMN = re.compile(r"(captions?|descriptions?)(_?\d+)?")
_LIST = re.compile(r"\s*\[\s*(\{|\]|$)")
"""How a JSON list of objects begins; a name may begin with a bracket, too."""
_DIGEST_LENGTH = 12


class CaptionSource(Protocol):
    """Where scoring gets captions from."""

    @property
    def name(self) -> str:
        """What was searched, for messages."""
        ...

    @property
    def digest(self) -> str:
        """Changes with any caption: rows made with others are not mixed."""
        ...

    def of(self, video: str) -> tuple[str, ...]:
        """The captions of a video, at least one. Raises VideoError (NO_CAPTION)."""
        ...


@dataclass(frozen=True)
class Captions:
    """Captions by video. Made by `read_captions` or `captions_from`."""

    name: str
    """The file, as named."""
    entries: Mapping[str, tuple[str, ...]]
    """By the video's name in the file: a path, a file name, or one without its ending."""
    empty: int = 0
    """Captions that were left out because there is nothing in them."""
    _paths: dict[str, list[str]] = field(init=False, repr=False, default_factory=dict)
    _names: dict[str, list[str]] = field(init=False, repr=False, default_factory=dict)
    _stems: dict[str, list[str]] = field(init=False, repr=False, default_factory=dict)
    _numbers: dict[str, list[str]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.entries:
            parts = _parts(key)
            self._paths.setdefault("/".join(parts), []).append(key)
            if parts:
                self._names.setdefault(parts[-1], []).append(key)
                self._stems.setdefault(_stem(parts[-1]), []).append(key)
                if parts[-1].isdecimal():
                    self._numbers.setdefault(_number(parts[-1]), []).append(key)

    @property
    def digest(self) -> str:
        """Names the content; the order of a video's captions counts, that of the videos not."""
        content = json.dumps(sorted(self.entries.items()))
        return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_LENGTH]

    def of(self, video: str) -> tuple[str, ...]:
        """The captions of the video at a path.

        The entry is found by path (the longest one that the video's path ends with), else by file
        name whatever its folder, else by name without ending (of a number without leading zeros),
        unless that is of another video in the same folder (`b.mp4` beside `b.mkv`). Raises
        VideoError (NO_CAPTION) if there is none, or several fit equally well, naming them.
        """
        found = self._find(video)
        if not found:
            raise VideoError(
                VideoErrorCode.NO_CAPTION, f"no caption of it in {printable(self.name)}"
            )
        if len(found) > 1:
            first, second = (printable(key) for key in found[:2])
            raise VideoError(
                VideoErrorCode.NO_CAPTION,
                f"{printable(self.name)} has captions of {first} and of {second}: "
                "which are of this video?",
            )
        return self.entries[found[0]]

    def fitting(self, video: str) -> list[str]:
        """Names in the file that fit a video's path equally well."""
        return self._find(video)

    def unused(self, videos: Iterable[str]) -> list[str]:
        """Names in the file that none of these videos' paths fits."""
        used = {key for video in videos for key in self._find(video)}
        return [key for key in self.entries if key not in used]

    def _find(self, video: str) -> list[str]:
        parts = _parts(os.path.abspath(video))  # noqa: PTH100 (Path would keep `..`)
        for start in range(len(parts)):
            if found := self._paths.get("/".join(parts[start:])):
                return found
        name = parts[-1] if parts else ""
        stem = _stem(name)
        if found := self._names.get(name) or self._names.get(stem):
            return found
        if stem.isdecimal() and (found := self._numbers.get(_number(stem))):
            return found  # 1 of Memento10k's tables is 00001.mp4
        folder = os.path.dirname(video)  # noqa: PTH120 (Path would change undecodable names)
        return [key for key in self._stems.get(stem, ()) if not _lies_in(folder, _parts(key)[-1])]


def captions_from(
    value: Captions | Mapping[str, str | Sequence[str]] | str | os.PathLike[str],
) -> Captions:
    """Captions as the Python API takes them: read already, a mapping by video, or a file.

    Raises UsageError as `read_captions` does.
    """
    if isinstance(value, Captions):
        return value
    if isinstance(value, Mapping):
        pairs = ((key, _several(key, text)) for key, text in value.items())
        return _collected("the given captions", ((None, key, texts) for key, texts in pairs))
    return read_captions(Path(value))


def _several(key: Any, texts: Any) -> Sequence[Any]:
    if isinstance(texts, str):
        return (texts,)
    if isinstance(texts, Sequence):
        return texts
    raise UsageError(
        f"the captions of {printable(str(key))} are {type(texts).__name__}, not text",
        next_step="Give one caption or a list of them for each video.",
    )


def read_captions(path: Path) -> Captions:
    """Read a file of captions; see the top of this module for its forms.

    Raises UsageError, naming the line, if it cannot be read, is not UTF-8, names no videos or
    captions, or is larger than sense.
    """
    text = _read_text(path)
    try:
        return _collected(str(path), _entries(path, text))
    except (csv.Error, RecursionError) as error:
        raise UsageError(f"this file of captions is damaged: {error}", where=str(path)) from error


_Entry = tuple[int | str | None, Any, Sequence[Any]]
"""Line, or what says as well where it is; the video's name; its captions."""


def _collected(where: str, entries: Iterable[_Entry]) -> Captions:
    found: dict[str, list[str]] = {}
    empty = 0
    for line, name, texts in entries:
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not _parts(name):
            raise _wrong(where, line, "it names no video")
        captions = found.setdefault(name.strip(), [])
        for caption in texts:
            if not isinstance(caption, str):
                raise _wrong(where, line, f"a caption is {type(caption).__name__}, not text")
            if len(caption) > MAX_CAPTION_LENGTH:
                raise _wrong(
                    where, line, f"a caption is longer than {MAX_CAPTION_LENGTH:,} characters"
                )
            if clean := decodable(caption.strip()):
                captions.append(clean)
            else:
                empty += 1
        if len(captions) > MAX_CAPTIONS:
            raise _wrong(where, line, f"more than {MAX_CAPTIONS} captions of one video")
    kept = {name: tuple(captions) for name, captions in found.items() if captions}
    if not kept:
        raise UsageError("no captions in it", where=where)
    return Captions(where, kept, empty)


def _wrong(
    where: str, line: int | str | None, what: str, next_step: str | None = None
) -> UsageError:
    place = f"line {line}" if isinstance(line, int) else line
    return UsageError(
        what, where=where if place is None else f"{where}, {place}", next_step=next_step
    )


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            other = "a folder" if path.is_dir() else "a pipe or device"
            what = f"this is {other}, no file" if path.exists() else "no such file"
            raise UsageError(f"{what} of captions", where=str(path))
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"the captions cannot be read: {error.strerror or error}", where=str(path)
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"larger than {MAX_FILE_BYTES >> 30} GiB", where=str(path))
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise _wrong(str(path), 1, "the file is UTF-16, not UTF-8", _SAVE_AS)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong(str(path), line, "this is not UTF-8 text", _SAVE_AS) from error
    if (place := text.find("\0")) >= 0:
        raise _wrong(str(path), text.count("\n", 0, place) + 1, "this is no text: a zero byte")
    return text


_SAVE_AS = "Save the file as UTF-8."


def _entries(path: Path, text: str) -> Iterator[_Entry]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lstrip().startswith("{"):
        return _json_entries(path, text)
    if _LIST.match(first):
        return _listed_entries(path, text)
    delimiter = "\t" if "\t" in first else ","
    header = next(csv.reader([first], delimiter=delimiter), [])
    if _columns(header) is not None:
        return _table_entries(path, text, delimiter)
    if delimiter == "\t" and first.count("\t") == 1 and path.suffix.lower() != ".csv":
        return _hyphenated_entries(path, text)
    raise UsageError(
        "its first line does not name a column of videos and one of captions",
        where=str(path),
        next_step=("Separate its columns by commas, not semicolons.\n" if ";" in first else "")
        + f"Videos: {', '.join(NAME_COLUMNS)}\n"
        "Captions: caption, or description_0, description_1, ...",
    )


def _columns(header: Sequence[str]) -> tuple[int, list[int]] | None:
    """Places of the video's name and of the captions, or None if one of them is not there."""
    names = [name.strip().lower() for name in header]
    place = next((names.index(name) for name in NAME_COLUMNS if name in names), None)
    texts = [i for i, name in enumerate(names) if _CAPTION_COLUMN.fullmatch(name)]
    return None if place is None or not texts else (place, texts)


def _table_entries(path: Path, text: str, delimiter: str) -> Iterator[_Entry]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    columns: tuple[int, list[int]] | None = None
    width = 0
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns, width = _columns(row), len(row)
                if columns is None:
                    raise _wrong(str(path), reader.line_num, "this is not the header")
                continue
            if len(row) > width:
                raise _wrong(
                    str(path),
                    reader.line_num,
                    f"{len(row)} cells, where the header has {width}",
                    'Captions that hold the separator need quotes: "a man, a dog"',
                )
            place, texts = columns
            row += [""] * (width - len(row))
            captions = [caption for i in texts for caption in _listed(_unguarded(row[i]))]
            yield reader.line_num, row[place], captions
    except csv.Error as error:
        raise _wrong(str(path), reader.line_num, f"no CSV: {error}") from error


def _unguarded(cell: str) -> str:
    """Without the apostrophe that tables put before what a spreadsheet takes for a formula."""
    return cell[1:] if cell.startswith(("'=", "'+", "'-", "'@")) else cell


def _listed(cell: str) -> list[Any]:
    """A cell's captions: those of a JSON list, else the cell itself; none if it is empty."""
    if cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]  # a caption that begins with a bracket
        if all(isinstance(one, str) for one in value):
            return list(value)
    return [cell]


def _json_entries(path: Path, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _wrong(str(path), number, f"no JSON: {error}") from error
        yield _object_entry(path, number, value)


def _listed_entries(path: Path, text: str) -> Iterator[_Entry]:
    """Of a JSON list of objects."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise _wrong(str(path), error.lineno, f"no JSON: {error.msg}") from error
    except ValueError as error:  # a number of thousands of digits
        raise _wrong(str(path), None, f"no JSON: {error}") from error
    for number, value in enumerate(values, start=1):
        yield _object_entry(path, f"entry {number:,} of the list", value)


def _object_entry(path: Path, place: int | str, value: Any) -> _Entry:
    columns = _columns(list(value)) if isinstance(value, dict) else None
    if columns is None:
        raise _wrong(
            str(path),
            place,
            "it does not name a video and a caption",
            f"Keys of the video: {', '.join(NAME_COLUMNS)}; of its captions: caption",
        )
    cells = list(value.values())
    captions: list[Any] = []
    for column in columns[1]:
        cell = cells[column]
        captions += cell if isinstance(cell, list) else ["" if cell is None else cell]
    return place, cells[columns[0]], captions


def _hyphenated_entries(path: Path, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) == 3 and not cells[2].strip():
            del cells[2]
        if len(cells) != 2:
            raise _wrong(str(path), number, "this is not NAME, a tab and a caption")
        yield number, cells[0], [unhyphenated(cells[1])]


def _parts(path: str) -> list[str]:
    """The parts of a path; `./` and doubled slashes do not count."""
    return [part for part in path.strip().split("/") if part not in ("", ".")]


def _number(name: str) -> str:
    return name.lstrip("0") or "0"


def _lies_in(folder: str, name: str) -> bool:
    """Whether a name in the file is that of another video in this folder."""
    return _stem(name) != name and os.path.lexists(os.path.join(folder, name))  # noqa: PTH118


def _stem(name: str) -> str:
    """A file name without the ending of a video: other dots belong to the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and stem and f".{suffix.lower()}" in VIDEO_SUFFIXES else name
