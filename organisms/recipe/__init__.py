"""The recipe of the model organisms: item bank, tokenizer, training, alignment, export.

Run it with ``python -m organisms.recipe``; see ``organisms/PROTOCOL.md`` for the settings.
"""
