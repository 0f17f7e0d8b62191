"""One run at a study at a time, also where machines share a file system.

On one machine the lock is the kernel's: it ends with the last process that holds it, however that ends.
Kernels of two machines need not know of each other, and some file systems refuse such locks; so the
file also says which machine and process hold it, and is touched while they are alive.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time

import psutil

from cba_utils.names import RESULTS

_EVERY = 15  # seconds between two signs of life
STALE = 120  # seconds without one, after which a run of another machine counts as ended


@contextlib.contextmanager
def lock_study(name, end, jobs=None, end_jobs=None):
    """Hold a study's lock; what a killed run left at work is ended first.

    Parameters
    ----------
    name : str
        Of the study.
    end : callable
        Given the id of a process that a killed run has left, ends it.
    jobs : str, optional
        How the jobs that the run will give to a cluster are called, at their beginning.
    end_jobs : callable, optional
        Given what a killed run called its jobs, ends them.

    Yields
    ------
    file
        Open, for processes to inherit: the lock lasts while one of them lives.

    Raises
    ------
    ValueError
        If another run is at work on the study.
    """
    path = RESULTS / name / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        alone = _taken(file, path, name, end)
        left = _holder(path)
        if left and left["host"] != socket.gethostname() and _silent(path) < STALE:
            raise _refused(name, left)
        if left and left["jobs"] and end_jobs:
            end_jobs(left["jobs"])
        file.truncate(0)
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "jobs": jobs}
        file.write(json.dumps(mine))
        file.flush()
        os.fsync(file.fileno())
        if not alone:
            # Without a lock of the file system's, of two that came at once the later writer stays.
            time.sleep(2)
            if _holder(path) != mine:
                raise _refused(name, _holder(path))
        done = threading.Event()
        threading.Thread(target=_live, args=(path, done), daemon=True).start()
        try:
            yield file
        finally:
            done.set()
            with contextlib.suppress(OSError):
                file.truncate(0)


def _taken(file, path, name, end):
    """Take the kernel's lock; False where the file system has none."""
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                return False
            raise
        holder = _holder(path)
        if holder and (holder["host"] != socket.gethostname() or psutil.pid_exists(holder["pid"])):
            break
        if holder:
            # Its writer was killed and could not end what it had started.
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if str(path) in {opened.path for opened in process.open_files()} and (
                        process.pid != os.getpid()
                    ):
                        end(process.pid)
        time.sleep(0.2)
    raise _refused(name, _holder(path))


def _holder(path):
    """Who wrote the lock, None where nobody holds it or it is just being written."""
    with contextlib.suppress(ValueError, OSError):
        return json.loads(path.read_text(encoding="utf-8"))
    return None


def _silent(path):
    """Seconds since the last sign of life, by the clock of the file system and no machine's own."""
    probe = path.with_name(f".lock.{socket.gethostname()}.{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _live(path, done):
    while not done.wait(_EVERY):
        with contextlib.suppress(OSError):
            os.utime(path)


def _refused(name, holder):
    elsewhere = holder and holder["host"] != socket.gethostname()
    return ValueError(
        f"study {name!r}: another run is at work on it"
        + (
            f", on {holder['host']}; wait for it or end it (if it was killed, wait {STALE} s)"
            if elsewhere
            else "; wait for it or end it"
        )
    )
