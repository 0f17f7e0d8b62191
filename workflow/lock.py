"""Write the locks and environment.yml from the pins of pyproject.toml: `make lock`.

A lock names every package, direct and indirect, with the hashes of all its files, and holds for Linux on
x86-64 and arm64 and macOS on arm64. What a lock has already stays as it is, unless a pin says otherwise.
"""

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "requirements.lock": ["cpu", "dev", "slurm"],
    "requirements-cuda.lock": ["cuda", "dev", "slurm"],
    "requirements-bench.lock": ["cpu", "dev", "slurm", "bench"],
}
HEAD = "# Written by `make lock` from pyproject.toml. For pip install --require-hashes -r {name}\n"


def requirements(lock):
    """Lines `name==version` of a lock, with their markers: a package can have a version a Python."""
    lines = lock.read_text().splitlines() if lock.exists() else []
    return [line.rstrip(" \\") for line in lines if "==" in line and line[0].isalnum()]


def pins(lock):
    """Lines `name==version` of a lock, without their markers."""
    return [line.partition(" ")[0] for line in requirements(lock)]


def write_lock(name, extras):
    """Resolve and write one lock."""
    with tempfile.TemporaryDirectory() as folder:
        kept, made = Path(folder, "kept.txt"), Path(folder, name)
        wanted = direct(*extras)
        ours = {text.partition("==")[0].lower().replace("_", "-") for text in wanted}
        known = requirements(ROOT / name) or requirements(ROOT / "requirements.lock")
        kept.write_text("\n".join(p for p in known if p.partition("==")[0] not in ours))
        command = [
            *(Path(sys.executable).with_name("uv"), "pip", "compile", "pyproject.toml"),
            *("--universal", "--python-version", minimum(), "--generate-hashes", "--quiet"),
            *("--no-header", "--no-annotate", "--constraints", kept, "--output-file", made),
            *(word for extra in extras for word in ("--extra", extra)),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        (ROOT / name).write_text(HEAD.format(name=name) + made.read_text())
    print(f"{name}: {len(pins(ROOT / name))} packages")


def project():
    """The project's table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def minimum():
    """The oldest Python that the pins allow."""
    return project()["requires-python"].removeprefix(">=")


def direct(*extras):
    """Pins of pyproject.toml, as they stand there."""
    table = project()
    groups = table["optional-dependencies"]
    return [*table["dependencies"], *(pin for extra in extras for pin in groups[extra])]


def conda():
    """Text of environment.yml."""
    lines = [f'      - "{pin}"' for pin in [*direct("cpu", "dev", "slurm"), "-e ."]]
    return (
        "# The environment of the Makefile for conda users: conda env create -f environment.yml\n"
        "# Written by `make lock` from pyproject.toml.\n"
        "name: cba\nchannels: [conda-forge]\ndependencies:\n"
        f"  - python>={minimum()},<3.15\n  - pip\n  - make\n  - pip:\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    for lock in LOCKS.items():
        write_lock(*lock)
    (ROOT / "environment.yml").write_text(conda())
