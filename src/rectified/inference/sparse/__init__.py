"""Unstructured-sparse networks: run faster than the dense ones, and stored without their zeros.

    fast = sparsify(model, example)              # a module, for inference; print(fast.table())
    save_sparse(model, "lean.safetensors")       # packed; load_sparse gives a plain state_dict

The rooms, from the door inwards: `sparsify` chooses, `engines` runs single layers, `network` and
`steps` read a traced network, `builder`, `layout` and `program` make it one table of operations,
`kernels` executes that; `files` is storage.
"""

from rectified.inference.sparse.files import load_sparse, save_sparse
from rectified.inference.sparse.sparsify import LayerChoice, SparseModel, sparsify

__all__ = ["LayerChoice", "SparseModel", "load_sparse", "save_sparse", "sparsify"]
