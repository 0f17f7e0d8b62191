"""From a number on a page to hashes, and a study's archive that leads there by its own metadata."""

import hashlib
import io
import json
import shutil
import zipfile
from importlib.resources import files

from cba_utils.names import CONFIG, ORGANISMS, PROJECT, RESULTS
from cba_utils.study import deposit
from cba_utils.study.cell import select_items, undefined_items
from cba_utils.study.protocol import SHIPPED

import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

NAME = "test-deposit"
PAGE = "20_dose_response.ipynb"
TABLES = RESULTS / SHIPPED / "tables"


def hash_of(paths):
    """As provenance says it: over the names and the SHA-256 of some contents, here written out again."""
    digest = hashlib.sha256()
    for name, content in paths:
        digest.update(name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


def contents(folder, patterns):
    return [(p.name, p.read_bytes()) for one in patterns for p in sorted(folder.glob(one))]


def asked_items(parameters):
    items = select_items(parameters)
    return pd.concat([items, undefined_items(parameters, items)], ignore_index=True)


def test_a_number_on_a_page_leads_to_the_hashes_of_weights_and_items():
    cells = json.loads((PROJECT / "notebooks" / "44_published_analysis.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = next(
        output
        for output in outputs
        if output["metadata"].get("cba", {}).get("name") == "published_main"
        and "text/html" in output["data"]
    )
    table = BeautifulSoup("".join(shown["data"]["text/html"]), "html.parser").find("table")
    names = [cell.get_text() for cell in table.find_all("tr")[0].find_all("th")]
    row = [cell.get_text() for cell in table.find_all("tr")[1].find_all(["th", "td"])]
    printed = dict(zip(names, row, strict=True))
    # The page has one model a family: its first.
    known = json.loads((TABLES / "provenance.json").read_text())
    families = yaml.safe_load((CONFIG / f"{SHIPPED}.yml").read_text()).get("families", {})
    titles = {key: text.split(" (")[0] for key, text in families.items()}
    cell = next(
        cell
        for cell in known["cells"]
        if titles.get(cell["family"], cell["family"]) == printed["model"]
        and cell["precision"].upper() == printed["precision"]
    )
    # The number, from the tables.
    samples = pd.read_parquet(TABLES / "samples.parquet")
    mine = samples[
        (samples["model"] == cell["model"]) & (samples["precision"] == cell["precision"])
    ]
    items = pd.read_parquet(TABLES / "items.parquet").set_index("item_id")
    assert len(mine) == cell["counts"]["samples"] and set(mine["item_id"]) == set(items.index)
    asked = items[(items["context_condition"] == "ambig") & (items["version"] == "main")]
    roles = mine.loc[mine["item_id"].isin(asked.index), "role"]
    rate = 100 * (roles == "stereotyped").sum() / (roles != "unparsed").sum()
    assert float(printed["SRS %, answers alike"]) == pytest.approx(rate, abs=0.05)
    # The cell, from the shipped files.
    identity = cell["identity"]
    parameters = identity["parameters"]
    model = ORGANISMS / parameters["model"]
    weights = contents(model, ["config.json", "model*.safetensors"])
    assert hash_of(weights) == identity["weights_sha256"]
    if parameters["adapter"]:
        adapter = contents(
            ORGANISMS / parameters["adapter"], ["adapter_config.json", "adapters.safetensors"]
        )
        assert hash_of(adapter) == identity["adapter_sha256"]
    rows = asked_items(parameters).to_json(orient="records")
    assert hashlib.sha256(rows.encode()).hexdigest() == identity["items_sha256"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The archive of a study that is the first two cells of the shipped one, with a page of its book."""
    base = RESULTS / NAME
    shutil.rmtree(base, ignore_errors=True)
    try:
        known = json.loads((TABLES / "provenance.json").read_text())
        known["study"]["name"], known["cells"] = NAME, known["cells"][:2]
        (base / "tables").mkdir(parents=True)
        (base / "tables" / "provenance.json").write_text(json.dumps(known))
        for name in ("items", "answers"):
            shutil.copy(TABLES / f"{name}.parquet", base / "tables")
        shutil.copytree(TABLES.parent / "figures", base / "figures")
        (base / "study.yml").write_text("name: test\n")
        (base / "book" / "_build" / "html" / "notebooks").mkdir(parents=True)
        (base / "book" / "notebooks").mkdir()
        shutil.copy(PROJECT / "notebooks" / PAGE, base / "book" / "notebooks")
        for page in ("index", f"notebooks/{PAGE[:-6]}"):
            (base / "book" / "_build" / "html" / f"{page}.html").write_text("<p>A page.</p>")
        wanted = [path for path in deposit.source_files() if is_wanted(path, known["cells"])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deposit, "source_files", lambda: wanted)
            first = deposit.archive_of(NAME)
            again = deposit.archive_of(NAME, tmp_path_factory.mktemp("again") / "deposit.zip")
            for path in (first, again):
                deposit.deposit(NAME, path)
            yield first, again
    finally:
        shutil.rmtree(base, ignore_errors=True)


def is_wanted(path, cells):
    """Whether a source file is needed here: not the code, and of the weights only those of the cells."""
    asked = [cell["identity"]["parameters"] for cell in cells]
    models = {f"organisms/{one[key]}/" for one in asked for key in ("model", "adapter") if one[key]}
    top = "/" not in path or path.startswith(("workflow/", "data/", "notebooks/1"))
    return top or path == f"notebooks/{PAGE}" or any(path.startswith(one) for one in models)


@pytest.fixture(scope="module")
def crate(archive):
    with zipfile.ZipFile(archive[0]) as packed:
        graph = json.loads(packed.read(deposit.METADATA))["@graph"]
    return {entity["@id"]: entity for entity in graph}


def ids(value):
    return [one["@id"] for one in (value if isinstance(value, list) else [value])]


def of(crate, kind):
    return {name: one for name, one in crate.items() if kind in one["@type"]}


def made(crate, path):
    """The runs that a file came of."""
    return [run for run in of(crate, "CreateAction").values() if path in ids(run["result"])]


def test_the_same_files_give_the_same_archive(archive):
    assert archive[0].read_bytes() == archive[1].read_bytes()


def test_every_file_is_there_with_its_hash_and_nothing_is_described_that_is_not(archive, crate):
    with zipfile.ZipFile(archive[0]) as packed:
        there = set(packed.namelist())
        for name, entity in of(crate, "File").items():
            content = packed.read(name)
            assert entity["sha256"] == hashlib.sha256(content).hexdigest()
            assert entity["contentSize"] == str(len(content))
    assert all(
        any(path.startswith(name) for path in there)
        for name in of(crate, "Dataset")
        if name != "./"
    )
    assert set(ids(crate["./"]["hasPart"])) == {*of(crate, "File"), *of(crate, "Dataset")} - {"./"}


def test_a_figure_leads_to_tables_cells_weights_and_items(archive, crate):
    figure = f"results/{NAME}/figures/dose_response.svg"
    (page,) = made(crate, figure)
    assert page["instrument"]["@id"] == f"notebooks/{PAGE}"
    answers = f"results/{NAME}/tables/answers.parquet"
    assert answers in ids(page["object"])
    runs = [run for run in made(crate, answers) if run["@id"].startswith("#cell/")]
    cells = json.loads((TABLES / "provenance.json").read_text())["cells"][:2]
    assert [run["@id"] for run in runs] == [
        f"#cell/{NAME}/{c['model']}/{c['precision']}" for c in cells
    ]
    given = [crate[name] for name in ids(runs[0]["object"])]
    held = {one["@id"].split("/")[0]: one for one in given if one["@type"] == "Collection"}
    with zipfile.ZipFile(archive[0]) as packed:
        parts = ids(held["#weights"]["hasPart"])
        weights = [(path.rpartition("/")[2], packed.read(path)) for path in parts]
        assert (
            hash_of(weights) == held["#weights"]["sha256"] == cells[0]["identity"]["weights_sha256"]
        )
        assert packed.read("data/bank.jsonl.gz")
    parameters = {one["name"]: one["value"] for one in given if one["@type"] == "PropertyValue"}
    assert parameters["precision"] == cells[0]["precision"]
    assert held["#items"]["sha256"] == parameters["items_sha256"]
    rows = asked_items(cells[0]["identity"]["parameters"]).to_json(orient="records")
    assert held["#items"]["sha256"] == hashlib.sha256(rows.encode()).hexdigest()


def remember_terms(path):
    """Give the validator's cache the terms of RO-Crate 1.1, so that it fetches nothing."""
    import requests
    import urllib3
    from requests.adapters import BaseAdapter
    from requests_cache import CachedSession

    class Stored(BaseAdapter):
        def send(self, request, **_):
            answer = requests.Response()
            answer.status_code, answer.url, answer.request = 200, request.url, request
            answer.headers["Content-Type"] = "application/ld+json"
            content = io.BytesIO(files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes())
            answer.raw = urllib3.HTTPResponse(content, answer.headers, 200, preload_content=False)
            return answer

        def close(self):
            pass

    with CachedSession(cache_name=str(path), backend="sqlite", expire_after=-1) as session:
        session.mount("https://", Stored())
        assert session.get(deposit.CONTEXT[0]).json()["version"].startswith("1.1")


def broken_rules(folder, cache):
    """What the validator of RO-Crates says against an unpacked archive, of what is required."""
    from rocrate_validator import services
    from rocrate_validator.models import Severity

    found = set()
    for profile in ("process-run-crate-0.5", "workflow-run-crate-0.5"):
        settings = services.ValidationSettings(
            rocrate_uri=str(folder),
            profile_identifier=profile,
            requirement_severity=Severity.REQUIRED,
            offline=True,
            cache_path=str(cache),
        )
        found |= {issue.message for issue in services.validate(settings).get_issues()}
    return found


def test_the_validator_of_ro_crates_agrees(archive, tmp_path):
    remember_terms(tmp_path / "terms")
    with zipfile.ZipFile(archive[0]) as packed:
        packed.extractall(tmp_path / "crate")
    assert broken_rules(tmp_path / "crate", tmp_path / "terms") == set()
    path = tmp_path / "crate" / deposit.METADATA
    told = json.loads(path.read_text())
    run = next(one for one in told["@graph"] if one["@type"] == "CreateAction")
    del run["instrument"]
    path.write_text(json.dumps(told))
    (message,) = broken_rules(tmp_path / "crate", tmp_path / "terms")
    assert "MUST have an instrument" in message


def test_words_of_others_items_stay_out(tmp_path, monkeypatch):
    known = json.loads((TABLES / "provenance.json").read_text())
    known["cells"][0]["identity"]["parameters"]["items"] = "/somewhere/bbq"
    base = tmp_path / "others"
    (base / "tables").mkdir(parents=True)
    (base / "tables" / "provenance.json").write_text(json.dumps(known))
    items = pd.read_parquet(TABLES / "items.parquet")
    items.to_parquet(base / "tables" / "items.parquet")
    with pytest.raises(ValueError, match="hold words of items .* 'cba collect others --small'"):
        deposit._own_items(base)
    items.drop(columns=deposit.TEXTS).to_parquet(base / "tables" / "items.parquet")
    assert not deposit._own_items(base)


def test_a_study_without_results_or_book_says_what_makes_them(archive):
    with pytest.raises(FileNotFoundError, match="'nowhere' was not run; 'make book STUDY=nowhere'"):
        deposit.files_of("nowhere")
    index = RESULTS / NAME / "book" / "_build" / "html" / "index.html"
    index.rename(index.with_name("other.html"))
    with pytest.raises(FileNotFoundError, match=f"no book yet; 'make book STUDY={NAME}'"):
        deposit.files_of(NAME)
