"""Events on disk: in order, with partial lines, from dead processes, and by one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from dramatiq_joblog import JobLog
from dramatiq_joblog.recording.events import Ended, Started
from dramatiq_joblog.recording.spool import MAX_CHUNK, Spool


def event(number):
    return Ended({"jid": f"j{number}", "token": f"t{number}"}, {"outcome": "dead"})


@pytest.fixture
def folder(tmp_path):
    """Return a folder for spools that does not exist yet."""
    return tmp_path / "state" / "spool"


@pytest.fixture
def spool(folder):
    """Return a spool of this process."""
    spool = Spool(folder)
    yield spool
    spool.forget()


def numbers(chunks):
    return [int(event.jid[1:]) for chunk in chunks for event in chunk]


def test_nothing_is_made_before_it_is_needed(folder, spool):
    """An empty spool has no file and no folder."""
    assert [] == list(spool.replay()) == list(spool.left_behind())
    assert not spool.waiting
    assert not folder.exists()


def test_what_is_kept_comes_back(folder, spool):
    """Events are returned unchanged, oldest first, in chunks; then the file is removed."""
    kept = [event(n) for n in range(MAX_CHUNK + 5)]
    spool.append(kept[:3])
    spool.append(kept[3:])
    assert 0o700 == folder.stat().st_mode & 0o777

    chunks = list(spool.replay())
    assert [MAX_CHUNK, 5] == [len(chunk) for chunk in chunks]
    assert kept == [event for chunk in chunks for event in chunk]
    assert [] == list(folder.iterdir())
    assert not spool.waiting


def test_what_could_not_be_written_comes_again(spool):
    """A chunk that could not be written is the first of the next replay."""
    spool.append([event(n) for n in range(MAX_CHUNK + 5)])
    for number, _ in enumerate(spool.replay()):
        if number == 1:
            break

    assert list(range(MAX_CHUNK, MAX_CHUNK + 5)) == numbers(spool.replay())


def test_what_is_kept_during_a_replay_comes_last(spool):
    """Events that are appended while others are replayed follow them."""
    spool.append([event(1)])
    seen = []
    for chunk in spool.replay():
        seen += chunk
        if len(seen) < 3:
            spool.append([event(len(seen) + 1)])

    assert [1, 2, 3] == numbers([seen])


CHILD = """
    import os, sys
    from pathlib import Path
    from dramatiq_joblog.recording.spool import Spool
    from dramatiq_joblog.recording.events import Ended, Started
    spool = Spool(Path(sys.argv[1]))
    for n in range(3):
        spool.append([Started({"jid": f"j{n}", "token": f"t{n}"})])
    spool.append([Ended({"jid": "j1", "token": "t1"})])
    print("kept", flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def child(folder):
    """Return a process that keeps three starts and one end, and then waits to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "kept\n" == process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_process_that_died(folder, spool, child):
    """A process's events are replayed by another one once it is dead, and not before."""
    assert [] == list(spool.left_behind())
    child.communicate("die\n")

    events = [event for chunk in spool.left_behind() for event in chunk]
    assert [0, 1, 2, 1] == numbers([events])
    assert [] == list(folder.iterdir())


@pytest.mark.full
def test_runs_that_ended_with_their_process(spool, child):
    """A start without an end, of a dead process, is marked as cut off."""
    child.communicate("die\n")

    [events] = spool.left_behind()
    assert [True, False, True] == [event.cut_off for event in events if isinstance(event, Started)]


def test_one_at_a_time(folder, spool, child):
    """While one process replays another's events, no third one does."""
    child.communicate("die\n")
    replay = spool.left_behind()
    assert 4 == len(next(replay))

    assert [] == list(Spool(folder).left_behind())
    replay.close()
    assert 4 == len(numbers(Spool(folder).left_behind()))


def test_a_torn_line(folder, spool, child):
    """A partial line, which was never acknowledged, is skipped."""
    child.communicate("die\n")
    [path] = folder.iterdir()
    with path.open("a") as file:
        file.write('{"kind": "end", "row": {"jid": "j9"')

    assert [0, 1, 2, 1] == numbers(spool.left_behind())


def test_a_full_disk(spool, monkeypatch):
    """When the disk does not accept an event, nothing of it remains."""
    spool.append([event(1)])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            spool.append([event(2)])
    spool.append([event(3)])

    assert [1, 3] == numbers(spool.replay())


def test_it_outlives_a_power_cut(folder, spool, monkeypatch):
    """Once events are kept, the file and its folder entry are fsynced."""
    synced, really = {}, os.fsync

    def fsync(descriptor):
        really(descriptor)
        synced[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size

    monkeypatch.setattr(os, "fsync", fsync)
    spool.append([event(1)])
    spool.append([event(2)])

    [path] = folder.iterdir()
    assert folder.stat().st_ino in synced
    assert path.stat().st_size == synced[path.stat().st_ino]


def test_values_that_json_has_no_word_for(spool):
    """A value of a custom column is stored as text."""
    spool.append([Started({"jid": "j", "token": "t", "own": b"x"}, None)])
    [[kept]] = spool.replay()
    assert json.dumps(kept.row)
    assert "b'x'" == kept.row["own"]


HERE = "postgresql://me:secret@db.example.com/shop"


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("postgresql://other:word@db.example.com:5432/shop", True),
        ("postgresql://me:secret@db.example.com:5433/shop", False),
        ("postgresql://me:secret@replica.example.com/shop", False),
        ("postgresql://me:secret@db.example.com/other", False),
        ("mysql://me:secret@db.example.com:5432/shop", False),
    ],
)
def test_each_log_has_a_folder_of_its_own(url, same):
    """Events of one log are never written to another on the same host, whatever its port."""
    assert same == (JobLog(HERE).core.spool.folder == JobLog(url).core.spool.folder)
