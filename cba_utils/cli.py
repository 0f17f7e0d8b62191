"""The command line: ``cba <verb>``. What `make` does is one of these verbs; ``cba --help`` lists them.

Every verb is a function here that calls the package. Modules are imported where they are used, so
that ``cba --help`` takes no longer than Python does. An error is one line on stderr and exit code 1;
a word that is no verb or option is exit code 2.
"""

import argparse
import os
import re
import signal
import sys
from difflib import get_close_matches
from pathlib import Path


def main(arguments=None):
    """Run one verb.

    Parameters
    ----------
    arguments : list of str, optional
        Those of the command line by default.

    Returns
    -------
    int
        The exit code: 0, 1 for an error that is told, 130 for a run that was stopped; of ``gate`` also 1
        for a model that fails and 3 for too little data.
    """
    from cba_utils.names import PROJECT

    options = _parser().parse_args(arguments)
    try:
        _from_here(options, PROJECT)
        return options.run(options) or 0
    except (ValueError, OSError, RuntimeError) as error:
        from cba_utils.study.files import in_words

        print("error: " + in_words(" ".join(str(error).split("\n"))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "error: stopped; what was finished is kept, and the same command goes on from it",
            file=sys.stderr,
        )
        return 130


def _from_here(options, project):
    """Work in the project's folder, as study files mean their paths; paths given here stay valid."""
    if Path.cwd() == project:
        return
    names = ("study", "items", "raw", "profile", "folder", "notebook", "model", "out")
    for name in (*names, "thresholds", "quantized", "result", "card", "archive"):
        value = getattr(options, name, None)
        # What is written may not be there yet.
        if value and (Path(value).exists() or name in ("out", "card", "archive")):
            setattr(options, name, os.path.abspath(value))
    if getattr(options, "models", None):
        options.models = [os.path.abspath(m) if Path(m).exists() else m for m in options.models]
    os.chdir(project)


class _Parser(argparse.ArgumentParser):
    """Errors are one line, and a verb that is misspelt has a nearest one."""

    def error(self, message):
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            verbs = re.findall(r"[\w-]+", wrong[2])
            near = get_close_matches(wrong[1], verbs, 1) or ["--help"]
            message = (
                f"{wrong[1]!r} is no verb; did you mean {near[0]!r}? There are {', '.join(verbs)}"
            )
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Asks git only if it is asked itself."""

    def __call__(self, parser, *_):
        from cba_utils.study.provenance import version

        print(f"cba {version()}")
        parser.exit()


def _parser():
    parser = _Parser(
        prog="cba",
        description="Measure stereotyped answers of language models at every precision they are "
        "quantized to: from a study file to its book.",
        epilog="Begin with `cba doctor` (what can this machine run?), `cba estimate smoke`, and "
        "`cba run smoke`. `cba <verb> --help` has an example of each.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="version and commit of the code"
    )
    verbs = parser.add_subparsers(
        dest="verb", metavar="<verb>", required=True, parser_class=_Parser
    )

    def verb(run, words, example, changes=False):
        one = verbs.add_parser(
            run.__name__.strip("_").replace("_", "-"),
            help=words,
            description=f"{words}.",
            epilog=f"Example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.set_defaults(run=run)
        if changes:
            one.add_argument("study", help="a name in config/ or results/, or a study file")
            one.add_argument(
                "--models",
                type=_models,
                metavar="A,B",
                help="instead of the study's: "
                "their names, folders with safetensors, hub ids, organisms",
            )
            one.add_argument("--precisions", type=_listed, metavar="bf16,q4", help="for all models")
            one.add_argument(
                "--items",
                metavar="N|SOURCE",
                help="at most so many, or a folder of BBQ's files, or a hub data set",
            )
            one.add_argument("--prompt", help="the words in which a question is asked")
            one.add_argument("--compute", help="dense or native, by default what is fast here")
            one.add_argument("--name", help="of the study that these changes make (my-<study>)")
        return one

    for run, words, example in [
        (
            _run,
            "Run whatever of a study is not done yet, and build its book",
            "cba run smoke --models path/to/model --precisions bf16,q4,q3 --items 400 --name mine",
        ),
        (
            _estimate,
            "What a study would run, and the memory, disk and time it would take",
            "cba estimate paper",
        ),
        (
            _pdf,
            "A study's book as one file to read on paper; needs a Chromium or Chrome",
            "cba pdf organisms",
        ),
    ]:
        one = verb(run, words, example, changes=True)
        if run is not _estimate:
            one.add_argument(
                "--raw",
                metavar="FOLDER",
                help="import records instead of running models: "
                "the folder of their *.jsonl; STUDY is then a new name",
            )
            one.add_argument(
                "--profile",
                metavar="NAME|FOLDER",
                help="where the steps run: local (the default), slurm, or a folder with a "
                "profile for Snakemake",
            )
    one = verb(
        _cell,
        "Run one model at one precision, outside of any study",
        "cba cell toy-mistral/b1 q4 --adapter toy-mistral/b1-a1 --items 200",
    )
    one.add_argument("model", help="a folder with safetensors, an organism, or a hub id")
    one.add_argument("precision", help="bf16, q8 ... q2, q4-g32, mxfp4-g32 ...")
    one.add_argument(
        "--adapter", metavar="FOLDER", help="fused into the model, as mlx_lm.lora wrote it"
    )
    one.add_argument("--items", metavar="N|SOURCE", help="at most so many, or where they come from")
    one.add_argument("--prompt", help="the words in which a question is asked")
    one.add_argument("--compute", help="dense or native, by default what is fast here")
    one = verb(
        _gate,
        "A compressed model against its own reference: exit code 0 pass, 1 fail, 3 not enough data",
        "cba gate toy-mistral/b1 q4 --adapter toy-mistral/b1-a1",
    )
    one.add_argument("model", help="a folder with safetensors, an organism, or a hub id")
    one.add_argument("precision", help="what is tested: q4, q4-gptq-scenes, q4-kv8 ...")
    one.add_argument(
        "--adapter", metavar="FOLDER", help="fused into the model, as mlx_lm.lora wrote it"
    )
    one.add_argument(
        "--quantized",
        metavar="SOURCE",
        help="a checkpoint that others made and is what PRECISION says (by default it is made here)",
    )
    one.add_argument("--reference", default="bf16", metavar="PRECISION", help="of MODEL (bf16)")
    one.add_argument(
        "--thresholds", metavar="FILE", help="margins and items (config/gate/thresholds.yml)"
    )
    one.add_argument("--items", metavar="SOURCE", help="instead of the file's: a folder of BBQ's")
    one.add_argument("--out", metavar="FOLDER", help="for gate.json and the records")
    one = verb(
        _card,
        "Write a gate's result into a Hugging Face model card: metadata and a table",
        "cba card results/gates/toy-mistral-b1-q4 path/to/README.md",
    )
    one.add_argument("result", help="the folder of a gate, or its gate.json")
    one.add_argument("card", help="README.md of the model; it is made if there is none")
    one = verb(
        _compare,
        "Two studies or recipes, paired where they asked the same",
        "cba compare recipes:q4 recipes:q4-gptq-scenes",
    )
    one.add_argument("a", help="name of a study, or study:precision")
    one.add_argument("b", help="name of another")
    one = verb(
        _rehearse,
        "Run a whole study from a hub on this machine, with random weights in the published "
        "shapes: before anything large is downloaded",
        "cba rehearse paper --items 600",
    )
    one.add_argument("study", help="a name in config/ or results/, or a study file")
    one.add_argument("--models", type=_models, metavar="A,B", help="names in the study")
    one.add_argument("--precisions", type=_listed, metavar="bf16,q4", help="for all models")
    one.add_argument("--items", metavar="N", help="at most so many")
    one.add_argument("--layers", type=int, default=1, metavar="N", help="of every model (1)")
    one.add_argument(
        "--parts",
        type=int,
        metavar="N",
        help="divide the published widths by this; by default "
        "the widest models are taken that end in time",
    )
    one.add_argument("--minutes", type=float, default=30, metavar="N", help="what is in time (30)")
    one.add_argument(
        "--stand-in",
        action="store_true",
        help="make stand-ins for the tokenizers, and ask no "
        "package index for the packages that ship the true ones",
    )
    one = verb(
        _deposit,
        "Pack a study that was run for a repository of data: code, records, provenance and book, as an "
        "RO-Crate",
        "cba deposit organisms --archive organisms.zip",
    )
    one.add_argument("study", help="a name in config/ or results/")
    one.add_argument(
        "--archive", metavar="FILE.zip", help="what to write (results/<study>/deposit.zip)"
    )
    verb(_doctor, "What this machine is, and which studies it can run", "cba doctor")
    one = verb(
        _instrument,
        "Judge simulated studies of known truth by every verdict (about an hour, can be resumed)",
        "cba instrument --simulations 20 --out trial",
    )
    one.add_argument("--simulations", type=int, metavar="N", help="studies of each truth (500)")
    one.add_argument("--out", metavar="FOLDER", help="for the tables (results/instrument/)")
    one = verb(
        _keys,
        "The keys of a study file: a table, or a JSON schema for an editor",
        "cba keys --json > study.schema.json",
    )
    one.add_argument("--json", action="store_true", help="the JSON schema")
    # Steps of the workflow, which may be taken by hand as well.
    one = verb(
        _model, "Step: all cells of one model of a study", "cba model smoke toy-mistral-b1-a1"
    )
    one.add_argument("study")
    one.add_argument("name", help="the model's name in the study")
    one.add_argument(
        "--part", metavar="PRECISION", help="this cell alone, or 'rounding' for what is taken apart"
    )
    one = verb(
        _collect,
        "Step: join the cells of a study into the tables that reports read",
        "cba collect smoke",
    )
    one.add_argument("study")
    one.add_argument(
        "--small",
        action="store_true",
        help="leave out the words of items and answers, and "
        "keep log-probabilities in 16 bits: for tables that are committed",
    )
    one = verb(
        _items_again,
        "Put columns that items have gained since into the committed tables of a study, if its items "
        "are word for word those that were asked",
        "BBQ_DIR=path/to/bbq cba items-again smollm2",
    )
    one.add_argument("study", help="a name in config/ or results/, or a study file")
    one = verb(
        _again,
        "Ask a slice of a study's items again, and compare with its records",
        "BBQ_DIR=path/to/bbq cba again smollm2 --items 200 --precisions bf16,q4",
    )
    one.add_argument("study", help="a name in config/ or results/, or a study file")
    one.add_argument("--items", metavar="N", default="200", help="how many (200)")
    one.add_argument("--precisions", type=_listed, metavar="bf16,q4", help="of the study's")
    one = verb(
        _import,
        "Step: make the tables of a study from records that exist",
        "cba import theirs path/to/jsonl --items path/to/bbq",
    )
    one.add_argument("study", help="a new name")
    one.add_argument("folder", help="every *.jsonl in it is read")
    one.add_argument("--items", metavar="SOURCE", help="the items that were asked")
    one = verb(
        _report,
        "Step: execute a report notebook on a study",
        "cba report smoke notebooks/20_dose_response.ipynb",
    )
    one.add_argument("study")
    one.add_argument("notebook")
    one = verb(
        _sources, "Step: put the book's sources beside a study's reports", "cba sources smoke"
    )
    one.add_argument("study")
    one = verb(
        _html,
        "Step: build a study's book from its executed reports; no model is run",
        "cba html smoke",
    )
    one.add_argument("study")
    return parser


def _listed(text):
    """Parts between commas or spaces; a text of nothing else is no list."""
    parts = re.findall(r"[^,\s]+", text)
    if text and not parts:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; leave it out or name some")
    return parts


def _models(text):
    from cba_utils.study.protocol import parse_models

    _listed(text)
    return parse_models(text) if text else []


def _items(options):
    from cba_utils.study.protocol import parse_items

    return parse_items(options.items or "")


def _study_file(text):
    """The file of a study that is named, or is named by its file."""
    from cba_utils.names import CONFIG, PROJECT, RESULTS
    from cba_utils.study.protocol import check_name

    if text.endswith((".yml", ".yaml")):
        return Path(text)
    check_name(text, "STUDY")
    files = [CONFIG / f"{text}.yml", RESULTS / text / "study.yml"]
    found = next((file for file in files if file.is_file()), None)
    if not found:
        have = sorted(p.stem for p in CONFIG.glob("*.yml")) + sorted(
            p.parent.name for p in RESULTS.glob("*/study.yml")
        )
        near = get_close_matches(text, have, 1)
        raise ValueError(
            f"STUDY: there is no {text!r}"
            + (f", did you mean {near[0]!r}?" if near else ";")
            + f" There are {', '.join(have)}"
        )
    return found.relative_to(PROJECT)


def _asked(options, keep):
    """The study that was asked for, with its changes, and its file; `keep` writes a changed one."""
    import yaml

    from cba_utils.names import PROJECT, RESULTS
    from cba_utils.study.files import write_text
    from cba_utils.study.protocol import narrow, read_study

    path = _study_file(options.study)
    study = read_study(path)
    changes = {
        key: getattr(options, key)
        for key in ("models", "precisions", "prompt", "compute")
        if getattr(options, key)
    }
    if _items(options):
        changes["items"] = _items(options)
    if not changes:
        if options.name:
            raise ValueError(
                "NAME names a study that differs in MODELS, PRECISIONS, ITEMS, PROMPT or "
                "COMPUTE: give one of them"
            )
        return study, path
    study = narrow(study, options.name or f"my-{study['name']}", **changes)
    path = RESULTS / study["name"] / "study.yml"
    if keep:
        write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True), path)
    return study, path.relative_to(PROJECT)


def _run(options):
    from cba_utils import BLAS
    from cba_utils.names import PROJECT
    from cba_utils.study.imported import imported_study
    from cba_utils.study.protocol import book_folder
    from cba_utils.study.workflow import run_workflow

    print(BLAS, flush=True)
    if options.raw:
        for name in ("models", "precisions", "prompt", "compute", "name"):
            if getattr(options, name):
                raise ValueError(
                    f"{name.upper()} does not go with RAW: records are imported as they "
                    f"are, under the name that STUDY gives"
                )
        study = imported_study(options.study)
        source = _items(options) or os.environ.get("BBQ_DIR") or None
        if isinstance(source, int):
            raise ValueError(
                f"ITEMS: {source} is a number; with RAW it is where the items that were "
                f"asked come from: a folder of BBQ's JSONL files, a hub data set, or bundled"
            )
        run_workflow(options.study, options.raw, source, options.profile or "local")
    else:
        study, path = _asked(options, keep=True)
        run_workflow(path, profile=options.profile or "local")
    book = book_folder(study["name"]).relative_to(PROJECT) / "_build" / "html" / "index.html"
    print(f"The book of study {study['name']!r}: open {book}")


def _estimate(options):
    from cba_utils.study.estimate import describe

    if not options.name and (options.models or options.precisions or options.items):
        options.name = "asked"
    print("\n".join(describe(_asked(options, keep=False)[0])))


def _pdf(options):
    from cba_utils.names import PROJECT
    from cba_utils.study.protocol import SHIPPED, book_folder
    from cba_utils.study.workflow import build_book
    from cba_utils.telling.pdf import open_browser, write_pdf

    changed = any(
        getattr(options, name) for name in ("models", "precisions", "items", "prompt", "compute")
    )
    if options.raw or changed or options.study != SHIPPED:
        _run(options)
        name = options.name or (
            f"my-{options.study}" if changed and not options.raw else options.study
        )
    else:
        build_book(SHIPPED)
        name = SHIPPED
    built = book_folder(name).relative_to(PROJECT) / "_build"
    with open_browser() as browser:
        write_pdf(browser, built / "html", built / "book.pdf")
    print(f"The book on paper: {built / 'book.pdf'}")


def _cell(options):
    from cba_utils.names import PROJECT, RESULTS
    from cba_utils.study.files import remove_scratch
    from cba_utils.study.notebooks import run_cell, told

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        output = run_cell(
            options.model,
            options.precision,
            _items(options),
            options.prompt or None,
            options.compute or None,
            options.adapter or None,
        )
    except KeyboardInterrupt:
        remove_scratch(RESULTS / "cells", mine=True)
        raise
    print("\n".join(told(output)))
    print(f"The executed notebook and its records: {output.parent.relative_to(PROJECT)}")


def _gate(options):
    from cba_utils.names import CONFIG
    from cba_utils.telling.gate import EXIT, gate, in_words, read_thresholds

    thresholds = read_thresholds(options.thresholds or CONFIG / "gate" / "thresholds.yml")
    if options.items:
        items = thresholds.items.model_copy(update={"source": options.items})
        thresholds = thresholds.model_copy(update={"items": items})
    told = gate(
        options.model,
        options.precision,
        thresholds,
        options.quantized,
        options.reference,
        options.out,
        options.adapter or None,
    )
    print(in_words(told))
    print(f"written: {told['folder']}/gate.json")
    return EXIT[told["verdict"]]


def _card(options):
    from cba_utils.telling.card import write_card
    from cba_utils.telling.gate import read_gate

    print(f"written: {write_card(read_gate(options.result), options.card)}")


def _compare(options):
    from cba_utils.telling.compare import told

    if options.a == options.b:
        raise ValueError(f"A and B are both {options.a!r}; name two studies")
    print(told(options.a, options.b))


def _rehearse(options):
    from cba_utils.study.rehearsal.run import rehearse

    limit = _items(options)
    if isinstance(limit, str):
        raise ValueError(
            f"ITEMS: {limit!r} is no number; a rehearsal asks the study's own items, and fills "
            f"them from BBQ_DIR"
        )
    bbq = os.environ.get("BBQ_DIR")
    if bbq and not Path(bbq).is_dir():
        raise ValueError(f"BBQ_DIR: there is no folder {bbq!r}")
    print(
        rehearse(
            _study_file(options.study),
            models=options.models or None,
            precisions=options.precisions or None,
            limit=limit,
            layers=options.layers,
            parts=options.parts,
            minutes=options.minutes,
            packaged=not options.stand_in,
            bbq=Path(bbq).resolve() if bbq else None,
        )
    )


def _deposit(options):
    from cba_utils.study.deposit import archive_of, deposit
    from cba_utils.study.protocol import SHIPPED
    from cba_utils.study.workflow import build_book

    study = _step_study(options.study)["name"]
    archive = archive_of(study, options.archive)
    if study == SHIPPED:
        build_book(study)
    deposit(study, archive)
    print(f"The deposit: {archive} ({archive.stat().st_size / 1e6:.0f} MB)")


def _doctor(_):
    from cba_utils.study.doctor import examine

    for name, text in examine():
        print(f"{name:16} {text}", flush=True)


def _instrument(options):
    from cba_utils.instrument.verdicts import RESULT, SIMULATIONS, write

    if options.simulations is not None and options.simulations < 1:
        raise ValueError(f"--simulations: {options.simulations} is not above 0")
    folder = Path(options.out or RESULT.parent)
    write(options.simulations or SIMULATIONS, folder, told=lambda line: print(line, flush=True))
    print(f"wrote {folder}")


def _keys(options):
    import json

    from cba_utils.study.protocol import Study, documentation

    print(json.dumps(Study.model_json_schema(), indent=1) if options.json else documentation())


def _step_study(text):
    """The study of a step: by its file, or by the name of imported records."""
    from cba_utils.study.imported import imported_study
    from cba_utils.study.protocol import read_study

    try:
        return read_study(_study_file(text))
    except ValueError as error:
        from cba_utils.names import RESULTS

        if "/" in text or not (RESULTS / text / "tables").is_dir():
            raise error from None
        return imported_study(text)


def _model(options):
    from cba_utils.study.notebooks import run_model

    run_model(_step_study(options.study), options.name, options.part)


def _collect(options):
    from cba_utils.study.notebooks import remove_states
    from cba_utils.study.protocol import cells
    from cba_utils.study.rounding import collect_rounding
    from cba_utils.study.tables import collect, shrink

    study = _step_study(options.study)
    # Jobs of single cells leave to this step what others of their model may still need.
    remove_states(study["name"], cells(study))
    collect_rounding(study)
    collect(study)
    if options.small:
        shrink(study["name"])


def _items_again(options):
    from cba_utils.study.tables import refresh_items

    study = _step_study(options.study)
    added = refresh_items(study)
    print(f"added to the items of {study['name']}: {', '.join(added) or 'nothing'}", flush=True)


def _again(options):
    from cba_utils.study.again import TOLERANCE, again, beyond

    limit = _items(options)
    if not isinstance(limit, int):
        raise ValueError(f"ITEMS: {limit!r} is no number; the study says where its items come from")
    found = again(_step_study(options.study), limit, options.precisions)
    print(found.to_string(index=False, float_format="{:.3f}".format), flush=True)
    if len(beyond(found)):
        raise ValueError(
            f"{', '.join(beyond(found)['precision'])}: the answers differ from the records by more than "
            f"arithmetic explains (at most {TOLERANCE['largest']}, on average {TOLERANCE['mean']})"
        )


def _import(options):
    from cba_utils.study.imported import import_raw

    import_raw(options.study, options.folder, options.items)


def _report(options):
    from cba_utils.study.notebooks import run_report

    notebook = Path(options.notebook)
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise ValueError(f"notebook: {options.notebook!r} is no notebook (*.ipynb) that is there")
    run_report(_step_study(options.study), notebook)


def _sources(options):
    from cba_utils.study.notebooks import copy_book

    copy_book(_step_study(options.study))


def _html(options):
    from cba_utils.study.workflow import build_book

    build_book(_step_study(options.study)["name"])


if __name__ == "__main__":
    sys.exit(main())
