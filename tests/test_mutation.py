"""The bench that changes the code: it sees a test that notices, and the project stays as it is."""

from cba_utils.names import PROJECT

import pandas as pd
from benchmarks import mutation


def test_tests_of_a_module_are_its_examples_and_the_files_that_import_it():
    found = mutation.tests_of("cba_utils/measures/margins.py")
    assert found[0] == "cba_utils/measures/margins.py" and "tests/test_margins.py" in found
    assert "tests/test_slurm.py" not in mutation.tests_of("cba_utils/study/slurm.py")


def test_a_change_is_noticed_in_the_copy_and_nowhere_else(tmp_path):
    module = "cba_utils/measures/intervals.py"
    mutation.copy_of_project(tmp_path)
    whole = (PROJECT / module).read_text()
    assert mutation.failing(tmp_path, [module]) == ""
    # Examples of the module say what an interval is.
    (tmp_path / module).write_text(whole.replace("alpha=1 - level", "alpha=level"))
    assert mutation.failing(tmp_path, [module]).startswith(f"{module}::")
    assert (PROJECT / module).read_text() == whole


def test_what_no_test_noticed_is_explained():
    table = pd.read_csv(mutation.RESULT, keep_default_na=False)
    assert set(table["result"]) <= {"killed", "survived"} and set(table["part"]) == set(
        mutation.PARTS
    )
    assert (table.loc[table["result"] == "killed", "test"] != "").all()
    assert (table.loc[table["first"] == "killed", "result"] == "killed").all()
    assert (table.loc[table["result"] == "survived", "note"].str.len() > 20).all()
