"""The records of one study, opened for telling: which cells speak, and how estimates are pooled.

A chapter reads a :class:`Study` and calls measures on its tables. Where a study has several checkpoints of
a family, summaries are means over them with their spread; where it has one, they are that checkpoint's
own estimates. Families are never a sample of families: what is pooled over them holds for those at hand.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import yaml

from cba_utils.answering.precisions import most_bits_first
from cba_utils.answering.sources import is_organism, local_folder
from cba_utils.measures.frames import VERSION, item_table, of_version
from cba_utils.measures.intervals import ESTIMATE_COLUMNS
from cba_utils.measures.measure import derived
from cba_utils.measures.planted import planted_is_known
from cba_utils.measures.pooling import over_models, over_replicates, presentable
from cba_utils.measures.transitions import placebo, transitions
from cba_utils.names import CONFIG, RESULTS
from cba_utils.study.protocol import family_title
from cba_utils.study.roles import study_columns
from cba_utils.study.tables import load_study
from cba_utils.telling.numbers import ABOVE, BELOW, NOT_TOLD_APART, reading

# What the examined study makes its claim at.
CLAIMED = ("q4", "q3")


@dataclass(frozen=True)
class Told:
    """An estimate of one family (or of one model, where a family has unlike ones) and its reading."""

    name: str
    row: pd.Series
    reading: str


class Readings(list):
    """What intervals let one say of each family at one precision, in the order of the study.

    Examples
    --------
    >>> rows = [{"estimate": e, "low": e - 1, "high": e + 1} for e in (2.0, 0.5)]
    >>> found = Readings(Told(n, r, reading(r)) for n, r in zip("ab", rows))
    >>> found.above, found.rest, found.agreed, found.most.name
    (['a'], ['b'], None, 'a')
    """

    def _names(self, wanted):
        return [one.name for one in self if one.reading == wanted]

    @property
    def names(self):
        """All families."""
        return [one.name for one in self]

    @property
    def above(self):
        """Families whose interval lies above what stands for no effect."""
        return self._names(ABOVE)

    @property
    def below(self):
        """Families whose interval lies below it."""
        return self._names(BELOW)

    @property
    def rest(self):
        """Families that cannot be told apart from it."""
        return self._names(NOT_TOLD_APART)

    @property
    def agreed(self):
        """The reading that all families share; None where they go different ways."""
        found = {one.reading for one in self}
        return found.pop() if len(found) == 1 else None

    @property
    def least(self):
        """The family with the lowest estimate; None where no family has one."""
        return min(self._defined(), key=lambda one: one.row["estimate"], default=None)

    @property
    def most(self):
        """The family with the highest estimate; None where no family has one."""
        return max(self._defined(), key=lambda one: one.row["estimate"], default=None)

    def _defined(self):
        return [one for one in self if not np.isnan(one.row["estimate"])]


@dataclass
class Study:
    """The records of one study, see :func:`open_study`.

    Families go by what sentences call them; ``titles`` are those of the study file, which figures write.
    """

    study: str
    items: pd.DataFrame
    answers: pd.DataFrame
    samples: pd.DataFrame
    perplexity: pd.DataFrame
    provenance: pd.DataFrame
    note: str = ""
    letters: pd.DataFrame | None = None
    titles: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        """Set aside the cells that give no letter: no rate is computed over an empty base."""
        if self.letters is None:
            self.letters = letters(self)
        silent = set(self.letters.index[self.letters["silent"]])
        if silent:
            for name in ("answers", "samples"):
                table = getattr(self, name)
                cells = pd.MultiIndex.from_frame(table[["model", "precision"]])
                setattr(self, name, table[~cells.isin(silent)].reset_index(drop=True))

    @property
    def speechless(self):
        """Whether no model gives letters, so that nothing can be said of its answers."""
        return self.samples.empty and self.answers.empty

    @property
    def silent(self):
        """Cells that were set aside, one entry a model.

        Returns
        -------
        list of dict
            ``model``, ``precisions`` without letters, ``all`` (whether there are no others, or the reference
            is among them), the likely ``reason`` and the commonest ``response``.
        """
        found = []
        for model, rows in self.letters.groupby(level="model", sort=False):
            quiet = rows[rows["silent"]]
            if quiet["own"].any():
                at = most_bits_first(quiet.index.get_level_values("precision")[quiet["own"]])
                first = quiet[quiet["own"]].iloc[0]
                found.append(
                    {
                        "model": model,
                        "precisions": at,
                        "all": bool(rows["silent"].all()),
                        "reason": first["reason"],
                        "response": first["response"],
                    }
                )
        return found

    @property
    def unparsed(self):
        """Share of the answers that are no letter, a precision, over all models.

        Returns
        -------
        dict of str to float
        """
        shares = self.letters.groupby(level="precision")["none"].mean()
        return {p: float(shares[p]) for p in most_bits_first(shares.index)}

    @property
    def lettered(self):
        """Precisions at which nearly all answers begin with a letter: there alone fresh draws can be had."""
        return [p for p, share in self.unparsed.items() if share < BEGIN]

    def of(self, models):
        """The same study with some of its models alone."""
        tables = {
            name: getattr(self, name) for name in ("answers", "samples", "perplexity", "provenance")
        }
        kept = {
            name: table[table["model"].isin(models)].reset_index(drop=True)
            for name, table in tables.items()
        }
        return replace(
            self,
            **kept,
            letters=self.letters.loc[self.letters.index.get_level_values("model").isin(models)],
        )

    @property
    def folder(self):
        """Where the figures and their data are written."""
        return RESULTS / self.study / "figures"

    @property
    def exact(self):
        """Whether the records hold probabilities, and not sampled answers alone."""
        return len(self.answers) > 0

    @property
    def best(self):
        """What rates are computed from: probabilities, or counts of sampled answers."""
        return self.answers if self.exact else self.drawn

    @property
    def single(self):
        """The same, one row an answer: what moves of single answers are computed from."""
        return self.answers if self.exact else self.samples

    @property
    def imported(self):
        """Whether the records were read from JSONL, and no model was run for them."""
        return any(name.startswith("identity.records_sha256") for name in self.provenance)

    @property
    def prompt(self):
        """Name of the prompt that was asked; what does not say is taken for the published one."""
        column = "identity.parameters.prompt"
        return self.provenance[column].iloc[0] if column in self.provenance else "published"

    @property
    def temperature(self):
        """Temperature at which answers were drawn; None where records do not say."""
        column = "identity.parameters.temperature"
        return float(self.provenance[column].iloc[0]) if column in self.provenance else None

    @property
    def organisms(self):
        """Whether all models are small ones that this project trained, see `sources.is_organism`."""
        sources = self.provenance["identity.parameters.model"].unique()
        return not self.imported and all(map(is_organism, sources))

    @property
    def own_items(self):
        """Whether all items are of the project's own bank."""
        return not self.imported and bool(
            (self.provenance["identity.parameters.items"] == "bundled").all()
        )

    @cached_property
    def held_out(self):
        """The study on the items whose templates no training asked; None where it has none, or others'."""
        if not (self.organisms and self.own_items):
            return None
        try:
            return open_study(self.study, version="heldout-template")
        except (FileNotFoundError, ValueError):
            return None

    @property
    def announced(self):
        """Whether the items are those of the organisms' protocol, and the precisions too."""
        ours = self.organisms and self.own_items and planted_is_known()
        return ours and set(CLAIMED) <= set(self.precisions)

    @property
    def families(self):
        """Families in the order of the study, and how figures call them."""
        whole = {family_title(title): title for title in self.titles.values()}
        return {name: whole.get(name, name) for name in dict.fromkeys(self.provenance["family"])}

    @property
    def millions(self):
        """Parameters of the largest model, in millions."""
        return self.provenance["parameters_of_model"].max() / 1e6

    def named(self, change):
        """The measure that says how many items changed, by fresh draws where they are known."""
        return derived(change, "expected").name if self.exact else change

    @cached_property
    def drawn(self):
        """Item table of the sampled answers, which takes a while to count."""
        return item_table(self.samples)

    @property
    def undefined(self):
        """Answers to items without a defined target, see `raw.as_published`; None if there are none."""
        path = RESULTS / self.study / "tables" / "undefined.parquet"
        if not path.is_file():
            return None
        table = pd.read_parquet(path)
        texts = table.select_dtypes("category").columns
        return table.astype(dict.fromkeys(texts, object)) if len(table) else None

    @property
    def precisions(self):
        """Precisions of the study, from most to fewest bits."""
        cells = self.provenance if self.speechless else self.samples
        return most_bits_first(cells["precision"].unique())

    @property
    def lowest(self):
        """The precision with the fewest bits."""
        return self.precisions[-1]

    @property
    def middle(self):
        """Four bits, at which models are most often shipped; else the second lowest.

        Only precisions that every quantized model has can be asked for.
        """
        each = [set(p) for p in self.samples.groupby("model")["precision"].unique() if len(p) > 1]
        quantized = [p for p in self.precisions[1:] if all(p in found for found in each)]
        return "q4" if "q4" in quantized else quantized[max(0, len(quantized) - 2)]

    @property
    def shown(self):
        """The precisions that sentences are about: those of the published claim.

        Where the study lacks one of these, four bits and the lowest, or what comes next to them.
        """
        each = [set(p) for p in self.samples.groupby("model")["precision"].unique() if len(p) > 1]
        if all(p in found for p in CLAIMED for found in each):
            return list(CLAIMED)
        return list(dict.fromkeys([self.middle, self.lowest]))

    @property
    def several(self):
        """Whether every family has several checkpoints, so that their spread can be seen."""
        return self.samples.groupby("family")["replicate"].nunique().min() > 1

    def summarise(self, frame):
        """Estimates a family: over its checkpoints, or its only checkpoint's own."""
        cells = frame[[*study_columns(frame), *ESTIMATE_COLUMNS]]
        pooled = over_replicates(cells) if self.several else cells.assign(of=cells["n"])
        order = {name: k for k, name in enumerate(self.families)}
        return presentable(
            pooled.sort_values(
                "family", key=lambda f: f.map(order), kind="stable", ignore_index=True
            )
        )

    def pooled(self, frame, by=()):
        """Estimates over all checkpoints of all families, which are taken as they are.

        Several checkpoints of each family show a spread within families; one each shows none,
        and then the models' own intervals are averaged. ``by`` names further columns that group
        the frame. See `cba_utils.measures.pooling`.
        """
        cells = frame[[*study_columns(frame), *by, *ESTIMATE_COLUMNS]]
        if cells["model"].nunique() == 1:
            return presentable(cells.assign(of=cells["n"]))
        return presentable(
            over_replicates(cells, ["family"]) if self.several else over_models(cells)
        )

    def each(self, frame):
        """Estimates to be told one after the other: each family's, or each model's of unlike ones.

        A mean over unlike families says nothing about any of them.

        Parameters
        ----------
        frame : DataFrame
            Estimates of every checkpoint.

        Returns
        -------
        list of (str, DataFrame)
            A name, and the estimates of what it names.
        """
        if self.several:
            parts = dict(list(self.summarise(frame).groupby("family", sort=False)))
        else:
            alone = frame.groupby("family")["model"].nunique().max() == 1
            parts = dict(list(frame.groupby("family" if alone else "model", sort=False)))
        order = list(self.families)
        return sorted(parts.items(), key=lambda pair: order.index(pair[1]["family"].iloc[0]))

    def told(self, frame, measure, precision, null=0.0, digits=None):
        """What can be said of a measure at a precision, family by family.

        Parameters
        ----------
        frame : DataFrame
            Estimates of every checkpoint.
        measure, precision : str
        null, digits
            See `cba_utils.telling.numbers.reading`.

        Returns
        -------
        Readings
        """
        frame = frame[(frame["measure"] == measure) & (frame["precision"] == precision)]
        if frame.empty:
            return Readings()
        rows = ((name, pick(part, measure, precision)) for name, part in self.each(frame))
        return Readings(Told(name, row, reading(row, null, digits)) for name, row in rows)

    def by_depth(self, frame):
        """Estimates a depth, over the checkpoints of all families."""
        alone = frame.groupby(["depth", "precision"])["model"].nunique().max() == 1
        summary = frame if alone else self.pooled(frame)
        return summary.sort_values("depth", key=lambda d: d.map(_steps), kind="stable")

    @property
    def depths(self):
        """Depths of alignment, from shallow to deep."""
        return sorted(self.samples["depth"].unique(), key=_steps)

    @property
    def n_text(self):
        """How much was measured, for captions."""
        ambiguous = (self.items["context_condition"] == "ambig").sum()
        templates = self.samples["template_id"].nunique()
        unit = "question templates" if self.templates else "runs of consecutive questions"
        items = f"{ambiguous:,} ambiguous items from {templates:,} {unit}"
        per = self.samples.groupby("family")["model"].nunique()
        if self.speechless:
            return f"{ambiguous:,} ambiguous items, and no letter in answer"
        if len(self.samples["model"].unique()) == 1:
            return f"one checkpoint, {items}"
        families = "one family" if len(per) == 1 else f"{len(per)} families"
        if self.bases > 1:
            models = self.samples["model"].nunique()
            return f"{models} checkpoints of {families} ({self.bases} bases each), {items}"
        count = " to ".join(dict.fromkeys([str(per.min()), str(per.max())]))
        noun = "checkpoint" if count == "1" else "checkpoints"
        return f"{families}, {count} {noun} each, {items}"

    @property
    def bases(self):
        """In how many bases at least a family's models have their origin; one where none is shared."""
        models = self.samples.drop_duplicates("model")
        shared = models.groupby("base")["model"].size().max() > 1
        return int(models.groupby("family")["base"].nunique().min()) if shared else 1

    @property
    def n_short(self):
        """The same in few words, for figures."""
        ambiguous = (self.items["context_condition"] == "ambig").sum()
        models = self.samples["model"].nunique()
        return f"{models} checkpoint{'s' * (models != 1)}, {ambiguous:,} ambiguous items"

    @property
    def interval_text(self):
        """What intervals speak about, for captions."""
        families = self.samples["family"].nunique()
        if self.several:
            made = "over bases trained" if self.bases > 1 else "over checkpoints trained"
            if families == 1:
                return f"{made} alike from different seeds"
            return f"{made} alike within each of {families} families, which are taken as they are"
        unit = "question templates" if self.templates else "runs of consecutive questions"
        alone = f"over {unit}, for one checkpoint alone"
        if self.samples["model"].nunique() <= 1:
            return alone
        return (
            f"{alone} (a mean over models takes these as they are, and its interval is the "
            f"mean of their interval ends)"
        )

    @property
    def models_count(self):
        """How many models speak."""
        return self.provenance["model"].nunique()

    @property
    def days(self):
        """The day of the run, or the first and the last."""
        days = sorted({start[:10] for start in self.provenance["started"]})
        return " to ".join(dict.fromkeys([days[0], days[-1]]))

    @property
    def templates(self):
        """Whether it is known from which template an item was made."""
        return bool(self.samples["question_index"].notna().all())

    @property
    def reference_perplexity(self):
        """Perplexity of every model at BF16."""
        cells = self.perplexity[self.perplexity["precision"] == "bf16"]
        sums = cells.groupby("model")[["nll", "tokens"]].sum()
        return np.exp(sums["nll"] / sums["tokens"])

    @property
    def vocabulary(self):
        """Tokens in the largest vocabulary of the organisms; None for other models."""
        if not self.organisms:
            return None
        names = self.provenance["identity.parameters.model"].unique()
        configs = (local_folder(name) / "config.json" for name in names)
        return max(json.loads(config.read_text())["vocab_size"] for config in configs)

    @property
    def worse_than_guessing(self):
        """Whether the models are worse at the text than one that has learned nothing."""
        known = self.vocabulary is not None
        return known and bool((self.reference_perplexity > self.vocabulary).all())

    @property
    def provenance_line(self):
        """Study, cells, code, versions, items, device and date, for the foot of a page."""
        return self.cited(self.provenance)

    def cited_rounding(self, known):
        """How many models were taken apart, by which code and when."""
        known = known.sort_values("started")
        commits = [c[:7] for c in known["git_commit"].dropna().unique()]
        code = f"code of commit{'s' * (len(commits) > 1)} {' and '.join(commits) or 'none'}"
        days = dict.fromkeys([known["started"].iloc[0][:10], known["started"].iloc[-1][:10]])
        return (
            f"rounding of {len(known)} model{'s' * (len(known) > 1)} taken apart, {code}, "
            f"{' to '.join(days)}"
        )

    def cited(self, cells):
        """The same for a part of the cells, where a page uses no others."""
        cells = cells.sort_values("started")
        commits = [c[:7] for c in cells["git_commit"].dropna().unique()]
        if len(commits) > 2:
            code = f"code of {len(commits)} commits from {commits[0]} to {commits[-1]}"
        elif commits:
            code = f"code of commit{'s' * (len(commits) > 1)} {' and '.join(commits)}"
        elif "commit_with_this_code" in cells:
            # The machine of the run had no git: the commit was found by the hash of its modules.
            names = [c[:7] for c in cells["commit_with_this_code"].dropna().unique()]
            code = f"code without commit, its hash that of commit {' and '.join(names)}"
        else:
            code = "code without commit"
        if cells["git_dirty"].any():
            code += " with local changes"
        items = ", ".join(h[:12] for h in cells["identity.items_sha256"].unique())
        if self.imported:
            files = [c for c in cells if c.startswith("identity.records_sha256")]
            return (
                f"study {self.study}, {len(cells)} cells, {cells['counts.samples'].sum():,} records imported "
                f"from {len(files)} files on {cells['started'].iloc[0][:10]} with {code}, items "
                f"{items}; no model was run"
            )
        mlx = ", ".join(cells["identity.packages.mlx"].unique())
        days = sorted({start[:10] for start in cells["started"]})
        return (
            f"study {self.study}, {len(cells)} cells, {code}, MLX {mlx}, items {items}, "
            f"run {' to '.join(dict.fromkeys([days[0], days[-1]]))}"
        )


