"""One source of the environment: what the locks and environment.yml say follows from pyproject.toml."""

import importlib.util
import re

from conftest import ROOT

import pytest

_spec = importlib.util.spec_from_file_location("lock", ROOT / "workflow" / "lock.py")
lock = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lock)


def test_conda_environment_is_what_the_pins_make():
    assert (ROOT / "environment.yml").read_text() == lock.conda()


@pytest.mark.parametrize("name", lock.LOCKS)
def test_a_lock_holds_every_pin_and_a_hash_of_every_package(name):
    text = (ROOT / name).read_text()
    locked = lock.pins(ROOT / name)
    for pin in lock.direct(*lock.LOCKS[name]):
        package, version = re.match(
            r"([\w.-]+)(?:\[\w+\])?==([^\s;]+)$", pin.split(";")[0]
        ).groups()
        assert f"{package.lower().replace('_', '-')}=={version}" in locked
    packages = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert len(packages) == len(locked)
    assert all("--hash=sha256:" in package for package in packages)


def test_a_version_a_python_keeps_its_marker_when_the_lock_is_written_again(tmp_path):
    path = tmp_path / "some.lock"
    path.write_text(
        "a==1 ; python_version < '3.12' \\\n    --hash=sha256:0\na==2 ; python_version >= '3.12'\n"
    )
    assert lock.requirements(path) == [
        "a==1 ; python_version < '3.12'",
        "a==2 ; python_version >= '3.12'",
    ]
    assert lock.pins(path) == ["a==1", "a==2"]
