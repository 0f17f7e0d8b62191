"""All that decides an answer: items, prompts, checkpoints, engine, scoring, likelihood."""