# More than this share of no letters counts as none; so does not one letter among all samples.
SILENT = 0.99
# Fresh draws follow from the letters' probabilities only where fewer answers than this begin otherwise.
BEGIN = 0.05


def letters(study):
    """How often each cell gives no letter in answer to ambiguous items.

    Parameters
    ----------
    study : Study

    Returns
    -------
    DataFrame
        One row a model and precision: ``none``, the share of the answers that are no letter; ``own``,
        whether the cell gives so few letters that it is said to give none; ``silent``, whether it is set
        aside, which all cells of a model are whose reference gives none; the commonest ``response`` of such
        a cell and the likely ``reason``: ``"thinking"``, ``"base"`` (no chat template) or ``"unknown"``.
    """
    keys = ["model", "precision"]
    columns = ["none", "own", "silent", "response", "reason"]
    asked = [t[t["context_condition"] == "ambig"] for t in (study.answers, study.samples)]
    shares = []
    probability = "mass_other_t" if "mass_other_t" in study.answers else "p_other"
    for table, of in zip(asked, (probability, "role"), strict=True):
        if len(table):
            none = table[of] if of != "role" else table["role"].eq("unparsed").astype(float)
            shares.append(none.groupby([table["model"], table["precision"]], sort=False).mean())
    if not shares:
        return pd.DataFrame(columns=columns, index=pd.MultiIndex.from_arrays([[], []], names=keys))
    found = pd.DataFrame({"none": shares[0]})
    drawn = shares[-1].reindex(found.index)
    found["own"] = (found["none"] > SILENT) | (drawn == 1.0)
    reference = (
        found["own"].xs("bf16", level="precision") if "bf16" in drawn.index.levels[1] else {}
    )
    lost = found.index.get_level_values("model").map(
        lambda model: bool(reference.get(model, False))
    )
    found["silent"] = found["own"] | lost
    found["response"], found["reason"] = "", ""
    for cell in found.index[found["own"]]:
        rows = asked[1][(asked[1]["model"] == cell[0]) & (asked[1]["precision"] == cell[1])]
        responses = rows.get("raw_response", pd.Series(dtype=object)).value_counts()
        response = str(responses.index[0]) if len(responses) else ""
        found.loc[cell, ["response", "reason"]] = response, _reason(study, cell, response)
    return found[columns]


