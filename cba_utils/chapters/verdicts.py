"""A verdict a claim: what the published study says, beside what this book's records show."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.chapters.real_model import records
from cba_utils.measures import controls, models, perplexity, rates, transitions
from cba_utils.measures.published import load_published
from cba_utils.measures.tests import MARGIN
from cba_utils.telling.numbers import factor, interval, odds_text, points, published
from cba_utils.telling.page import Page, Rendered
from cba_utils.telling.study import find

HELD, NOT_HELD, OPEN = "held", "not held", "open"
NO_GROWTH = np.log(1.1)  # a lean that grew by less than a tenth did not grow, for this table
RANGES, RISES = ("q8", "q6", "q4", "q3"), ("q8", "q4", "q3")
EXCESS = "became_biased_expected_excess"


@dataclass(frozen=True)
class Claim:
    """A claim of the published study at a precision, and where this book measures the same.

    ``name`` is the block of the template that words it; ``page`` the notebook that has the measure, and
    ``measure`` what is read there.
    """

    name: str
    precision: str
    page: str
    measure: str


CLAIMS = (
    *(Claim("range", p, "20_dose_response", "gained a stereotyped answer") for p in RANGES),
    *(Claim("beyond", p, "40_is_it_noise", "excess over the placebo") for p in ("q4", "q3")),
    *(Claim("grew", p, "40_is_it_noise", "lean, times BF16's") for p in ("q4", "q3")),
    *(Claim("own_odds", p, "40_is_it_noise", "beyond own odds, points") for p in ("q4", "q3")),
    Claim("unknown", "q3", "20_dose_response", "change of “unknown”, points"),
    Claim("dose", "", "43_how_sure", "odds, one step down"),
    *(Claim("perplexity", p, "21_perplexity_gap", "perplexity, change") for p in RISES),
    Claim("unseen", "q4", "21_perplexity_gap", "both at once"),
)


def inside(row, low, high):
    """Whether a rate is in a published range.

    It is where the estimate is, and is not where all of its interval lies outside.

    Examples
    --------
    >>> inside({"estimate": 0.03, "low": 0.01, "high": 0.09}, 0.025, 0.056)
    'held'
    >>> inside({"estimate": 0.01, "low": 0.005, "high": 0.02}, 0.025, 0.056)
    'not held'
    >>> inside({"estimate": 0.02, "low": 0.005, "high": 0.03}, 0.025, 0.056)
    'open'
    """
    if row is None or np.isnan(row["low"]):
        return OPEN
    if row["high"] < low or row["low"] > high:
        return NOT_HELD
    return HELD if low <= row["estimate"] <= high else OPEN


def raised(row, none):
    """Whether something rose: its interval is above zero, and not all of it below what counts as none.

    Examples
    --------
    >>> ends = ((0.01, 0.2), (-0.1, 0.005), (0.001, 0.005), (-0.1, 0.1))
    >>> [raised({"low": low, "high": high}, 0.01) for low, high in ends]
    ['held', 'not held', 'not held', 'open']
    """
    if row is None or np.isnan(row["low"]):
        return OPEN
    if row["high"] < none:
        return NOT_HELD
    return HELD if row["low"] > 0 else OPEN


def bounded(row, bound):
    """Whether something stays below a published bound, with all of its interval.

    Examples
    --------
    >>> [bounded({"low": low, "high": low + 0.01}, 0.03) for low in (0.0, 0.04, 0.025)]
    ['held', 'not held', 'open']
    """
    if row is None or np.isnan(row["low"]):
        return OPEN
    if row["high"] <= bound:
        return HELD
    return NOT_HELD if row["low"] > bound else OPEN


class Evidence:
    """What the records of one study say to every claim, family by family."""

    def __init__(self, study):
        self.study = study

    @cached_property
    def wanted(self):
        """Precisions that claims are about."""
        return {"bf16", *(claim.precision for claim in CLAIMS)} & set(self.study.precisions)

    def _kept(self, table):
        """Rows of these precisions; of answers, those to ambiguous questions, which all claims are about."""
        kept = table["precision"].isin(self.wanted)
        if "context_condition" in table:
            kept &= table["context_condition"] == "ambig"
        return table[kept]

    def _by_family(self, frame):
        return dict(self.study.each(frame)) if frame is not None and len(frame) else {}

    @cached_property
    def seen(self):
        """Items that became biased by the seeds that were drawn, as published."""
        return self._by_family(transitions.transitions(self._kept(self.study.samples)))

    @cached_property
    def fresh(self):
        """The excess of fresh draws, and nothing where answers do not begin with letters."""
        if not self.study.exact:
            return {}
        answers = self._kept(self.study.answers)
        answers = answers[answers["precision"].isin(self.study.lettered)]
        if set(answers["precision"]) <= {"bf16"}:
            return {}
        return self._by_family(transitions.placebo(answers))

    @cached_property
    def leans(self):
        """The lean and its change."""
        return (
            self._by_family(controls.lean(self._kept(self.study.answers)))
            if self.study.exact
            else {}
        )

    @cached_property
    def odds(self):
        """Persons named beyond the odds that BF16 gave."""
        if not self.study.exact:
            return {}
        return self._by_family(controls.own_odds(self._kept(self.study.answers)))

    @cached_property
    def changes(self):
        """Changes of rates."""
        table = self.study.answers if self.study.exact else self.study.drawn
        return self._by_family(rates.paired_differences(self._kept(table)))

    @cached_property
    def trends(self):
        """Odds of a stereotyped answer for one step down the ladder."""
        found = {}
        table = self._kept(self.study.drawn)
        for name in self.families:
            own = table[(table["family"] == name) | (table["model"] == name)]
            terms = models.dose_response(own).set_index("term")
            found[name] = terms.loc["trend"] if "trend" in terms.index else None
        return found

    @cached_property
    def text(self):
        """Changes of perplexity."""
        if not len(self.study.perplexity) or self.study.worse_than_guessing:
            return {}
        return self._by_family(perplexity.perplexity_change(self._kept(self.study.perplexity)))

    @property
    def families(self):
        """Names of what is told apart, in the order of the study."""
        return [] if self.study.speechless else list(self.seen)

    def of(self, claim, name, table):
        """The verdict on a claim, and the estimate that it rests on, printed."""
        at = claim.precision
        if at and at not in self.study.precisions:
            return OPEN, "not in this study"

        def row(frames, measure, precision=at):
            return find(frames[name], measure, precision) if name in frames else None

        if claim.name == "range":
            found = row(self.seen, "became_biased")
            return _told(inside(found, *_share(table, "items_became_biased", at)), found, interval)
        if claim.name == "beyond":
            found = row(self.fresh, EXCESS)
            return _told(raised(found, MARGIN), found, interval)
        if claim.name == "grew":
            before, found = row(self.leans, "log_gap", "bf16"), row(self.leans, "d_log_gap")
            if found is None:
                return _told(OPEN, None, factor)
            verdict = HELD if controls.grew(before, found) else raised(found, NO_GROWTH)
            if verdict == HELD and not controls.grew(before, found):
                verdict = OPEN
            return _told(verdict, found, factor)
        if claim.name == "own_odds":
            expected, found = (
                row(self.odds, name) for name in ("named_share_expected", "beyond_own_odds")
            )
            verdict = raised(found, MARGIN)
            if verdict == HELD and not controls.rose(expected, found):
                verdict = OPEN
            return _told(verdict, found, points)
        if claim.name == "unknown":
            found = row(self.changes, "d_usr")
            fell = None if found is None else {"low": -found["high"], "high": -found["low"]}
            return _told(raised(fell, MARGIN), found, points)
        if claim.name == "dose":
            found = self.trends[name]
            logs = None if found is None else {e: np.log(found[e]) for e in ("low", "high")}
            return _told(raised(logs, 0.0), found, odds_text)
        rise = row(self.text, "perplexity_change")
        small = bounded(rise, _share(table, "perplexity_change", at)[1])
        if claim.name == "perplexity":
            return _told(small, rise, interval)
        more = raised(row(self.fresh, EXCESS), MARGIN)
        if OPEN in (small, more):
            return OPEN, ""
        return (HELD if (small, more) == (HELD, HELD) else NOT_HELD), ""


def _told(verdict, row, text):
    return verdict, ("not measured" if row is None or np.isnan(row["estimate"]) else text(row))


def _share(table, quantity, precision):
    """Ends of a published range as fractions."""
    rows = table[(table["quantity"] == quantity) & (table["precision"] == precision)]
    return rows["low"].iloc[0] / 100, rows["high"].iloc[0] / 100


class Chapter(Page):
    """Notebook ``70_verdicts``."""

    without_letters = ("real", "terms")
    margin = MARGIN
    no_growth = float(np.exp(NO_GROWTH))

    @cached_property
    def published(self):
        """Figures of the published study."""
        return load_published()

    @cached_property
    def here(self):
        """The study of the page."""
        return Evidence(self.study)

    @cached_property
    def real(self):
        """The small real model."""
        return Evidence(records().study)

    @cached_property
    def found(self):
        """One row a claim and subject: its verdict and what it rests on."""
        rows = []
        subjects = [(self.here, name, False) for name in self.here.families]
        if self.study.study != self.real.study.study:
            subjects += [(self.real, name, True) for name in self.real.families]
        for number, claim in enumerate(CLAIMS):
            for evidence, name, real in subjects:
                verdict, shown = evidence.of(claim, name, self.published)
                rows.append(
                    {
                        "number": number,
                        "claim": claim.name,
                        "precision": claim.precision,
                        "subject": self.real_name if real else name,
                        "real": real,
                        "verdict": verdict,
                        "shown": shown,
                        "page": claim.page,
                    }
                )
        return pd.DataFrame(rows)

    @property
    def real_name(self):
        """The name of the small real model."""
        return next(iter(self.real.study.families))

    def counted(self, real=False):
        """How many claims held in every family, in none, and how many are otherwise."""
        part = self.found[self.found["real"] == real]
        each = part.groupby("number")["verdict"].agg(set)
        return {
            "claims": len(each),
            "held": int((each.map(lambda v: v == {HELD})).sum()),
            "not_held": int((each.map(lambda v: v == {NOT_HELD})).sum()),
            "mixed": int(each.map(lambda v: {HELD, NOT_HELD} <= v).sum()),
            "open": int((each.map(lambda v: v == {OPEN})).sum()),
        }

    def verdicts(self, claim, real=False):
        """By precision: subjects in which a claim held, did not hold, and those that cannot tell."""
        part = self.found[(self.found["claim"] == claim) & (self.found["real"] == real)]
        return [
            {
                "precision": precision.upper(),
                **{
                    key: list(rows.loc[rows["verdict"] == verdict, "subject"])
                    for key, verdict in (("held", HELD), ("not_held", NOT_HELD), ("open", OPEN))
                },
            }
            for precision, rows in part.groupby("precision", sort=False)
        ]

    @property
    def pages(self):
        """Numbers of the pages that the table names, and their files."""
        names = dict.fromkeys(claim.page for claim in CLAIMS)
        return [
            {"number": name.partition("_")[0], "file": Rendered(f"{name}.ipynb")}
            for name in sorted(names)
        ]

    # The table

    def table_verdicts(self):
        """One row a claim, a column a family and one for the small real model."""
        rows = []
        for number, claim in enumerate(CLAIMS):
            part = self.found[self.found["number"] == number]
            told = {
                row.subject: row.verdict + (f": {row.shown}" if row.shown else "")
                for row in part.itertuples()
            }
            rows.append(
                {
                    "claim": str(self.text(f"tab_claim_{claim.name}")).rstrip("."),
                    "at": claim.precision.upper() or "all",
                    "published": self._published(claim),
                    "read here (page)": f"{claim.measure} ({claim.page.partition('_')[0]})",
                    **told,
                }
            )
        return pd.DataFrame(rows), {}

    def _published(self, claim):
        quantity = {
            "range": "items_became_biased",
            "perplexity": "perplexity_change",
            "unknown": "unknown_selection_rate_decline",
        }.get(claim.name)
        return published(self.published, quantity, claim.precision) if quantity else "in words"
