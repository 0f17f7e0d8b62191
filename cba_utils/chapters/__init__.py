"""The chapters: each computes in a module and says it in the template beside it, see `telling.page`."""