_THINKS = re.compile(r"\s*(<\W?think|<\|channel|<thought|\[THINK|<reason)", re.IGNORECASE)
_NO_TEMPLATE = hashlib.sha256(b"").hexdigest()


def _reason(study, cell, response):
    """Why a cell gives no letter, as far as it shows."""
    if _THINKS.match(response):
        return "thinking"
    known = study.provenance
    if "identity.chat_template_sha256" in known:
        rows = known[(known["model"] == cell[0]) & (known["precision"] == cell[1])]
        if rows["identity.chat_template_sha256"].isin([_NO_TEMPLATE]).any():
            return "base"
    return "unknown"


def open_study(study, keep="main", version=VERSION):
    """Read a study's records.

    Parameters
    ----------
    study : str
        A study's name, see ``config/``.
    keep : {"main", "ladder", "all"}
        ``"main"``: every family at the depth of alignment that most models have; ``"ladder"``:
        the families whose alignment was stopped at most depths, with all of them; ``"all"``.
    version : str
        The version of the items, see `cba_utils.measures.frames.of_version`: what a bank keeps apart,
        such as ``"heldout-template"``, is read by its name, and ``"all"`` takes all items.

    Returns
    -------
    Study
    """
    tables = of_version(load_study(study), version)
    about = tables["items"].attrs.get("study", {})
    titles = family_titles(study, about)
    tables = {name: titled(table, titles) for name, table in tables.items()}
    models = tables["provenance"].drop_duplicates(["model", "depth"])
    if keep == "main":
        kept = models[models["depth"] == models["depth"].value_counts().index[0]]
    elif keep == "ladder":
        # a depth at BF16 alone has no change to show
        changed = tables["provenance"].query("precision != 'bf16'")["model"]
        orders = models["identity.parameters.orders"]
        # models scored in further option orders are there for the letter page
        models = models[models["model"].isin(changed) & (orders == orders.mode()[0])]
        depths = models.groupby("family")["depth"].nunique()
        kept = models[models["family"].isin(depths.index[depths == depths.max()])]
    elif keep == "all":
        kept = models
    else:
        raise ValueError(f"keep must be 'main', 'ladder' or 'all', not {keep!r}")
    for name, table in tables.items():
        if "model" in table:
            tables[name] = table[table["model"].isin(kept["model"])].reset_index(drop=True)
    return Study(study, **tables, note=about.get("note", ""), titles=titles)


