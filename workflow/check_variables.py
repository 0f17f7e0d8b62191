"""Refuse a make variable that no goal of the command uses: `make book MODEL=x` would run something else.

Plain Python of any version, because it runs before anything is set up. make passes the names of the
variables of its command line and its goals in the environment.
"""

import os
import re
import sys
from difflib import get_close_matches

CHANGES = ["STUDY", "MODELS", "PRECISIONS", "ITEMS", "PROMPT", "COMPUTE", "NAME", "BBQ_DIR"]
USED = {
    "book": CHANGES + ["RAW", "PROFILE"],
    "pdf": CHANGES + ["RAW", "PROFILE"],
    "deposit": ["STUDY", "ARCHIVE"],
    "estimate": CHANGES,
    "cell": ["MODEL", "ADAPTER", "PRECISION", "ITEMS", "PROMPT", "COMPUTE"],
    "rehearse": ["STUDY", "MODELS", "PRECISIONS", "ITEMS", "BBQ_DIR"],
    "compare": ["A", "B"],
    "doctor": ["BBQ_DIR"],
    "organisms": ["ALIGN"],
}
ALWAYS = ["PYTHON", "ACCEL"]


def no_such_goal(goal):
    """One line for a goal that the Makefile has not."""
    with open("Makefile") as makefile:
        goals = re.findall(r"^([a-z]+):.*##", makefile.read(), re.M)
    near = get_close_matches(goal, goals, 1, 0.5)
    sys.exit(
        "error: make: there is no %r%s There are %s"
        % (goal, ", did you mean %r?" % near[0] if near else ";", ", ".join(goals))
    )


def main():
    """One line for the first variable that is wrong."""
    goals = os.environ.get("CBA_GOALS", "").split() or ["help"]
    known = ALWAYS + [name for goal in goals for name in USED.get(goal, [])]
    for name in os.environ.get("CBA_GIVEN", "").split():
        if name not in known:
            near = get_close_matches(name, known, 1, 0.5)
            sys.exit(
                "error: %s: 'make %s' has no such variable%s It has %s"
                % (
                    name,
                    " ".join(goals),
                    ", did you mean %s?" % near[0] if near else ";",
                    ", ".join(known),
                )
            )


if sys.argv[1:]:
    no_such_goal(sys.argv[1])
main()
