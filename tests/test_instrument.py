"""What verdicts say of known truths: counted, kept and told."""

from cba_utils.chapters.instrument import Chapter
from cba_utils.instrument import trust, verdicts
from cba_utils.instrument.truths import TRUTHS
from cba_utils.telling.page import plain
from studies import study_of

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom


def rows(verdict="lean_grew", decision="bases", **rates):
    """A table of rates of one verdict: by truth, whether it is right to say yes, and how often it did."""
    lines = [
        (decision, truth, leaning, verdict, answer, 0.0, rate, rate, rate, 500)
        for truth, (answer, *pair) in rates.items()
        for leaning, rate in zip((False, True), pair, strict=True)
    ]
    return pd.DataFrame(lines, columns=verdicts.RATES)


TABLE = rows(
    **{
        "noise": ("no", 0.01, 0.04),
        "halves, odds flat": ("either", 0.5, 0.6),
        "rise 0.3": ("yes", 0.9, 0.7),
        "rise 0.8": ("yes", 1.0, 0.99),
    }
)


def test_trust_is_the_worst_error_and_the_lower_power():
    found = trust.trust("lean_grew", "bases", TABLE)
    assert (found["worst"]["truth"], found["worst"]["leaning"]) == ("noise", True)
    assert found["trusted"] and [row["estimate"] for row in found["power"]] == [0.7, 0.99]
    worse = pd.concat([TABLE, rows(**{"retrained": ("no", 0.0, 0.06)})])
    assert not trust.trust("lean_grew", "bases", worse)["trusted"]
    with pytest.raises(ValueError, match="verdict must be one of"):
        trust.trust("lean grew", "bases")
    with pytest.raises(ValueError, match="decision must be one of"):
        trust.trust("lean_grew", "15")


def test_what_verdicts_should_say_follows_from_the_truth():
    def told(verdict, truth, change=0.05, relative=1.0):
        return verdicts.should(verdicts.VERDICTS[verdict], TRUTHS[truth], change, relative)

    assert told("lean_grew", "margins × 0.33") == "no"
    assert told("lean_grew", "margins × 0.33, rise 0.3") == "yes"
    assert told("mirror", "halves, rate flat") == "either"
    assert told("lean_grew_in_a_group", "halves, rate flat") == "yes"
    assert told("letter", "letter drift") == "yes" and told("letter", "rise 0.8") == "no"
    assert told("excess", "noise") == "yes"
    assert [told("same", "noise", c) for c in (0.009, -0.011)] == ["yes", "no"]
    assert [told("same_ratio", "noise", 0, np.log(c)) for c in (1.2, 0.7)] == ["yes", "no"]


def test_a_run_that_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "PROJECT", tmp_path)
    monkeypatch.setattr(verdicts, "TRUTHS", {name: TRUTHS[name] for name in ("nothing", "noise")})
    monkeypatch.setattr(verdicts, "at_margin", lambda leaning: TRUTHS["rise 0.3"])
    for name, few in {"OTHERS": 3, "BLOCK": 2, "COVERED": 2}.items():
        monkeypatch.setattr(verdicts, name, few)
    judge, judged = verdicts.judge, []

    def stopping(*args, **options):
        if len(judged) == 8:
            raise KeyboardInterrupt
        judged.append(args)
        return judge(*args, **options)

    monkeypatch.setattr(verdicts, "judge", stopping)
    with pytest.raises(KeyboardInterrupt):
        verdicts.write(3, tmp_path / "out", told=str)
    half = pd.read_csv(tmp_path / "out" / verdicts.RESULT.name)
    assert set(half["n"]) == {2}, "a round of blocks is a table"
    monkeypatch.setattr(verdicts, "judge", lambda *a, **o: judged.append(a) or judge(*a, **o))
    verdicts.write(3, tmp_path / "out", told=str)
    assert len(judged) == 6 + 6, "what was judged is not judged again"
    table = trust.read_rates(tmp_path / "out" / verdicts.RESULT.name)
    assert set(table["n"]) == {3} and set(table["decision"]) == set(verdicts.DECISIONS)
    nothing = table[table["truth"] == "nothing"]
    assert set(nothing["verdict"]) == {v for v, one in verdicts.VERDICTS.items() if one.drawn}, (
        "a verdict that cannot err is not counted"
    )
    with pytest.raises(FileNotFoundError, match="cba instrument"):
        trust.read_rates(tmp_path / "none.csv")


def test_what_leads_errs_as_often_as_it_promises():
    """Studies of noise in leaning models: at most as many yes as 2.5 % make likely."""
    n, yes = 80, dict.fromkeys(("lean_grew", "own_odds"), 0)
    for seed in range(n // 5):
        studies = verdicts.simulated(TRUTHS["noise"], True, (3, 3, 5), 5, 1000 + seed)
        judged = verdicts.Judged(studies, "bases", verdicts.totals(studies))
        for name in yes:
            yes[name] += int(verdicts.VERDICTS[name].says(judged).sum())
    assert max(yes.values()) <= binom.ppf(0.999, n, verdicts.LEVEL), yes


def test_the_chapter_names_what_is_safe_and_what_is_not():
    page = Chapter(study_of("none"))
    told = page.told()
    safe = {one["verdict"] for one in told["trusted"]}
    assert "mirror" not in safe and "direction" not in safe
    for one in told["misled"]:
        assert one["title"] in plain(page.text("misled"))
    alone = page.instrument("lean_grew")
    assert alone == trust.trust("lean_grew", "one"), "a study of one model is one checkpoint"
    assert "2.5" in page.trust("lean_grew") and "rise 0.3" in page.trust("lean_grew")
    assert "whatever moved them" in page.trust("excess")
    assert np.isfinite(page.reach)
