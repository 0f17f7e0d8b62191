"""A study from a hub on loopback to its book; what estimate and doctor ask of a hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from cba_utils.names import CONFIG, PROJECT, RESULTS
from cba_utils.study.rehearsal.hub import serve
from cba_utils.study.rehearsal.repositories import BASES, shrunk, weight_counts

import pytest
import yaml

CBA = Path(sys.executable).with_name("cba")


def write_study(folder, name, **changes):
    """The published study under another name, with little text for perplexity."""
    study = yaml.safe_load((CONFIG / "paper.yml").read_text())
    study |= {"name": name, "perplexity": study["perplexity"] | {"sequences": 2}, **changes}
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def cba(*words, **environment):
    return subprocess.run(
        [CBA, *map(str, words)],
        cwd=PROJECT,
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def repositories(tmp_path):
    """One repository of every kind, with files that no study reads."""
    model = tmp_path / "hub" / "models" / "somebody" / "model-q4"
    items = tmp_path / "hub" / "datasets" / "Elfsong" / "BBQ" / "data"
    for folder in (model, items):
        folder.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (model / "consolidated.safetensors").write_bytes(bytes(1000))
    for split in ("ses", "race_x_ses"):
        (items / f"{split}-00000-of-00001.parquet").write_bytes(bytes(10))
    return tmp_path / "hub"


def test_the_hub_gives_files_whole_and_in_ranges_and_refuses_what_it_has_not(repositories):
    with serve(repositories) as hub:
        url = f"{hub.url}/somebody/model-q4/resolve/main/model.safetensors"
        whole = urlopen(url).read()
        assert whole == (repositories / "models/somebody/model-q4/model.safetensors").read_bytes()
        assert urlopen(Request(url, headers={"Range": "bytes=5-9"})).read() == whole[5:10]
        for wrong in (
            "/somebody/model-q4/resolve/main/other",
            "/nobody/x/resolve/main/config.json",
            "/somebody/model-q4/resolve/main/../../../../../etc/passwd",
            "/api/models/nobody/x",
        ):
            with pytest.raises(HTTPError, match="404"):
                urlopen(hub.url + wrong)
        assert hub.fetched() == {"somebody/model-q4/model.safetensors": len(whole) + 5}


@pytest.mark.parametrize("verb", ["estimate", "doctor"])
def test_estimate_and_doctor_fetch_no_file(repositories, tmp_path, verb):
    model = {
        "name": "some",
        "source": "somebody/model-{precision}",
        "family": "some",
        "precisions": ["q4"],
    }
    bf16 = repositories / "models" / "somebody" / "model-bf16"
    shutil.copytree(repositories / "models" / "somebody" / "model-q4", bf16)
    study = write_study(
        tmp_path,
        "some-study",
        precisions=["bf16", "q4"],
        models=[{**model, "precisions": ["bf16", "q4"]}],
    )
    with serve(repositories) as hub:
        done = cba(
            verb,
            *([study] if verb == "estimate" else []),
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "home"),
            NO_PROXY="127.0.0.1",
        )
        assert done.returncode == 0, done.stderr
        assert hub.fetched() == {} and not list((tmp_path / "home").rglob("*.safetensors"))
    if verb == "estimate":
        assert "consolidated" not in done.stdout and "model.safetensors" in done.stdout
        assert "nothing was downloaded" in done.stdout


def test_estimate_says_what_is_unknown_where_no_hub_answers(tmp_path):
    study = write_study(
        tmp_path, "far", models=[{"name": "far", "source": "somebody/far", "family": "far"}]
    )
    done = cba(
        "estimate",
        study,
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path),
        NO_PROXY="127.0.0.1",
    )
    assert done.returncode == 0, done.stderr
    assert "unknown  parameters of far" in done.stdout and "GB of memory" not in done.stdout


@pytest.mark.parametrize("base", BASES, ids=[base.family for base in BASES])
def test_shapes_are_the_published_ones_and_shrink_to_what_can_be_quantized(base):
    published = {"qwen2": 7615616512, "mistral": 7248023552, "phi3": 3821079552}[base.family]
    assert sum(weight_counts(base.config)) == pytest.approx(published, rel=1e-4)
    for parts in (1, 2, 4, 8, 16, 32):
        small = shrunk(base.config, 1, parts)
        assert small["hidden_size"] % 64 == 0 == small["intermediate_size"] % 64
        assert small["num_attention_heads"] % small["num_key_value_heads"] == 0
        assert small["vocab_size"] == base.config["vocab_size"]


def test_a_rehearsal_builds_the_book_from_listed_files_alone_and_fetches_once(tmp_path):
    study = write_study(tmp_path, "little")
    name = "little-rehearsal"
    scratch = PROJECT / ".cache" / "rehearsal" / name
    words = [
        "rehearse",
        study,
        "--stand-in",
        "--parts",
        32,
        "--items",
        24,
        "--precisions",
        "bf16,q4",
        "--models",
        "mistral-7b-instruct-v0.3,phi-3.5-mini-instruct",
    ]
    try:
        done = cba(*words)
        assert done.returncode == 0, done.stderr[-3000:]
        log = [json.loads(line) for line in (scratch / "hub.jsonl").read_text().splitlines()]
        fetched = {f"{entry['repository']}/{entry['file']}" for entry in log if entry["bytes"]}
        for precision in ("bf16", "q4"):
            for base in ("mistral-7b-instruct-v0.3", "phi-3.5-mini-instruct"):
                assert f"plawanrath/{base}-{precision}-mlx-cba/model.safetensors" in fetched
                assert (RESULTS / name / base / precision / "provenance.json").exists()
        assert "Elfsong/BBQ/data/ses-00000-of-00001.parquet" in fetched
        assert not [file for file in fetched if "nationality" in file or file.endswith(".md")]
        pages = (RESULTS / name / "book" / "_build" / "html").rglob("*.html")
        assert any("This is a rehearsal" in page.read_text() for page in pages)
        assert "What was not rehearsed" in done.stdout
        # Records of one cell are lost: they are made again from what was fetched, without any hub.
        lost = RESULTS / name / "mistral-7b-instruct-v0.3" / "q4"
        answers = (lost / "answers.parquet").read_bytes()
        shutil.rmtree(lost)
        done = cba(
            "model", name, lost.parent.name, HF_HOME=str(scratch / "home"), HF_HUB_OFFLINE="1"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert (lost / "answers.parquet").read_bytes() == answers
    finally:
        shutil.rmtree(RESULTS / name, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
