"""The rows of a table in a file: CSV, TSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ftrain.errors import DataError
from ftrain.text import shown

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
INSTALL = "reading .parquet files needs pyarrow, an extra: `pip install '.[parquet]'`"
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      number: by which a person finds it: of a text file the line on which it ends, of a Parquet file counted from 1.
      values: by column: strings from CSV and TSV, and whatever there is in other files.
    """

    number: int
    values: Mapping[str, Any]


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path has the name of a table.

    >>> is_table("photos/Labels.CSV"), is_table("photos")
    (True, False)
    """
    return os.fspath(path).lower().endswith(SUFFIXES)


def read_rows(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The names of the columns of a table, and its rows. The kind of the file is told by its suffix, in any case.

    Raises:
      DataError: at once or while the rows are read, if the file cannot be read as what its suffix says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder) / "labels.csv"
    ...     _ = table.write_text("path,label\\n1.png,cat\\n")
    ...     columns, rows = read_rows(table)
    ...     columns, list(rows)
    (['path', 'label'], [Row(number=2, values={'path': '1.png', 'label': 'cat'})])
    """
    try:
        return _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"cannot read the table {shown(path)}: {error.strerror or error}") from error


def _csv(path: Path) -> tuple[list[str], Iterator[Row]]:
    return _separated(path, ",")


def _tsv(path: Path) -> tuple[list[str], Iterator[Row]]:
    return _separated(path, "\t")


def _separated(path: Path, delimiter: str) -> tuple[list[str], Iterator[Row]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)

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

    def rows() -> Iterator[Row]:
        for record in found:
            if len(record) != len(columns):
                raise DataError(
                    f"{shown(path)}, row {reader.line_num}: expected {len(columns)} cells, one for each column; found "
                    f"{len(record)}. A cell that contains the separator must be in double quotes"
                )
            yield Row(reader.line_num, dict(zip(columns, record, strict=True)))

    return columns, rows()


def _json_lines(path: Path) -> tuple[list[str], Iterator[Row]]:
    found = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
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
    return columns, iter([Row(number, {**dict.fromkeys(columns), **values}) for number, values in found])


def _parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"cannot read the table {shown(path)}: {INSTALL}")
    import pyarrow
    from pyarrow import parquet

    def failure(error: Exception) -> DataError:
        return DataError(f"cannot read the table {shown(path)} as Parquet: {shown(str(error).splitlines()[0])}")

    try:
        file = parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)
    except pyarrow.ArrowException as error:
        raise failure(error) from error

    def rows() -> Iterator[Row]:
        number = 0
        try:
            with file:
                for batch in file.iter_batches(use_threads=False):  # threads do not survive the fork of workers
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(number, {name.strip(): value for name, value in values.items()})
        except pyarrow.ArrowException as error:
            raise failure(error) from error

    return [name.strip() for name in columns], rows()


def _text(path: Path) -> str:
    data = path.read_bytes()
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


_READERS: dict[str, Callable[[Path], tuple[list[str], Iterator[Row]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
