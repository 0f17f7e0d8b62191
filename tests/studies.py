"""Simulated studies whose truth is known, for tests of what pages say."""

from dataclasses import replace

from cba_utils.instrument.respondents import simulate_study
from cba_utils.telling.study import Study

import pandas as pd

PROVENANCE = pd.DataFrame(
    [
        {
            "identity.parameters.model": "simulated",
            "parameters_of_model": 0,
            "git_commit": None,
            "git_dirty": False,
            "identity.items_sha256": "0" * 64,
            "identity.packages.mlx": "0",
            "identity.parameters.items": "bundled",
            "identity.parameters.temperature": 0.3,
            "started": "2026-01-01T00:00:00+00:00",
        }
    ]
)


def study_of(truth="bias", **options):
    """A simulated study of a truth, as `open_study` would give it."""
    study = simulate_study(
        truth, **{"templates": 15, "precisions": ["bf16", "q4", "q3"], **options}
    )
    cells = study["samples"][
        ["model", "family", "base", "replicate", "depth", "precision"]
    ].drop_duplicates()
    return Study("simulated", **study, provenance=cells.merge(PROVENANCE, how="cross"))


def without_probabilities(study):
    """The same study as records of sampled answers alone."""
    study.answers = study.answers.iloc[:0]
    study.perplexity = study.perplexity.iloc[:0]
    return study


def without_letters(
    study, cells=lambda table: table["model"] == table["model"], response="<think> Well"
):
    """The same study, in some of whose cells (by default in all) no answer is a letter."""
    samples, answers = study.samples.copy(), study.answers.copy()
    samples.loc[cells(samples), ["role", "raw_response", "parsed_answer"]] = (
        "unparsed",
        response,
        None,
    )
    answers.loc[cells(answers), ["mass_other", "mass_other_t"]] = 1.0
    return replace(study, samples=samples, answers=answers, letters=None)


def as_categories(table):
    """A table whose words are categories, as on disk, among which one does not occur."""
    words = [name for name in table if isinstance(table[name].dtype, pd.StringDtype)]
    known = {name: pd.CategoricalDtype(sorted({*table[name], "never met"})) for name in words}
    return table.astype(known)
