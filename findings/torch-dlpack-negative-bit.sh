#!/usr/bin/env bash
# torch 2.13.0 (with numpy 2.4.6)
#
# DLPack refuses a lazily conjugated tensor (BufferError), but hands on a lazily negated one with
# the sign lost: the imaginary part of a conjugate, z.conj().imag, arrives with its sign turned.
#
# Why it matters: DLPack is how tensors go from torch to numpy, CuPy, JAX, or a bus. Here two of its
# ways into numpy differ: .numpy() refuses the tensor, numpy.from_dlpack gives -2 as 2. And within
# torch, from_dlpack of a tensor is not that tensor.
#
# zbus: takes no tensor by DLPack, and resolves both marks before it looks at the bytes
# (tests/test_payload.py: test_views_expanded_gradient_conjugate_and_parameter).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

venv/bin/python -I - <<'PYTHON'
import sys

import numpy as np
import torch

print(f"torch {torch.__version__}, numpy {np.__version__}")
conjugate = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj()
negated = conjugate.imag
assert conjugate.is_conj() and negated.is_neg()
assert negated.tolist() == [-2.0, 4.0]


def attempt(function, tensor):
    try:
        return function(tensor).tolist()
    except (BufferError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).split('.')[0]}"


seen = {
    "conjugate, torch.from_dlpack": attempt(torch.from_dlpack, conjugate),
    "negated, .numpy()": attempt(torch.Tensor.numpy, negated),
    "negated, torch.from_dlpack": attempt(torch.from_dlpack, negated),
    "negated, numpy.from_dlpack": attempt(np.from_dlpack, negated),
    "resolved, numpy.from_dlpack": attempt(np.from_dlpack, negated.resolve_neg()),
}
print(f"  expected of each: an error, or the values ({negated.tolist()} of the negated one)")
for how, what in seen.items():
    print(f"  {how:30}{what}")

kinds = [what if isinstance(what, list) else what.split(":")[0] for what in seen.values()]
turned, right = [2.0, -4.0], [-2.0, 4.0]
if kinds != ["BufferError", "RuntimeError", turned, turned, right]:
    sys.exit("CHANGED: not each of these does what is described above")
print("as described: DLPack refuses the one mark and loses the other")
PYTHON
