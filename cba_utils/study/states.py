"""Whether a cell can be compared with its reference over the whole vocabulary, and with what.

The reference's last hidden states at the answers and on the text wait in the cache, under a hash of all
that decides them: the reference's own cell leaves them there, and where they are gone (a cache may be
emptied at any time) they are computed again, by the same passes and so with the same bytes.
"""

import gc
import hashlib
import json
import shutil

import numpy as np

from cba_utils.answering.cache import cache_folder
from cba_utils.names import REFERENCE
from cba_utils.study.files import write_array, write_text

# Of what decides an answer, the parameters that do not move the states it is read from.
_NOT_DECIDING = ("precision", "seeds", "temperature", "max_tokens", "parser", "perplexity_method")
_FROM_IDENTITY = ("compute", "items_sha256", "text_sha256", "prompts_sha256", "code_sha256")


def reference_identity(parameters, source_at):
    """What a cell is compared with, for its identity.

    Parameters
    ----------
    parameters : dict
        Of the cell.
    source_at : callable
        Given a precision, the folder of the checkpoint that the cell's model is made from at it.

    Returns
    -------
    dict or None
        ``weights_sha256``, or ``missing``, the reason why it cannot be compared; None if the study does
        not ask for it.
    """
    from cba_utils.answering.checkpoint_files import read_config, tokenizer_hash, weights_hash

    if not parameters.get("drift"):  # the rounding notebook has no such parameter
        return None
    try:
        mine, source = source_at(parameters["precision"]), source_at(REFERENCE)
        here, there = read_config(mine), read_config(source)
        if there.get("quantization"):
            return {"missing": f"the checkpoint is quantized already, and there is no {REFERENCE}"}
        if tokenizer_hash(mine) != tokenizer_hash(source) or here.get("vocab_size") != there.get(
            "vocab_size"
        ):
            return {"missing": f"its vocabulary is not that of {REFERENCE}"}
        return {"weights_sha256": weights_hash(source)}
    except (ValueError, OSError) as error:
        return {"missing": f"there is no {REFERENCE}: {error}"}


class States:
    """Hidden states of a reference: kept by its own cell, compared with by the others.

    Parameters
    ----------
    identity : dict
        Of a cell.
    """

    _heads: dict = {}

    def __init__(self, identity):
        parameters = identity["parameters"]
        reference = identity["reference"]
        decides = {
            "parameters": {k: v for k, v in parameters.items() if k not in _NOT_DECIDING},
            "reference": reference,
            "adapter": identity.get("adapter_sha256"),
            "packages": identity["packages"],
            **{name: identity[name] for name in _FROM_IDENTITY},
        }
        self.key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = cache_folder("states") / self.key
        self.own = parameters["precision"] == REFERENCE
        self.left_out = reference.get("missing", "")

    def remember(self, loaded):
        """Keep a reference's head for the cells that follow it in this process, and no other's."""
        self._heads.clear()
        self._heads[self.key] = loaded.project

    @property
    def ready(self):
        """Whether the reference's head is in this process."""
        return self.key in self._heads

    def whole(self, starts):
        """Whether the states at the answers (blocks begin at `starts`) and on the text are all there."""
        files = [*(self._file("answers", start) for start in starts), self._mark]
        return all(file.is_file() for file in files)

    def text_done(self):
        """Mark the text's states as whole: how many blocks it has is not known before it is read."""
        write_text("", self._mark)

    def beside(self, kind, offset=0, keep=None):
        """What blocks of a kind are compared with, as `stream` and `perplexity` ask for it.

        Parameters
        ----------
        kind : {"answers", "text"}
        offset : int
            Position of the first block.
        keep : bool, optional
            Whether these are the reference's own blocks; by default, whether it is its cell.
        """
        from cba_utils.answering.drift import Compared, Kept

        keep = self.own if keep is None else keep

        def block(start, _positions):
            file = self._file(kind, offset + start)
            if keep:
                return Kept(lambda states: write_array(states, file))
            return Compared(self._heads[self.key], np.load(file))

        return block

    @property
    def _mark(self):
        return self.folder / "text.whole"

    def _file(self, kind, start):
        return self.folder / f"{kind}-{start}.npy"

    def remove(self):
        """Make room; what is needed again is computed again."""
        shutil.rmtree(self.folder, ignore_errors=True)


def free():
    """Give back what a model that is no longer used held."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
