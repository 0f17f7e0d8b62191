"""A study's cells as jobs of a Slurm cluster of one node on loopback: the same bytes as without one."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cba_utils.names import CONFIG, PROJECT, RESULTS
from cba_utils.study import slurm
from cba_utils.study.protocol import cells, narrow, read_study, rounding_parameters
from cba_utils.study.workflow import PROFILES

import pytest
import yaml

NAME = "test-slurm"
ETC = Path("/etc/slurm")
CONFIGURATION = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={port1}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 Gres=gpu:2
PartitionName=gpu Nodes={host} Default=YES
PartitionName=cpu Nodes={host}
"""
# Two files that are devices stand for two GPUs.
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


def free_ports():
    """Two neighbouring ports that nobody listens on."""
    for port in range(21_000, 22_000, 2):
        with socket.socket() as one, socket.socket() as two:
            if one.connect_ex(("127.0.0.1", port)) and two.connect_ex(("127.0.0.1", port + 1)):
                return port
    raise OSError("no two free ports")


def told(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The name of a running cluster's only node."""
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("no slurm-wlm and munge here; CI installs them")
    if any((ETC / name).exists() for name in ("slurm.conf", "gres.conf")):
        pytest.skip("this machine has a Slurm of its own")
    folder = tmp_path_factory.mktemp("slurm")
    # munged wants no folder above its socket that others can write to.
    folder = Path("/run/cba-slurm") / folder.name
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(bytes(range(256)) * 4)
    (folder / "munge.key").chmod(0o400)
    host, port = socket.gethostname().partition(".")[0], free_ports()
    text = CONFIGURATION.format(host=host, folder=folder, port=port, port1=port + 1)
    ETC.mkdir(exist_ok=True)
    # Jobs get no variable of Slurm's from the plugin: the file must be where Slurm looks for it.
    (ETC / "slurm.conf").write_text(text)
    (ETC / "gres.conf").write_text(GPUS)
    files = [f"--{word}-file={folder}/munge.{word}" for word in ("key", "pid", "log", "seed")]
    started = []
    try:
        for command in (
            ["munged", "--foreground", f"--socket={folder}/munge.socket", *files],
            ["slurmctld", "-c", "-D"],
            ["slurmd", "-D"],
        ):
            with (folder / f"{command[0]}.out").open("w") as out:
                started.append(subprocess.Popen(command, stdout=out, stderr=out))
            time.sleep(1)
        wait_for(lambda: "idle" in told("sinfo", "--noheader", "--format", "%t"), 60)
        yield host
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        for name in ("slurm.conf", "gres.conf"):
            (ETC / name).unlink()
        shutil.rmtree(folder)


@pytest.fixture
def profile(tmp_path):
    """The shipped profile for a small node, with short waits."""
    settings = yaml.safe_load((PROFILES / "slurm" / "config.yaml").read_text())
    settings["config"]["threads"] = 1
    settings["default-resources"]["mem_mb"] = 1500
    for resources in settings["set-resources"].values():
        resources["mem_mb"] = 1000
    settings |= {
        "latency-wait": 5,
        "slurm-init-seconds-before-status-checks": 1,
        "seconds-between-status-checks": 1,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def wait_for(what, seconds, log=None):
    """The first true value of a function; else what stands in a log says why."""
    for _ in range(5 * seconds):
        found = what()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("it did not happen in time" + (log.read_text()[-3000:] if log else ""))


def jobs(state=""):
    """Ids of this study's jobs, all or those in a state."""
    more = ["--states", state] if state else []
    listed = told("squeue", "--noheader", "--format", "%i %j", *more).splitlines()
    return [line.split()[0] for line in listed if slurm.job_prefix(NAME) in line]


def records(base, study):
    """Bytes of all that was measured, by file."""
    tables = [
        path for model in study["models"] for path in (base / model["name"]).rglob("*.parquet")
    ]
    return {str(path.relative_to(base)): path.read_bytes() for path in tables}


def test_jobs_that_were_killed_and_a_node_that_was_drained_leave_the_same_bytes(node, profile):
    study = narrow(read_study(CONFIG / "smoke.yml"), NAME, items=240)
    known = cells(study)
    assert rounding_parameters(known, known[0].name), "a job takes the rounding apart"
    base = RESULTS / NAME
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    (base / "study.yml").write_text(yaml.safe_dump(study))
    try:
        log = profile / "told"
        with log.open("w") as out:
            run = subprocess.Popen(
                [Path(sys.executable).with_name("cba"), "run", "--profile", profile, NAME],
                cwd=PROJECT,
                stdout=out,
                stderr=out,
            )
        # The lock is the run's, and so is the name of its jobs.
        first = wait_for(lambda: jobs("running"), 300, log)[0]
        assert json.loads((base / ".lock").read_text())["jobs"] == slurm.job_prefix(NAME)
        subprocess.run(["scancel", "--signal", "KILL", first], check=True)
        told("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        wait_for(lambda: first not in jobs(), 200, log)
        told("scontrol", "update", f"nodename={node}", "state=resume")
        done = [base / cell.folder / "10_evaluate.ipynb" for cell in cells(study)]
        done += [base / model["name"] / "12_rounding.ipynb" for model in study["models"]]
        wait_for(lambda: all(path.exists() for path in done) or run.poll() is not None, 900, log)
        assert "Trying to restart job" in log.read_text()
        # The cells are there, and tables, reports and book are one job: a stop cancels it.
        wait_for(jobs, 200, log)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 130 and not jobs()
        assert not (base / ".lock").read_text()
        there = records(base, study)
        for model in study["models"]:
            shutil.rmtree(base / model["name"])
            subprocess.run(
                [sys.executable, "-m", "cba_utils.cli", "model", NAME, model["name"]],
                cwd=PROJECT,
                check=True,
                capture_output=True,
            )
        assert records(base, study) == there
    finally:
        run.kill()
        slurm.end_jobs(slurm.job_prefix(NAME))
        shutil.rmtree(base)
