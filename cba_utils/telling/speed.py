"""What ``make bench`` measured, as tables and sentences for the book.

Ratios are of medians within one run; their ranges are the extremes over its rounds, the slowest of
one side against the fastest of the other.
"""

import json

import numpy as np
import pandas as pd

from cba_utils.names import PROJECT

BENCHMARKS = PROJECT / "benchmarks"
CONTENDERS = {
    "ours": "this project",
    "loop": "the published loop",
    "loop_blas": "the loop, fast BLAS",
    "loop_dense": "the loop, fast BLAS and fp32 weights",
    "one_by_one": "one prompt at a time, cached beginning",
    "torch_batched": "PyTorch, batched",
}


def read_benchmarks():
    """The committed measurements.

    Returns
    -------
    dict
        ``results``, ``kernels``, ``gpu`` and ``profile`` (DataFrames) and ``machine`` (dict).

    Examples
    --------
    >>> sorted(read_benchmarks())
    ['gpu', 'kernels', 'machine', 'profile', 'results']
    """
    tables = {name: pd.read_csv(BENCHMARKS / f"{name}.csv") 
              for name in ("results", "kernels", "gpu", "profile")}
    return {**tables, "machine": json.loads((BENCHMARKS / "machine.json").read_text())}


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
    >>> found = ratios(read_benchmarks()["results"], "scorers", "size")
    >>> bool((found["low"] <= found["estimate"]).all())
    True
    """
    rows = results[results["benchmark"] == benchmark]
    rows = rows.assign(slowest=rows["answers"] / rows["high"], fastest=rows["answers"] / rows["low"])
    ours = rows[rows["contender"] == "ours"].set_index(by)
    others = rows[rows["contender"] != "ours"]
    mine = ours.loc[others[by]].reset_index()
    others = others.reset_index(drop=True)
    return pd.DataFrame({
        by: others[by], "contender": others["contender"].map(CONTENDERS),
        "per_second": others["per_second"], "ours": mine["per_second"],
        "estimate": mine["per_second"] / others["per_second"],
        "low": mine["slowest"] / others["fastest"], "high": mine["fastest"] / others["slowest"],
        "n": others["rounds"],
    })


def ratio_table(found, by):
    """The same for the page."""
    return pd.DataFrame({
        by: found[by].astype(str), "against": found["contender"],
        "theirs, a second": found["per_second"].map(number),
        "ours, a second": found["ours"].map(number),
        "times faster (range)": [f"{number(e)} ({number(a)} to {number(b)})" for e, a, b in
                                 found[["estimate", "low", "high"]].itertuples(index=False)],
    })


def number(value):
    """Two or three digits, no more than a repeated timing carries.

    Examples
    --------
    >>> number(1234.5), number(12.34), number(0.5678)
    ('1,230', '12.3', '0.57')
    """
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def aims(tables):
    """What was aimed at before measuring, what was measured, and whether it was met."""
    results = tables["results"]
    loop = ratios(results, "loop", "precision").set_index(["contender", "precision"])["estimate"]
    scorers = ratios(results, "scorers", "size")
    torch = scorers[scorers["contender"] == CONTENDERS["torch_batched"]].set_index("size")["estimate"]
    use = utilization(results)
    memory = _by(results, "items")["megabytes"]
    spread = memory[memory.index >= 1000].max() / memory[memory.index >= 1000].min() - 1
    orders = orders_ratio(results)
    plain, dense = CONTENDERS["loop"], CONTENDERS["loop_dense"]
    rows = [
        ("times the loop at BF16, as a user would run it", loop[plain, "bf16"], 100),
        ("times the loop at Q4, as a user would run it", loop[plain, "q4"], 1000),
        ("times the loop with fast BLAS and fp32 weights, at least", loop[dense].min(), 10),
        *((f"times batched PyTorch, {size} weights", torch[size], 1) for size in torch.index),
        ("share of the matrix rate reached with 100M weights", use["100M"], 0.5),
    ]
    table = [(what, number(value), f"at least {aim}", value >= aim) for what, value, aim in rows]
    table += [
        ("growth of memory from 1,000 to 16,000 items", f"{100 * spread:.1f} %", "at most 5 %",
         spread <= 0.05),
        ("cost of six option orders, in runs of one", number(orders), "less than 6", orders < 6),
    ]
    table = pd.DataFrame(table, columns=["what", "measured", "aimed at", "met"])
    return table.assign(met=table["met"].map({True: "yes", False: "no"}))


def orders_ratio(results):
    """Seconds for all six orders of the options over seconds for one."""
    rows = results[results["benchmark"] == "orders"].set_index("contender")["seconds"]
    return rows["all"] / rows["original"]


def utilization(results):
    """Operations a second over those of one matrix product of the model's widest shape, by size."""
    rows = results[(results["benchmark"] == "weights") & (results["contender"] == "ours")]
    return rows.set_index("size")["utilization"]


