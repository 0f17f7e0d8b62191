"""How numbers are told: figures, tables, pages."""
