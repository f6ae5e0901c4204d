"""Remember what is done: a journal written as a run goes, and a table at its end."""

import csv
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from ..errors import ExistingFileError, FileAccessError, UserError
from ..files import write_text
from .storage import is_uri, join, list_files, read_bytes, remove_files, write_file

_FOLDER = 'journal'
_SUMMARY = 'summary.csv'
_SECONDS = 10  # between two parts of a journal at a URI, where nothing can be appended to a file


class Result(NamedTuple):
    """What became of one input.

    Attributes:
        source: path or URI.
        name: of the results.
        kind: ``'image'``, ``'raster'``, ``'video'``, ``'animation'``, ``'camera'``.
        status: ``'done'`` or ``'failed'``.
        error: one line, if it failed.
        height: of the input, in pixels.
        width: of the input, in pixels.
        pixels: number of pixels of each class.
        seconds: that reading, the model and writing took.
        files: written files, below the folder of the results.
    """

    source: str
    name: str
    kind: str = 'image'
    status: str = 'done'
    error: str = ''
    height: int = 0
    width: int = 0
    pixels: tuple[int, ...] = ()
    seconds: float = 0.0
    files: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the result as one line of JSON."""
        return json.dumps(self._asdict())

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> 'Result':
        """Return the result of a line of JSON that was read; what other versions wrote into it is left out."""
        fields = {key: row[key] for key in cls._fields if key in row}
        return cls(**{**fields, 'pixels': tuple(row['pixels']), 'files': tuple(row['files'])})


class Results(MutableMapping[str, Result]):
    """Results by source, in the order in which they came, in a temporary file.

    A run may have millions of inputs, and a result takes a kilobyte or more.

    Args:
        results: by source.
    """

    def __init__(self, results: Mapping[str, Result] | None = None) -> None:
        self._table = sqlite3.connect('', isolation_level=None)  # a file that has no name and ends with this process
        self._table.execute('PRAGMA journal_mode = OFF')
        self._table.execute('CREATE TABLE results (source BLOB PRIMARY KEY, json TEXT)')
        self.update(results or {})

    def __setitem__(self, source: str, result: Result) -> None:
        values = os.fsencode(source), result.to_json()  # not every path is text
        self._table.execute('INSERT OR REPLACE INTO results VALUES (?, ?)', values)

    def __getitem__(self, source: str) -> Result:
        for (text,) in self._table.execute('SELECT json FROM results WHERE source = ?', (os.fsencode(source),)):
            return Result.from_row(json.loads(text))
        raise KeyError(source)

    def __delitem__(self, source: str) -> None:
        if not self._table.execute('DELETE FROM results WHERE source = ?', (os.fsencode(source),)).rowcount:
            raise KeyError(source)

    def __iter__(self) -> Iterator[str]:
        for (source,) in self._table.execute('SELECT source FROM results ORDER BY rowid'):
            yield os.fsdecode(source)

    def __len__(self) -> int:
        return int(self._table.execute('SELECT COUNT(*) FROM results').fetchone()[0])


class Journal:
    """The results of a run, written to ``FOLDER/journal`` one by one.

    Several processes may write at the same time if each has a ``writer`` of
    its own. A line that a killed process left unfinished is ignored.

    Args:
        folder: of the results, local or a URI.
        settings: what the results depend on; a later run with others does not
            continue this one.
        writer: name of this process.

    Attributes:
        writer: as above.
    """

    def __init__(self, folder: str, settings: Mapping[str, Any], writer: str = '0') -> None:
        self.folder, self._settings = folder, json.loads(json.dumps(settings))
        self._path, self.writer = join(folder, _FOLDER), writer
        self._lines: list[str] = []
        self._written, self._part = 0.0, 0

    def start(self, resume: bool = False, force: bool = False) -> dict[str, Result]:
        """Return the results of an earlier run, by source.

        One process calls this, before any of them writes.

        Args:
            resume: continue the run in the folder.
            force: forget the run in the folder, see :meth:`clear`.

        Raises:
            ExistingFileError: the folder has results, and neither ``resume``
                nor ``force`` is set.
            UserError: the folder has results that were made with other
                settings.
        """
        files = list_files(self._path)
        if files and not resume and not force:
            raise ExistingFileError(
                f'{self.folder} has results of an earlier run; continue it with --resume, or replace them with --force'
            )
        if not resume:
            return {}
        return self.read()

    def read(self, writers: str = '') -> dict[str, Result]:
        """Return the results in the journal, by source.

        Args:
            writers: read what the writers wrote whose names begin so.

        Raises:
            UserError: they were made with other settings.
        """
        done: dict[str, Result] = {}
        for file in list_files(self._path):
            if not file.replace(os.sep, '/').rpartition('/')[2].startswith(writers):
                continue
            for row in _read_lines(file):
                if 'settings' in row:
                    self._check(row['settings'])
                else:
                    result = Result.from_row(row)
                    if result.source not in done or result.status == 'done':
                        done[result.source] = result
        return done

    def clear(self) -> None:
        """Remove the journal of an earlier run. Its results stay until others replace them.

        Raises:
            FileAccessError: it cannot be removed.
        """
        remove_files(list_files(self._path))

    def _check(self, earlier: dict[str, Any]) -> None:
        for key in sorted({*earlier, *self._settings}):
            if earlier.get(key) != self._settings.get(key):
                raise UserError(
                    f'{self.folder} has results for {key}={earlier.get(key)}, not {self._settings.get(key)}; '
                    'use the same options, another folder, or --force'
                )

    def write(self, result: Result) -> None:
        """Add a result; it is on the disk when this returns, or within seconds at a URI.

        Raises:
            FileAccessError: it cannot be written.
        """
        self._lines.append(result.to_json())
        if not is_uri(self._path) or time.monotonic() - self._written > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what :meth:`write` kept.

        Raises:
            FileAccessError: it cannot be written.
        """
        if not self._lines:
            return
        first = [json.dumps(dict(settings=self._settings))] if self._part == 0 else []
        text = ''.join(f'{line}\n' for line in (*first, *self._lines))
        if is_uri(self._path):
            name = f'{self.writer}-{time.time_ns()}.jsonl'
            write_file(join(self._path, name), lambda path: write_text(path, text))
        else:
            path = os.path.join(self._path, f'{self.writer}.jsonl')
            try:
                os.makedirs(self._path, exist_ok=True)
                with open(path, 'ab') as file:
                    # A process that was killed may have left half a line.
                    file.write(b'\n' * (self._part == 0 and file.tell() > 0) + text.encode())
            except OSError as error:
                raise FileAccessError(f'cannot write {path}: {error.strerror or error}') from None
        self._lines.clear()
        self._written, self._part = time.monotonic(), self._part + 1


def _read_lines(file: str) -> Iterable[dict[str, Any]]:
    for line in read_bytes(file).decode(errors='replace').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def write_summary(folder: str, results: Iterable[Result], classes: Sequence[str]) -> None:
    """Write ``summary.csv``: one line per input, with the share of each class.

    Args:
        folder: of the results, local or a URI.
        results: in the order of the lines.
        classes: names of the classes.

    Raises:
        FileAccessError: it cannot be written.
    """
    columns = ['source', 'name', 'kind', 'status', 'error', 'height', 'width', 'seconds']

    def write(path: str) -> None:
        with open(path, 'w', encoding='utf-8', errors='backslashreplace', newline='') as file:
            table = csv.writer(file, lineterminator='\n')
            table.writerow([*columns, *(f'share of {name}' for name in classes)])
            for result in results:
                total = max(sum(result.pixels), 1)
                shares = [f'{pixels / total:.6f}' for pixels in result.pixels] or [''] * len(classes)
                values = result._replace(seconds=round(result.seconds, 4))._asdict()
                table.writerow([*(values[column] for column in columns), *shares])

    write_file(join(folder, _SUMMARY), write)
