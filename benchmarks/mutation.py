"""Change one thing in a module and see whether a test notices: how much do the tests see?

``python -m benchmarks.mutation --each 1`` draws places of each module by a seed and a change at each, runs
the test files that import the module and its examples against it, and writes ``benchmarks/mutation.csv`` with
the first test that failed. It needs what ``make bench`` installs. Rows of modules that are asked again are
replaced; what somebody noted of a survivor is kept, and ``--again`` asks the survivors alone, after a test
was written. What the tests noticed when they were first asked stays in the file: tests that were written for
these very changes say nothing about others.

Of the changes that cosmic-ray knows those are drawn that a slip could be: another sign, comparison or number,
a condition turned, ``and`` for ``or``, a loop left at once. Those that no test could miss, such as a shift
of bits in a sum of floats, would make the share look better.
"""

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cba_utils.names import PROJECT

import pandas as pd

RESULT = PROJECT / "benchmarks" / "mutation.csv"
COLUMNS = [
    *("part", "module", "line", "seed", "before", "after"),
    *("first", "result", "test", "seconds", "note"),
]
PARTS = {
    "measures": sorted(
        p.relative_to(PROJECT).as_posix() for p in PROJECT.glob("cba_utils/measures/[a-z]*.py")
    ),
    "roles": ["cba_utils/study/roles.py", "cba_utils/answering/benchmarks/bbq.py"],
    "parser": ["cba_utils/answering/prompts.py"],
    "records": [
        f"cba_utils/study/{name}.py" for name in ("cell", "files", "tables", "published_jsonl")
    ],
    "scoring": ["cba_utils/answering/scoring.py", "cba_utils/answering/likelihood.py"],
}
SLIPS = re.compile(
    r"core/(ReplaceBinaryOperator_(Add|Sub|Mul|Div)_(Add|Sub|Mul|Div)"
    r"|ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_(Eq|NotEq|Lt|LtE|Gt|GtE)"
    r"|ReplaceUnaryOperator_Delete_(USub|Not)|ReplaceAndWithOr|ReplaceOrWithAnd|AddNot"
    r"|ReplaceTrueWithFalse|ReplaceFalseWithTrue|ReplaceBreakWithContinue|ReplaceContinueWithBreak"
    r"|NumberReplacer|ZeroIterationForLoop)"
)
# Seconds until tests that hang count as having noticed, if they do not hang without the change.
PATIENCE = 600
REGISTER = "tests/test_measure.py"  # asks what every module of measures/ registers
NO_TESTS = 5  # pytest's code where there are none
# They start clusters, browsers and books, or compare what is committed as a whole.
APART = ("test_book", "test_browser", "test_environment", "test_slurm", "test_rehearsal")


def places(text):
    """Where a module can be changed, each place with the changes that are possible there."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found = {}
    for name in filter(SLIPS.fullmatch, operator_names()):
        operator = get_operator(name)()
        spots = [
            start
            for node in ast_nodes(get_ast(text))
            for start, _ in operator.mutation_positions(node)
        ]
        for number, start in enumerate(spots):
            found.setdefault(tuple(start), []).append((name, number))
    return found


def mutants(module, each, seed):
    """So many changes of a module, drawn by the seed: line, the two texts of the line, and the module's."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    text = (PROJECT / module).read_text(encoding="utf-8")
    draw = random.Random(f"{seed} {module}")
    known = places(text)
    for start in draw.sample(sorted(known), min(each, len(known))):
        name, number = draw.choice(known[start])
        changed = mutate_code(text, get_operator(name)(), number)
        pairs = zip(text.splitlines(), changed.splitlines(), strict=False)
        line, (before, after) = next(
            (k, pair) for k, pair in enumerate(pairs, 1) if pair[0] != pair[1]
        )
        yield line, before.strip(), after.strip(), changed


