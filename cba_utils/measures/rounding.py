"""Measures of what rounding does to an alignment, in its weights and in other ways to round."""

from cba_utils.measures.measure import SHARE, UNBOUNDED, Measure, difference, register

register(
    Measure(
        "left", "Alignment left along its own direction, %", bounds=UNBOUNDED, counts="weights"
    ),
    Measure(
        "noise",
        "Noise across it, times the alignment (log scale)",
        unit="ratio",
        bounds=(0.0, float("inf")),
        counts="weights",
    ),
    Measure("change", bounds=difference(SHARE), kind="change", base="became_biased_expected"),
)
