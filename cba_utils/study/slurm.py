"""What a run has to know of Slurm: how its jobs are called, whether it keeps accounts, how jobs end."""

import getpass
import hashlib
import re
import subprocess
import time
from pathlib import Path

from cba_utils.names import PROJECT

_SECONDS = 60  # a controller that is asked answers in this time or is down


def job_prefix(name):
    """Beginning of the names of a study's jobs, one for each copy of the project.

    Examples
    --------
    >>> job_prefix("smoke").rpartition("-")[0]
    'cba-smoke'
    """
    place = hashlib.sha256(f"{PROJECT}/{name}".encode()).hexdigest()[:8]
    return f"cba-{name[:30]}-{place}"


def options(name):
    """Options of Snakemake's executor that depend on the study and the cluster.

    Without accounts ``sacct`` is there and knows nothing, and Snakemake would wait for ever.

    Parameters
    ----------
    name : str
        Of the study.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If there is no Slurm here, or its controller does not answer.
    """
    _ask("sinfo", "--noheader")
    try:
        _ask("sacct", "--noheader", "--starttime", "now")
        status = ["sacct"]
    except ValueError:
        status = ["squeue", "--slurm-no-account"]
    return ["--slurm-jobname-prefix", job_prefix(name), "--slurm-status-command", *status]


def failed_logs(told):
    """What jobs that failed wrote; the logs of others are gone.

    Parameters
    ----------
    told : str
        What Snakemake said, which names the logs.

    Returns
    -------
    str
    """
    logs = map(Path, re.findall(r"\(log: (.+?\.log)\)", told))
    return "\n".join(log.read_text(errors="replace") for log in logs if log.is_file())


def end_jobs(prefix):
    """Cancel jobs by the beginning of their names, and wait until none of them is at work.

    Parameters
    ----------
    prefix : str

    Raises
    ------
    ValueError
        If one is at work after a minute.
    """
    mine = []
    for _ in range(_SECONDS):
        listed = _ask("squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i %j")
        mine = re.findall(rf"^(\S+) {re.escape(prefix)}_", listed, re.M)
        if not mine:
            return
        _ask("scancel", *mine)
        time.sleep(1)
    raise ValueError(
        f"Slurm: jobs {', '.join(mine)} of an earlier run were cancelled and do not end"
    )


def _ask(*command):
    """What a command of Slurm's says; an error is one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise ValueError(
            f"PROFILE: there is no {command[0]} on this machine; jobs are sent from one that has Slurm"
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"Slurm: {command[0]} gave no answer in {_SECONDS} s") from None
    if done.returncode:
        told = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise ValueError(f"Slurm: {command[0]}: {told}")
    return done.stdout
