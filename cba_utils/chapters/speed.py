"""How fast, and is it the same? What ``make bench`` measured on one machine.

Ratios are of medians within one run; their ranges are the extremes over its rounds, the slowest of
one side against the fastest of the other.
"""

import json
from functools import cached_property

import numpy as np
import pandas as pd

from cba_utils.names import PROJECT
from cba_utils.telling import charts as draw
from cba_utils.telling.numbers import count, percent, power_of_ten, timing
from cba_utils.telling.page import Page

BENCHMARKS = PROJECT / "benchmarks"
CONTENDERS = {
    "ours": "this project",
    "loop": "the published loop",
    "loop_blas": "the loop, fast BLAS",
    "loop_dense": "the loop, fast BLAS and fp32 weights",
    "one_by_one": "one prompt at a time, cached beginning",
    "torch_batched": "PyTorch, batched",
}

# What becomes of an architecture, see `benchmarks/architectures.py`.
RESULTS, NOT_HERE = ["asked", "native only", "refused", "not judged"], "not on this machine"


def ratios(results, benchmark, by):
    """How many times faster this project was than each other contender.

    Parameters
    ----------
    results : DataFrame
    benchmark : {"loop", "scorers"}
    by : {"precision", "size"}

    Returns
    -------
    DataFrame
        ``contender``, `by`, ``per_second`` (the contender's), ``ours`` (this project's),
        ``estimate, low, high, n`` of the ratio; ``n`` counts rounds.

    Examples
    --------
    >>> found = ratios(pd.read_csv(BENCHMARKS / "results.csv"), "scorers", "size")
    >>> bool((found["low"] <= found["estimate"]).all())
    True
    """
    rows = results[results["benchmark"] == benchmark]
    rows = rows.assign(
        slowest=rows["answers"] / rows["high"], fastest=rows["answers"] / rows["low"]
    )
    ours = rows[rows["contender"] == "ours"].set_index(by)
    others = rows[rows["contender"] != "ours"]
    mine = ours.loc[others[by]].reset_index()
    others = others.reset_index(drop=True)
    return pd.DataFrame(
        {
            by: others[by],
            "contender": others["contender"].map(CONTENDERS),
            "per_second": others["per_second"],
            "ours": mine["per_second"],
            "estimate": mine["per_second"] / others["per_second"],
            "low": mine["slowest"] / others["fastest"],
            "high": mine["fastest"] / others["slowest"],
            "n": others["rounds"],
        }
    )