def family_titles(study, about):
    """How pages call the families of a study: by its file as it is now, else as its records say.

    Titles decide no answer, so that a study need not be run again for another one.

    Parameters
    ----------
    study : str
    about : dict
        What the records say of the study.

    Returns
    -------
    dict of str to str
    """
    path = CONFIG / f"{study}.yml"
    if path.is_file():
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
    return about.get("families") or {}


def titled(table, titles):
    """A table whose families go by what sentences call them.

    Parameters
    ----------
    table : DataFrame
    titles : dict of str to str
        Of families by their names in the study file.
    """
    if not titles or "family" not in table:
        return table
    short = {name: family_title(title) for name, title in titles.items()}
    return table.assign(family=table["family"].replace(short))


def _steps(depth):
    """Sort key of a depth: its number of steps; a name without number is the full alignment."""
    digits = "".join(c for c in str(depth) if c.isdigit())
    return int(digits) if digits else np.inf


def pick(frame, measure, precision):
    """The one row of a pooled frame with this measure and precision."""
    rows = frame[(frame["measure"] == measure) & (frame["precision"] == precision)]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows have measure {measure!r} at {precision!r}, not one")
    return rows.iloc[0]


def find(frame, measure, precision):
    """The row of a pooled frame with this measure and precision; None where it was not measured."""
    measured = ((frame["measure"] == measure) & (frame["precision"] == precision)).any()
    return pick(frame, measure, precision) if measured else None


def changes(report):
    """Items that changed since BF16: beside the placebo where there are probabilities."""
    if report.exact:
        return placebo(report.answers, report.samples)
    return transitions(report.drawn)
