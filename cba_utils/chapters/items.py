"""Look at the items: every item beside what each model answered at each precision."""

from functools import cached_property

from IPython.display import display

from cba_utils.telling import explorer
from cba_utils.telling.page import Page


class Chapter(Page):
    """Notebook ``60_explorer``."""

    version = "all"

    @cached_property
    def shares(self):
        """What each model answered to each item."""
        return explorer.answer_shares(self.study)

    @property
    def size(self):
        """Numbers of items, models and precisions."""
        return {
            "items": len(self.study.items),
            "models": self.shares["model"].nunique(),
            "precisions": self.shares["precision"].nunique(),
        }

    @property
    def start(self):
        """Model and precision that the page opens with."""
        return explorer.start(self.shares)

    @property
    def planted(self):
        """Whether what was planted in an item is known."""
        return "margin" in explorer.items_of(self.study)

    @property
    def measure(self):
        """What the shares are."""
        return explorer.measure(self.study)

    @property
    def draws(self):
        """Draws an item and precision."""
        return self.study.samples["seed"].nunique()

    def explore(self):
        """Write the data of the page into the static files of the study's book, and display it."""
        explorer.write(self.study, self.shares)
        display({"text/html": explorer.page(self.study, self.shares)}, raw=True)
