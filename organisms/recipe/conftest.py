"""Where PyTorch is not there, which only this recipe needs, its trainer is not collected."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["plant.py"]