class Chapter(Page):
    """Notebook ``50_speed``; whatever the study, its numbers are those of one machine."""

    without_letters = ("all",)

    def _read(self, name):
        return pd.read_csv(BENCHMARKS / f"{name}.csv")

    @cached_property
    def results(self):
        """Seconds and memory of every contender."""
        return self._read("results")

    @cached_property
    def kernels(self):
        """What dense products change, by device and precision."""
        return self._read("kernels")

    @cached_property
    def gpu(self):
        """What the GPU reached."""
        return self._read("gpu")

    @cached_property
    def gpu_cells(self):
        """Whole cells of a model of a published shape on a GPU, by precision."""
        return self._read("gpu_rehearsal")

    @cached_property
    def profile(self):
        """Where a layer's time goes."""
        return self._read("profile")

    @cached_property
    def architectures(self):
        """Architectures of mlx-lm that were tried; a reason without what the libraries said."""
        found = self._read("architectures").fillna({"reason": "", "native": ""})
        return found.replace({"reason": r" \[.*\]$", "native": r" \[.*\]$"}, "", regex=True)

    @cached_property
    def machine(self):
        """What the CPU's numbers were measured on."""
        found = json.loads((BENCHMARKS / "machine.json").read_text())
        return {name: str(value).removeprefix("BLAS: ") for name, value in found.items()}

    @cached_property
    def loop(self):
        """The project against the published loop, by precision."""
        return ratios(self.results, "loop", "precision")

    @cached_property
    def scorers(self):
        """The project against other ways to score, by size."""
        return ratios(self.results, "scorers", "size")

    def _rows(self, benchmark):
        return self.results[self.results["benchmark"] == benchmark]

    # Readings: what the template says

    @property
    def rounds(self):
        """Rounds of a comparison, at least."""
        return int(self.results["rounds"].min())

    @property
    def missed(self):
        """What was aimed at and not reached."""
        aims = self.aims
        return aims.loc[aims["met"] == "no", "what"].tolist()

    def times(self, contender, precision):
        """How many times faster than a contender of the loop's comparison."""
        found = self.loop.set_index(["contender", "precision"])["estimate"]
        return found.loc[CONTENDERS[contender], precision]

    @property
    def dense_lowest(self):
        """The lowest such number against the loop with every advantage."""
        return self.loop.loc[self.loop["contender"] == CONTENDERS["loop_dense"], "estimate"].min()

    @property
    def orders(self):
        """Seconds for all six orders of the options over seconds for one."""
        rows = self._rows("orders").set_index("contender")["seconds"]
        return rows["all"] / rows["original"]

    @property
    def products(self):
        """Share of products with weights in a layer's time, by size."""
        rows = self.profile[self.profile["part"] == "weight products"]
        return rows.set_index("size")["share"].to_dict()

    @property
    def tried(self):
        """How many architectures were asked, refused and not judged, and why."""
        rows = self.architectures
        refused = rows.loc[rows["result"] == "refused", "reason"]
        return {
            "all": len(rows),
            **rows["result"].value_counts().reindex(RESULTS, fill_value=0),
            "reasons": list(refused.value_counts().items()),
        }

    @property
    def torch(self):
        """How many times batched PyTorch's prompts a second, by size."""
        rows = self.scorers[self.scorers["contender"] == CONTENDERS["torch_batched"]]
        return rows.set_index("size")["estimate"].to_dict()

    @property
    def changed(self):
        """What dense products change on the CPU."""
        rows = self.kernels[~self._on_gpu]
        worst = rows.loc[rows["changed"].idxmax()]
        return {
            "asked": worst["items"],
            "answers": worst["changed"],
            "precision": worst["precision"],
            "probability": rows["largest_probability"].max(),
            "means": (rows["mean"].min(), rows["mean"].max()),
        }

    @property
    def changed_on_gpu(self):
        """The same on the GPU."""
        rows = self.kernels[self._on_gpu]
        return {
            "precisions": rows["precision"].str.upper().tolist(),
            "any": rows["largest"].max() > 0,
            "probability": rows["largest_probability"].max(),
        }

    @property
    def _on_gpu(self):
        return self.kernels["device"].isin(self.gpu["device"])

    @property
    def on_gpu(self):
        """Prompts a second on the GPU, and how many times those of native kernels dense weights gave."""
        by = self.gpu.set_index(["precision", "compute"])["prompts_per_second"]
        both = (by.xs("dense", level=1) / by.xs("native", level=1)).dropna()
        return {
            "device": self.gpu["device"].iloc[0],
            "full": by["bf16", "native"],
            "times": (both.min(), both.max()),
        }

    @property
    def cells_on_gpu(self):
        """What a whole cell took on the GPU: seconds of the quickest and slowest, and its size."""
        rows = self.gpu_cells
        cards = rows.groupby("device", sort=False)["precision"].agg(list)
        return {
            "cards": {card: [name.upper() for name in names] for card, names in cards.items()},
            "weights": rows["weights"].iloc[0] / 1e9,
            "prompts": rows["prompts"].iloc[0],
            "seconds": (rows["seconds"].min(), rows["seconds"].max()),
            "asking": (rows["seconds_asking"].min(), rows["seconds_asking"].max()),
        }

    # Figures and tables

    @cached_property
    def aims(self):
        """What was aimed at before measuring, what was measured, and whether it was met."""
        use = self._utilization
        memory = self._by_items["megabytes"]
        spread = memory[memory.index >= 1000].max() / memory[memory.index >= 1000].min() - 1
        rows = [
            ("times the loop at BF16, as a user would run it", self.times("loop", "bf16"), 100),
            ("times the loop at Q4, as a user would run it", self.times("loop", "q4"), 1000),
            ("times the loop with fast BLAS and fp32 weights, at least", self.dense_lowest, 10),
            *(
                (f"times batched PyTorch, {size} weights", times, 1)
                for size, times in self.torch.items()
            ),
            ("share of the matrix rate reached with 100M weights", use["100M"], 0.5),
        ]
        table = [
            (what, timing(value), f"at least {aim}", value >= aim) for what, value, aim in rows
        ]
        table += [
            (
                "growth of memory from 1,000 to 16,000 items",
                percent(spread),
                "at most 5 %",
                spread <= 0.05,
            ),
            (
                "cost of six option orders, in runs of one",
                timing(self.orders),
                "less than 6",
                self.orders < 6,
            ),
        ]
        table = pd.DataFrame(table, columns=["what", "measured", "aimed at", "met"])
        return table.assign(met=table["met"].map({True: "yes", False: "no"}))

    @property
    def _utilization(self):
        """Operations a second over those of one matrix product of the model's widest shape, by size."""
        rows = self._rows("weights")
        return rows[rows["contender"] == "ours"].set_index("size")["utilization"]

    @property
    def _by_items(self):
        rows = self._rows("items")
        return rows.assign(items=(rows["answers"] / 5).astype(int)).set_index("items")

    def figure_speed(self):
        """Answers a second of this project and of the loop."""
        parts = [
            f"{row.precision}, {row.contender}: {timing(row.per_second)}, this project: {timing(row.ours)}"
            for row in self.loop.itertuples()
        ]
        return draw.rates(self.loop), f"Answers a second: {'; '.join(parts)}.", self.loop

    def table_aims(self):
        """What was aimed at, and what came out."""
        return self.aims, {"measured": str}

    def table_loop(self):
        """The project beside the published loop."""
        return _ratio_table(self.loop, "precision")

    def table_scorers(self):
        """The project beside other ways to score."""
        return _ratio_table(self.scorers, "size")

    def table_growth(self):
        """Seconds and memory by number of items."""
        rows = self._by_items.reset_index()
        frame = pd.DataFrame(
            {
                "items": rows["items"],
                "seconds": rows["seconds"],
                "items a second": rows["items"] / rows["seconds"],
                "peak memory, MB": rows["megabytes"],
            }
        )
        return frame, {
            "items": count,
            "seconds": timing,
            "items a second": timing,
            "peak memory, MB": count,
        }

    def table_utilization(self):
        """Rates, utilization and memory by number of weights."""
        rows = self._rows("weights")
        ours, best = (
            rows[rows["contender"] == name].set_index("size") for name in ("ours", "product")
        )
        frame = (
            pd.DataFrame(
                {
                    "prompts a second": ours["per_second"],
                    "tokens a second": ours["tokens_run"] / ours["seconds"],
                    "GFLOP/s": ours["flops"] / 1e9,
                    "one product, GFLOP/s": best["flops"] / 1e9,
                    "utilization": ours["utilization"],
                    "peak memory, MB": ours["megabytes"],
                }
            )
            .loc[ours.index]
            .rename_axis("weights")
            .reset_index()
        )
        rates = dict.fromkeys(
            ["prompts a second", "tokens a second", "GFLOP/s", "one product, GFLOP/s"], timing
        )
        return frame, {"weights": str, **rates, "utilization": _share, "peak memory, MB": count}

    def table_profile(self):
        """Share of a layer's time on one core, by part and number of weights."""
        shares = self.profile.pivot(index="part", columns="size", values="share")
        shares = shares.loc[
            self.profile["part"].unique(), self.profile["size"].unique()
        ].reset_index()
        return shares, dict.fromkeys(shares.columns[1:], _share)

    def table_kernels(self):
        """What dense products change, by device and precision."""
        heads = {
            "items": "items",
            "mean": "mean |Δ log p|",
            "largest": "largest",
            "largest_likely": "largest, p > 1 %",
            "largest_probability": "largest |Δ p|",
            "changed": "answers changed",
        }
        device = ["GPU" if on else "CPU" for on in self._on_gpu]
        frame = self.kernels.assign(device=device)[["device", "precision", *heads]].rename(
            columns=heads
        )
        formats = [count, "{:.3f}".format, "{:.2f}".format, "{:.2f}".format, "{:.3f}".format, count]
        return frame, dict(zip(heads.values(), formats, strict=True))

    def table_architectures(self):
        """Every architecture that was tried and what happened."""
        rows = self.architectures
        order = (
            rows["result"]
            .map({name: k for k, name in enumerate(RESULTS)})
            .sort_values(kind="stable")
        )
        heads = {
            "architecture": "architecture",
            "result": "result",
            "dense_logits": "off by",
            "native": "native kernels",
            "reason": "why not",
        }
        words = {"asked": "asked", NOT_HERE: "not here", "": ""}
        rows = rows.assign(native=rows["native"].map(words).fillna("refused"))
        return rows.loc[order.index, [*heads]].rename(columns=heads), {"off by": _small}

    def table_gpu(self):
        """What the GPU reached at each precision with either kind of weights."""
        rates = {
            "product_teraflops": "product, TFLOP/s",
            "prompts_per_second": "prompts/s",
            "answers_per_second": "answers/s",
            "loop_answers_per_second": "loop, answers/s",
        }
        gpu = self.gpu
        kinds = gpu["compute"].map({"dense": "dequantized", "native": "native kernels"})
        # Each row's process measured a product for itself, on a GPU as warm as it then was.
        use = gpu["utilization"] * gpu["matmul_teraflops"] / gpu["matmul_teraflops"].max()
        frame = gpu[["precision", *rates]].rename(columns=rates)
        frame.insert(1, "weights", kinds.mask(gpu["precision"] == "bf16", "as they are"))
        frame = frame.assign(
            utilization=use, note=gpu["failure"].fillna("").str.replace(" seconds", "\u00a0s")
        )
        frame = frame.sort_values(["precision", "weights"], ignore_index=True)
        return frame, {**dict.fromkeys(rates.values(), _if_any), "utilization": _share}

    def table_gpu_cells(self):
        """What a whole cell of a model of a published shape took on a GPU, by precision."""
        seconds = {
            "seconds": "whole cell, s",
            "seconds_loading": "loading and checks, s",
            "seconds_asking": "asking, s",
            "seconds_perplexity": "perplexity, s",
        }
        rest = {"prompts_per_second": "prompts/s", "peak_gigabytes": "peak memory, GB"}
        heads = {**seconds, **rest}
        frame = self.gpu_cells[["precision", "device", *heads]]
        frame = frame.rename(columns={"device": "card", **heads})
        return frame, dict.fromkeys(heads.values(), timing)


def _ratio_table(found, by):
    """Ratios for the page."""
    frame = pd.DataFrame(
        {
            by: found[by].astype(str),
            "against": found["contender"],
            "theirs, a second": found["per_second"],
            "ours, a second": found["ours"],
            "times faster (range)": [row for _, row in found.iterrows()],
        }
    )
    return frame, {
        "theirs, a second": timing,
        "ours, a second": timing,
        "times faster (range)": _range,
    }


def _range(row):
    return f"{timing(row['estimate'])} ({timing(row['low'])} to {timing(row['high'])})"


def _share(value):
    return percent(value, 0)


def _if_any(value):
    return "" if np.isnan(value) else timing(value)


def _small(value):
    return "" if np.isnan(value) else power_of_ten(value, 1)
