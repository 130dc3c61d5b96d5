"""What a CLI keeps of a session in its databases goes with it, down to the bytes of the file."""

import contextlib
import sqlite3

import pytest

from worker import rows


@pytest.fixture
def path(tmp_path):
    """As codex has them: a write-ahead log, and a process that holds a connection."""
    path = tmp_path / "state 5?.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE threads (id TEXT PRIMARY KEY, title TEXT)")
        database.execute('CREATE TABLE "it""ems" (thread_id TEXT, said TEXT)')
        database.execute("CREATE TABLE edges (parent_thread_id TEXT, child_thread_id TEXT)")
        database.execute("CREATE TABLE others (id TEXT, said TEXT)")
        for id in ("mine", "yours"):
            text = f"CANARY-{id} " * 2000
            database.execute("INSERT INTO threads VALUES (?, ?)", (id, text))
            database.executemany('INSERT INTO "it""ems" VALUES (?, ?)', [(id, text)] * 50)
            database.execute("INSERT INTO others VALUES (?, ?)", (id, "kept"))
        database.execute("INSERT INTO edges VALUES ('yours', 'mine')")
        database.commit()
        yield path


def test_no_byte_is_left_of_its_rows_and_all_others_stay(path):
    rows.remove(str(path), "mine")

    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"CANARY-mine" not in left
    with contextlib.closing(sqlite3.connect(path)) as database:
        counts = [database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in NAMES]
        assert counts == [1, 50, 0, 2]
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


NAMES = ("threads", '"it""ems"', "edges", "others")


def test_what_is_no_database_is_an_error_and_no_new_one_is_made(tmp_path):
    (tmp_path / "broken.sqlite").write_bytes(b"this is no database, whatever its name says" * 100)

    for name in ("broken.sqlite", "missing.sqlite"):
        with pytest.raises(sqlite3.Error):
            rows.remove(str(tmp_path / name), "mine")

    assert not (tmp_path / "missing.sqlite").exists()