def tests_of(module, project=PROJECT):
    """A module's own examples, and the test files that import it; first that of its name."""
    name = module.removesuffix(".py").replace("/", ".")
    package, _, last = name.rpartition(".")
    found = []
    for path in sorted((project / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            else:
                continue
            if name in names and path.stem not in APART:
                found.append(f"tests/{path.name}")
                break
    if "/measures/" in module and REGISTER not in found:
        found.append(REGISTER)
    return [module, *sorted(found, key=lambda path: path != f"tests/test_{last}.py")]


def copy_of_project(folder):
    """The project in another folder: modules, tests and texts are its own, all else is where it is."""
    for path in PROJECT.iterdir():
        if path.name in ("cba_utils", "tests", "data"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, folder / path.name, ignore=ignored)
        elif not path.name.startswith(".") or path.name == ".gitignore":
            (folder / path.name).symlink_to(path)


def failing(folder, tests):
    """The first test that fails in a copy of the project; empty if all pass."""
    known = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=folder, env=known, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return "no end"
    if done.returncode in (0, NO_TESTS):
        return ""
    named = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.M)
    return named[1] if named else "no start"


def try_out(part, module, each, seed, folder):
    """A row a mutant of a module."""
    tests = tests_of(module, folder)
    whole = (folder / module).read_text(encoding="utf-8")
    for line, before, after, changed in mutants(module, each, seed):
        (folder / module).write_text(changed, encoding="utf-8")
        started = time.monotonic()
        test = failing(folder, tests)
        (folder / module).write_text(whole, encoding="utf-8")
        noticed_by = [test] if "::" in test else tests
        if test and failing(folder, noticed_by):
            raise RuntimeError(f"{module}: {test} without any change as well; mend that first")
        result = "killed" if test else "survived"
        seconds = round(time.monotonic() - started, 1)
        print(f"{result:9} {module}:{line} {after}  {test}", flush=True)
        yield [part, module, line, seed, before, after, result, result, test, seconds, ""]


def ask_again(table, folder):
    """The survivors that are still what they were, against the tests of today."""
    for row in table[table["result"] == "survived"].itertuples():
        lines = (folder / row.module).read_text(encoding="utf-8").splitlines(keepends=True)
        at = [k for k, line in enumerate(lines) if line.strip() == row.before]
        if not at:
            print(f"gone      {row.module}: {row.before}")
            continue
        k = min(at, key=lambda k: abs(k + 1 - row.line))
        changed = [*lines[:k], lines[k].replace(row.before, row.after), *lines[k + 1 :]]
        (folder / row.module).write_text("".join(changed), encoding="utf-8")
        test = failing(folder, tests_of(row.module, folder))
        (folder / row.module).write_text("".join(lines), encoding="utf-8")
        print(f"{'killed' if test else 'survived':9} {row.module}:{k + 1} {row.after}  {test}")
        if test:
            table.loc[row.Index, ["result", "test", "note"]] = ["killed", test, ""]
            table.to_csv(RESULT, index=False)


def main():
    """Draw, try out, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=__doc__)
    parser.add_argument("--each", type=int, default=1, metavar="N", help="mutants a module (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("modules", nargs="*", help="parts (" + ", ".join(PARTS) + ") or files; all")
    parser.add_argument("--again", action="store_true", help="the survivors alone")
    options = parser.parse_args()
    table = pd.DataFrame(columns=COLUMNS)
    if RESULT.exists():
        table = pd.read_csv(RESULT, keep_default_na=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        copy_of_project(folder)
        if options.again:
            return ask_again(table, folder)
        for part, modules in PARTS.items():
            for module in modules:
                if options.modules and not {part, module} & set(options.modules):
                    continue
                notes = table.set_index(["module", "before", "after"])["note"].to_dict()
                rows = pd.DataFrame(
                    list(try_out(part, module, options.each, options.seed, folder)), columns=COLUMNS
                )
                rows["note"] = [
                    notes.get((r.module, r.before, r.after), "") for r in rows.itertuples()
                ]
                table = pd.concat([table[table["module"] != module], rows], ignore_index=True)
                table.to_csv(RESULT, index=False)


if __name__ == "__main__":
    main()
