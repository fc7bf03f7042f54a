"""Compaction: the channels that pruning has emptied, really removed, with the same outputs.

    small = compact(model, example, masks=masks)          # same class, same names, smaller tensors
    again = resize(fresh_model, small.state_dict())       # load it without a pickle

`compaction` also tells what was removed and what had to stay. `channel_graph` finds which channels
go together and which are constant, `channel_axes` knows what calls do to channels.
"""

from rectified.inference.compact.compaction import Compaction, LayerSize, compact, compaction
from rectified.inference.compact.resize import resize

__all__ = ["Compaction", "LayerSize", "compact", "compaction", "resize"]
