"""Networks with zeros or signs in them, made small and run fast on a CPU, whoever made them.

    small = compact(model, example)            # without the channels that nobody needs
    fast = sparsify(small, example)            # zeros are skipped where that is faster
    packed = pack(binary_model)                # products of signs from xor and popcount
    save(packed, "packed.safetensors")         # one bit per sign, no zeros
    load("packed.safetensors")

`threads` shares compiled work between cores; `compact`, `sparse` and `bits` are a room each.
"""

from rectified.inference.batch_norm import fold_batch_norm
from rectified.inference.bits import PackedModel, pack
from rectified.inference.compact import compact, compaction, resize
from rectified.inference.files import load, save
from rectified.inference.semi_structured import semi_structured
from rectified.inference.sparse import SparseModel, sparsify

__all__ = [
    "PackedModel",
    "SparseModel",
    "compact",
    "compaction",
    "fold_batch_norm",
    "load",
    "pack",
    "resize",
    "save",
    "semi_structured",
    "sparsify",
]
