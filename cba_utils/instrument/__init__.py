"""Whether the measures can be trusted: simulated respondents and their verdicts."""
