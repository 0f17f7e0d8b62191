import tomllib

from conftest import ROOT

import yaml
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_environment_holds_the_same_pins():
    groups = PROJECT["optional-dependencies"]
    ours = {*PROJECT["dependencies"], *groups["cpu"], *groups["dev"]}
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert set(conda[-1]["pip"]) == ours | {"-e ."}


def test_every_dependency_is_pinned_and_locked():
    locked = dict(
        line.split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line
    )
    groups = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *groups["cpu"], *groups["dev"]]:
        requirement = Requirement(text)
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert locked[requirement.name.lower().replace("_", "-")] == pin.version