def _by(results, benchmark):
    rows = results[results["benchmark"] == benchmark]
    return rows.assign(items=(rows["answers"] / 5).astype(int)).set_index("items")


def growth_table(results):
    """Seconds and memory by number of items."""
    rows = _by(results, "items")
    return pd.DataFrame({
        "items": [f"{n:,}" for n in rows.index], "seconds": rows["seconds"].map(number).to_numpy(),
        "items a second": [number(n / s) for n, s in rows["seconds"].items()],
        "peak memory, MB": rows["megabytes"].map("{:,.0f}".format).to_numpy(),
    })


def size_table(results):
    """Rates, utilization and memory by number of weights."""
    rows = results[results["benchmark"] == "weights"]
    ours, best = (rows[rows["contender"] == name].set_index("size") for name in ("ours", "product"))
    return pd.DataFrame({
        "weights": ours.index, "prompts a second": ours["per_second"].map(number).to_numpy(),
        "tokens a second": (ours["tokens_run"] / ours["seconds"]).map(number).to_numpy(),
        "GFLOP/s": (ours["flops"] / 1e9).map(number).to_numpy(),
        "one product, GFLOP/s": (best["flops"] / 1e9).map(number).to_numpy(),
        "utilization": [f"{100 * u:.0f} %" for u in ours["utilization"]],
        "peak memory, MB": ours["megabytes"].map("{:,.0f}".format).to_numpy(),
    })


def profile_table(profile):
    """Share of a layer's time on one core, by part and number of weights."""
    shares = profile.pivot(index="part", columns="size", values="share")
    shares = shares.loc[profile["part"].unique(), profile["size"].unique()]
    return (100 * shares).map("{:.0f} %".format).reset_index()


def kernel_table(kernels):
    """What dense products change, by device and precision."""
    return pd.DataFrame({
        "device": kernels["device"].map(lambda name: "GPU" if "NVIDIA" in name else "CPU"),
        "precision": kernels["precision"],
        "items": kernels["items"].map("{:,}".format),
        "mean |Δ log p|": kernels["mean"].map("{:.3f}".format),
        "largest": kernels["largest"].map("{:.2f}".format),
        "largest, p > 1 %": kernels["largest_likely"].map("{:.2f}".format),
        "largest |Δ p|": kernels["largest_probability"].map("{:.3f}".format),
        "answers changed": kernels["changed"],
    })


def gpu_table(gpu):
    """What the GPU reached at each precision with either kind of weights."""
    shown = {"product_teraflops": "product, TFLOP/s", "prompts_per_second": "prompts/s",
             "answers_per_second": "answers/s", "loop_answers_per_second": "loop, answers/s"}
    table = gpu[list(shown)].map(lambda v: "" if np.isnan(v) else number(v)).rename(columns=shown)
    kinds = gpu["compute"].map({"dense": "dequantized", "native": "native kernels"})
    table.insert(0, "precision", gpu["precision"])
    table.insert(1, "weights", kinds.mask(gpu["precision"] == "bf16", "as they are"))
    # Each row's process measured a product for itself, on a GPU as warm as it then was.
    use = gpu["utilization"] * gpu["matmul_teraflops"] / gpu["matmul_teraflops"].max()
    table["utilization"] = [f"{100 * u:.0f} %" for u in use]
    note = gpu["failure"].fillna("").str.replace(" seconds", "\u00a0s")
    return table.assign(note=note).sort_values(
        ["precision", "weights"], ignore_index=True)


