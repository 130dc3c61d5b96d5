"""Removes what a CLI keeps of one session in its SQLite databases: the rows that bear the session's id."""

import contextlib
import sqlite3
from pathlib import Path

_BUSY_S = 10.0  # the CLI itself may be writing


def remove(path: str, id: str) -> None:
    """From every table, by each column that names a thread. A CLI of another version may have other tables.

    Overwrites what it removes, and empties the write-ahead log, which holds it too; where a process reads just then,
    the log is emptied by whoever writes next. Raises: sqlite3.Error, with nothing removed."""
    with contextlib.closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=rw", uri=True, timeout=_BUSY_S)) as database:
        database.execute("PRAGMA secure_delete = ON")
        with database:
            for table, column in _columns(database):
                database.execute(f"DELETE FROM {_quoted(table)} WHERE {_quoted(column)} = ?", (id,))  # noqa: S608  # quoted
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _columns(database: sqlite3.Connection) -> list[tuple[str, str]]:
    tables = [str(name) for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = []
    for table in tables:
        columns = [str(row[1]) for row in database.execute(f"PRAGMA table_info({_quoted(table)})")]
        found += [(table, column) for column in columns if column.endswith("thread_id")]
        if table == "threads" and "id" in columns:
            found.append((table, "id"))
    return found


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
