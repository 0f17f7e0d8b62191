"""Which Pythons and machines the lock fits, and in which of them tests were run.

``python -m benchmarks.environments`` asks the package index, for every Python that the pins allow and every
platform of the lock, which of the locked packages have no wheel there and are built from their sources (which
may need a compiler), and writes ``benchmarks/environments.csv``. With ``--tests tests/test_a.py ...`` it runs
these with the Python that it is run by instead, and writes how many passed into that Python's row.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from cba_utils.names import PROJECT

import pandas as pd

RESULT = PROJECT / "benchmarks" / "environments.csv"
# As the C library of Debian 12 is, and macOS 15: for older ones MLX has no wheels.
PLATFORMS = {
    "Linux x86_64": "x86_64-manylinux_2_36",
    "Linux aarch64": "aarch64-manylinux_2_36",
    "Darwin arm64": "aarch64-apple-darwin",
}
MACOS = "15.0"
COLUMNS = ["platform", "python", "from_source", "tests", "passed", "asked"]


def pythons():
    """The versions of Python that `make setup` takes, by what the Makefile says."""
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    low, high = re.search(r"\((3), (\d+), \d+\) <= v < \(3, (\d+)\)", text).group(2, 3)
    return [f"3.{minor}" for minor in range(int(low), int(high))]


def without_wheel(python, target):
    """Locked packages that have no wheel for a Python on a platform."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        while True:
            command = [
                *(Path(sys.executable).with_name("uv"), "pip", "install", "--dry-run", "--no-deps"),
                *("--only-binary", ":all:", "--target", folder),
                *("--python-version", f"{python}.5", "--python-platform", target),
                *(word for name in found for word in ("--no-binary", name)),
                *("-r", PROJECT / "requirements.lock"),
            ]
            known = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS}
            done = subprocess.run(command, env=known, capture_output=True, text=True)
            if done.returncode == 0:
                return found
            missing = re.search(r"([\w.-]+)==\S+ has no (?:usable )?wheels", done.stderr)
            if not missing or missing[1] in found:
                raise RuntimeError(f"Python {python} on {target}: {done.stderr.strip()}")
            found.append(missing[1])


def run_tests(tests):
    """How many of some tests were run, and how many passed; those that this machine cannot are none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        subprocess.run([*command, f"--junit-xml={report}", *tests], cwd=PROJECT)
        told = ElementTree.parse(report).getroot().find("testsuite")
    counts = {kind: int(told.get(kind)) for kind in ("tests", "skipped", "failures", "errors")}
    ran = counts["tests"] - counts["skipped"]
    return ran, ran - counts["failures"] - counts["errors"]


def main():
    """Ask the index, or run tests here; write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__)
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="run these with this Python")
    options = parser.parse_args()
    table = pd.DataFrame(columns=COLUMNS)
    if RESULT.exists():
        table = pd.read_csv(RESULT, dtype=str, keep_default_na=False)
    table = table.set_index(["platform", "python"])
    if options.tests:
        here = f"{platform.system()} {platform.machine()}", f"3.{sys.version_info.minor}"
        total, passed = run_tests(options.tests)
        asked = " ".join(options.tests)
        table.loc[here, ["tests", "passed", "asked"]] = [str(total), str(passed), asked]
        print(f"{passed} of {total} tests passed with Python {here[1]} on {here[0]}")
    else:
        for name, target in PLATFORMS.items():
            for python in pythons():
                found = " ".join(without_wheel(python, target))
                table.loc[(name, python), "from_source"] = found
                print(f"Python {python} on {name}: {found or 'wheels alone'}", flush=True)
    table.fillna("").reset_index()[COLUMNS].to_csv(RESULT, index=False)


if __name__ == "__main__":
    main()