def _gpu_sentence(gpu):
    by = gpu.set_index(["precision", "compute"])["prompts_per_second"]
    both = (by.xs("dense", level=1) / by.xs("native", level=1)).dropna()
    return (
        f"On an {gpu['device'].iloc[0]} it answered {number(by['bf16', 'native'])} prompts a second "
        f"at BF16. Quantized weights, dequantized once, gave {number(both.min())} to "
        f"{number(both.max())} times the prompts a second of MLX's quantized kernels: these reach a "
        "fraction of the dense rate on wide products, and their thin versions are compiled when first "
        "needed, half a minute each, so that sampled answers came to no end within the "
        "time allowed at some precisions."
    )


def speed_words(tables):
    """Numbers and sentences of the speed page and of the method page."""
    results, kernels, machine = tables["results"], tables["kernels"], tables["machine"]
    loop = ratios(results, "loop", "precision").set_index(["contender", "precision"])
    on_gpu = kernels["device"].isin(tables["gpu"]["device"])
    same, kernels = kernels[on_gpu], kernels[~on_gpu]
    goals, worst = aims(tables), kernels.loc[kernels["changed"].idxmax()]
    missed = goals.loc[goals["met"] == "no", "what"]
    return {
        "machine": f"{machine['cpu']}, {machine['blas'].removeprefix('BLAS: ')}; MLX "
        f"{machine['mlx']}, mlx-lm {machine['mlx-lm']}, PyTorch {machine['torch']}",
        "rounds": str(int(results["rounds"].min())),
        "ours_a_second": number(results.query("benchmark == 'loop' and contender == 'ours'")
                                ["per_second"].median()),
        **{f"loop_{q}": number(loop.loc[(CONTENDERS["loop"], q), "estimate"])
           for q in ("bf16", "q4")},
        "dense_lowest": number(loop.loc[CONTENDERS["loop_dense"], "estimate"].min()),
        "orders": number(orders_ratio(results)),
        **{f"products_{size}": f"{100 * share:.0f} %" for size, share in
           tables["profile"].query("part == 'weight products'")[["size", "share"]].itertuples(
               index=False)},
        "aims_sentence": "All that was aimed at was reached." if missed.empty else
        "Not reached: " + "; ".join(missed) + ".",
        "torch_sentence": _torch_sentence(results),
        "kernel_sentence": (
            f"Over {worst['items']:,} items the largest difference of a letter's probability "
            f"between the two is {kernels['largest_probability'].max():.2f}, and the mean "
            f"difference of its log-probability lies between {kernels['mean'].min():.3f} and "
            f"{kernels['mean'].max():.3f}; the likeliest letter changes on at most "
            f"{worst['changed']} items of a precision ({worst['precision'].upper()})."
        ),
        "gpu_sentence": _gpu_sentence(tables["gpu"]),
        "gpu_kernel_sentence": (
            f"On the GPU, at {', '.join(same['precision'].str.upper())}, "
            + ("no log-probability of a letter differed at all."
               if same["largest"].max() == 0 else
               f"the largest difference of a letter's probability is "
               f"{same['largest_probability'].max():.2f}.")
        ),
    }


def _torch_sentence(results):
    """How the shared beginnings do beside PyTorch's fused kernels, at every size."""
    found = ratios(results, "scorers", "size")
    found = found[found["contender"] == CONTENDERS["torch_batched"]]
    times = [f"{number(row.estimate)} times at {row.weights} weights"
             for row in found.rename(columns={"size": "weights"}).itertuples()]
    return ("PyTorch has such kernels for the CPU, and runs every token of every prompt. Beside it, the "
            f"prompts a second here are {', '.join(times[:-1])} and {times[-1]}.")
