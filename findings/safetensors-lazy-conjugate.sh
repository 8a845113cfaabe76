#!/usr/bin/env bash
# safetensors 0.8.0 (with torch 2.13.0)
#
# safetensors.torch.save writes what lies in memory under a lazily conjugated tensor: the result of
# torch.conj comes back unconjugated, though the tensor says that it is contiguous.
#
# Why it matters: tensor.conj() copies nothing and only sets a mark, so that everything which reads
# memory by its address must resolve it first. Spectra that travel this way arrive with the sign of
# each imaginary part turned, and nothing raises. Upstream: safetensors#831, open.
#
# zbus: resolves both marks, conjugate and negative, before it looks at the bytes
# (tests/test_payload.py: test_views_expanded_gradient_conjugate_and_parameter).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    safetensors==0.8.0 torch==2.13.0 numpy==2.4.6

venv/bin/python -I - <<'PYTHON'
import sys

import safetensors
import torch
from safetensors.torch import load, save

print(f"safetensors {safetensors.__version__}, torch {torch.__version__}")
plain = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
lazy = plain.conj()
assert lazy.is_conj() and lazy.is_contiguous()
resolved = lazy.resolve_conj()
assert torch.equal(lazy, resolved)

back = {
    name: load(save({"x": tensor}))["x"]
    for name, tensor in {"resolved": resolved, "lazy": lazy}.items()
}
for name, tensor in back.items():
    print(f"  {name:9}expected {lazy.tolist()}, seen {tensor.tolist()}")
if not torch.equal(back["resolved"], lazy):
    sys.exit("CHANGED: even a resolved tensor comes back with other values")
if not torch.equal(back["lazy"], plain):
    sys.exit("CHANGED: a lazily conjugated tensor no longer comes back unconjugated")
print("as described: equal tensors are written with different values")
PYTHON
