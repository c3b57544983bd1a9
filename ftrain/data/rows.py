"""The rows of a table in a file: CSV, TSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ftrain.errors import DataError
from ftrain.text import shown

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
INSTALL = "reading .parquet files needs pyarrow, an extra: `pip install '.[parquet]'`"
_BATCH = 256  # rows of a Parquet file in memory
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      number: by which a person finds it: of a text file the line on which it ends, of a Parquet file counted from 1.
      values: by column: strings from CSV and TSV, and whatever there is in other files.
    """

    number: int
    values: Mapping[str, Any]


Reading = Callable[[Collection[str]], Iterator[Row]]  # the rows, with at least the columns of these names


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path has the name of a table, and is no folder.

    >>> is_table("photos/Labels.CSV"), is_table("photos")
    (True, False)
    """
    return os.fspath(path).lower().endswith(SUFFIXES) and not os.path.isdir(path)


def read_rows(path: Path, *, most: int | None = None) -> tuple[list[str], Reading]:
    """The names of the columns of a table, and how to read its rows. The kind of the file is told by its suffix, in any
    case.

    Args:
      most: bytes of a text file that are read, without a line that ends after them; None for all.

    Raises:
      DataError: at once or while the rows are read, if the file cannot be read as what its suffix says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder) / "labels.csv"
    ...     _ = table.write_text("path,label\\n1.png,cat\\n")
    ...     columns, rows = read_rows(table)
    ...     columns, list(rows(columns))
    (['path', 'label'], [Row(number=2, values={'path': '1.png', 'label': 'cat'})])
    """
    try:
        return _READERS[path.suffix.lower()](path, most)
    except OSError as error:
        raise DataError(f"cannot read the table {shown(path)}: {error.strerror or error}") from error


def _csv(path: Path, most: int | None) -> tuple[list[str], Reading]:
    """With commas, or with semicolons, as spreadsheets write where the comma is the decimal sign."""
    return _separated(path, ",;", most)


def _tsv(path: Path, most: int | None) -> tuple[list[str], Reading]:
    return _separated(path, "\t", most)


def _separated(path: Path, delimiters: str, most: int | None) -> tuple[list[str], Reading]:
    """With the first of the delimiters that the first line has."""
    text = _text(path, most)
    header = text.partition("\n")[0]
    delimiter = next((each for each in delimiters if each in header), delimiters[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def records() -> Iterator[list[str]]:
        while True:
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"cannot read the table {shown(path)} as {path.suffix[1:].upper()}: row {reader.line_num}: {error}"
                ) from error
            if any(cell.strip() for cell in record):
                yield record

    found = records()
    columns = [name.strip() for name in next(found, [])]

    def rows(_: Collection[str]) -> Iterator[Row]:
        for record in found:
            if len(record) != len(columns):
                raise DataError(
                    f"{shown(path)}, row {reader.line_num}: expected {len(columns)} cells, one for each column; found "
                    f"{len(record)}. A cell that contains the separator must be in double quotes"
                )
            yield Row(reader.line_num, dict(zip(columns, record, strict=True)))

    return columns, rows


def _json_lines(path: Path, most: int | None) -> tuple[list[str], Reading]:
    found = []
    for number, line in enumerate(_text(path, most).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"cannot read the table {shown(path)}: row {number} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(
                f"{shown(path)}, row {number}: expected a JSON object such as "
                f'{{"path": "1.jpg", "label": "cat"}}; found a {type(values).__name__}'
            )
        found.append(Row(number, {name.strip(): value for name, value in values.items()}))
    columns = list(dict.fromkeys(name for row in found for name in row.values))
    return columns, lambda _: (Row(number, {**dict.fromkeys(columns), **values}) for number, values in found)


def _parquet(path: Path, _: int | None) -> tuple[list[str], Reading]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"cannot read the table {shown(path)}: {INSTALL}")
    import pyarrow
    from pyarrow import parquet

    @contextmanager
    def as_data_error() -> Generator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, LookupError, TypeError) as error:
            if isinstance(error, OSError) and error.strerror:
                raise DataError(f"cannot read the table {shown(path)}: {error.strerror}") from error
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"cannot read the table {shown(path)} as Parquet: {shown(cause)}") from error

    with as_data_error():
        file = parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)

    def rows(needed: Collection[str]) -> Iterator[Row]:
        number = 0
        own = [name for name in columns if name.strip() in needed]
        with as_data_error(), file:
            # Threads do not survive the fork of workers.
            for batch in file.iter_batches(batch_size=_BATCH, columns=own, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, {name.strip(): value for name, value in values.items()})

    return [name.strip() for name in columns], rows


def _text(path: Path, most: int | None) -> str:
    with open(path, "rb") as file:
        data = file.read(-1 if most is None else most)
    if len(data) == most:
        data = data[: data.rfind(b"\n") + 1]
    if data.startswith(_UTF_16_OR_32):
        raise DataError(f"cannot read the table {shown(path)}: it is in UTF-16 or UTF-32; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"cannot read the table {shown(path)}: row {row} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"cannot read the table {shown(path)}: row {row} contains a NUL character, so that it is no table; save it "
            "again as text in UTF-8"
        )
    return text


_READERS: dict[str, Callable[[Path, int | None], tuple[list[str], Reading]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
