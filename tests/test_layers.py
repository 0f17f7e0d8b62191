"""The package's layers: which module may import which, read from the sources."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "cba_utils"
LAYERS = ["names", "answering", "study", "measures", "instrument", "telling", "chapters", "cli"]


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name, path):
    """Modules of the package that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*up, *filter(None, [node.module])]) if node.level else node.module
            found |= {
                deep if (deep := f"{base}.{alias.name}") in MODULES else base
                for alias in node.names
            }
    # The package's own face takes part in no order: it offers five calls from the lower layers.
    return {one for one in found if one in MODULES and one not in ("cba_utils", name)}


IMPORTS = {name: imported(name, path) for name, path in MODULES.items()}


def layer(name):
    return LAYERS.index(name.split(".")[1])


def against_the_order(imports):
    return [
        f"{name} imports {other}"
        for name, others in sorted(imports.items())
        if name != "cba_utils"
        for other in sorted(others)
        if layer(other) > layer(name)
    ]


def circle(imports):
    """One circle of imports as a list of modules; empty if there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(imports[name]):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next((found for name in sorted(imports) if (found := visit(name))), [])


def test_every_module_is_in_a_layer():
    assert {name.split(".")[1] for name in MODULES if name != "cba_utils"} <= set(LAYERS)


def test_no_module_imports_from_a_later_layer():
    assert against_the_order(IMPORTS) == []


def test_no_circle_of_imports():
    assert circle(IMPORTS) == []


def test_an_import_inside_a_function_counts(tmp_path):
    name, path = "cba_utils.answering.precisions", tmp_path / "module.py"
    path.write_text("def late():\n    from cba_utils.telling import drawing\n")
    found = {**IMPORTS, name: imported(name, path)}
    assert against_the_order(found) == [f"{name} imports cba_utils.telling.drawing"]
    assert set(circle(found)) >= {name, "cba_utils.telling.drawing"}
