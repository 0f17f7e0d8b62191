"""Run log: which weights, items, code and machine each number comes from."""

import pandas as pd

from cba_utils.study.imported import RUNS
from cba_utils.study.rounding import read_rounding
from cba_utils.telling.page import ROUNDING, Page

# What the provenance of a cell records, in words; the most telling first.
FACTS = {
    "parameters.model": "checkpoint",
    "weights_sha256": "weights, hash",
    "parameters_of_model": "parameters",
    "tokenizer_sha256": "tokenizer, hash",
    "chat_template_sha256": "chat format, hash",
    "prompts_sha256": "prompts as tokens, hash",
    "generation_sha256": "generation configuration, hash",
    "ends": "tokens that end an answer",
    "parameters.adapter": "adapter",
    "adapter_sha256": "adapter, hash",
    "notes": "of the weights",
    "depth": "alignment",
    "precision": "precision",
    "parameters.items": "items from",
    "items_sha256": "items, hash",
    "parameters.limit": "items at most",
    "parameters.categories": "categories",
    "parameters.condition": "contexts",
    "undefined_targets": "items left out for want of a target",
    "git_commit": "commit of the code",
    "commit_with_this_code": "commit of the same code, found by its hash",
    "git_dirty": "code had changes in no commit",
    "code_sha256": "modules that decide an answer, hash",
    "parameters.orders": "option orders",
    "parameters.seeds": "seeds",
    "parameters.temperature": "temperature",
    "parameters.max_tokens": "tokens a sampled answer has at most",
    "parameters.parser": "parser",
    "system_folded": "system sentence moved into the user's turn",
    "parameters.text": "text for perplexity from",
    "text_sha256": "text for perplexity, hash",
    "parameters.sequences": "sequences of text",
    "parameters.sequence_length": "tokens a sequence",
    "parameters.text_seed": "seed of the choice of text",
    "responses_mended": "responses with half a character, which was replaced",
    "counts.answers": "scored answers",
    "counts.samples": "sampled answers",
    "counts.perplexity": "scored sequences",
    "platform": "machine",
    "device": "device of MLX",
    "compute": "how weights are multiplied",
    "started": "started",
    "seconds": "seconds",
}
_CONDITIONS = {
    "ambig": "ambiguous",
    "disambig": "disambiguated",
    "both": "ambiguous and disambiguated",
}
_FUSED = r"adapter \S+ \(\w+\) fused into the weights, which rounds them to their own type \((\w+)\) once"
_LABELS = ("model", "family", "replicate")


def _facts(frame):
    """Provenance as short texts, in the order of `FACTS`; what is not named there comes last."""
    frame = frame.drop(columns=["schema_version", "blas"], errors="ignore")
    frame = frame.rename(columns=lambda name: name.removeprefix("identity."))
    for name in [c for c in frame if "sha256" in c or c == "git_commit"]:
        frame[name] = frame[name].str[:8]
    frame["started"] = frame["started"].str[:16].str.replace("T", " ")
    for name in ("undefined_targets", "parameters.seeds", "ends", "notes"):
        if name in frame:
            frame[name] = [
                ", ".join(map(str, v)) if isinstance(v, list) else v for v in frame[name]
            ]
    if "notes" in frame:
        # Name and hash of the adapter have columns of their own.
        frame["notes"] = frame["notes"].str.replace(
            _FUSED, r"adapter fused, rounded once to \1", regex=True
        )
    frame = frame.astype(object).where(frame.notna(), "none").astype(str)
    frame = frame.replace({"True": "yes", "False": "no", "": "none", "Device(cpu, 0)": "CPU"})
    if "parameters.condition" in frame:
        frame["parameters.condition"] = frame["parameters.condition"].replace(_CONDITIONS)
    order = [*_LABELS, *FACTS]
    known = [name for name in order if name in frame]
    return frame[[*known, *(name for name in frame if name not in order)]]


def _worded(name):
    name = name.removeprefix("packages.").removeprefix("records_sha256.")
    return FACTS.get(name, name.replace("_sha256", ", hash").replace("_", " "))


def shared(cells):
    """What is the same for all cells of a study, one row a fact."""
    frame = _facts(cells)
    same = [c for c in frame if frame[c].nunique() == 1 and c not in _LABELS]
    return pd.DataFrame({"what": [_worded(c) for c in same], "value": frame.loc[0, same].tolist()})


def of_models(cells):
    """What differs between the models of a study and not between their cells, one row a model."""
    frame = _facts(cells)
    always = ("parameters.model", "weights_sha256")
    apart = [
        c
        for c in frame
        if c not in ("family", "replicate")
        and not c.startswith("counts.")
        and (c in always or frame[c].nunique() > 1)
        and frame.groupby("model")[c].nunique().max() == 1
    ]
    shown = frame.drop_duplicates("model")[list(dict.fromkeys(["model", *apart]))]
    shown = shown.loc[:, ~shown.T.duplicated()]  # such as a base that is the checkpoint itself
    return shown.rename(columns=_worded)


def of_cells(cells):
    """What differs between the cells of a model, one row a cell."""
    frame = _facts(cells)
    apart = [
        c
        for c in frame
        if c != "parameters.precision"
        and c not in _LABELS
        and (
            frame.groupby("model")[c].nunique().max() > 1
            or c.startswith("counts.")
            and frame[c].nunique() > 1
        )
    ]
    return frame[["model", *apart]].rename(columns=_worded)


class Chapter(Page):
    """Notebook ``22_run_log``."""

    keep = "all"
    without_letters = ("all",)
    needs = {"rounding_log": ROUNDING}

    @property
    def left_out(self):
        """Items without a defined target, which an import left out, and of how many."""
        names = self.study.provenance["undefined_targets"].iloc[0]
        return {
            "names": names[:20],
            "count": len(names),
            "more": len(names) > 20,
            "of": len(self.study.items) + len(names),
        }

    @property
    def mended(self):
        """Imported responses in which half a character was replaced."""
        return int(self.study.provenance["responses_mended"].iloc[0])

    @property
    def source(self):
        """Where the items come from."""
        return self.study.provenance["identity.parameters.items"].iloc[0]

    runs = RUNS

    def table_models(self):
        """What differs between models."""
        return self._formatted(of_models(self.study.provenance))

    def table_shared(self):
        """What all cells share."""
        return shared(self.study.provenance), {}

    def table_cells(self):
        """What differs between the cells of a model."""
        return self._formatted(of_cells(self.study.provenance))

    def _formatted(self, frame):
        numbers = {
            _worded(c.removeprefix("identity."))
            for c in self.study.provenance.select_dtypes("number")
        }
        return frame, {c: str for c in frame if c in numbers}

    def table_rounding_log(self):
        """Models whose rounding was taken apart."""
        known = read_rounding(self.study.study)["provenance"]
        frame = pd.DataFrame(
            {
                "model": known["model"],
                "aligned from": known["identity.parameters.base"],
                "its weights, hash": known["identity.base_sha256"].str[:8],
                "precisions": known["identity.parameters.precisions"].map(
                    lambda p: " ".join(p).upper()
                ),
                "code, hash": known["identity.rounding_sha256"].str[:8],
                "commit": known["git_commit"].fillna("none").str[:8],
                "started": known["started"].str[:16].str.replace("T", " "),
                "seconds": known["seconds"],
            }
        )
        return frame, {"seconds": str}
