#!/usr/bin/env bash
# safetensors 0.8.0 (with torch 2.13.0)
#
# safetensors.torch.save writes a float8_e8m0fnu tensor, load_file reads it from a file, but load of
# the very same bytes raises a bare KeyError: 'F8_E8M0', for every other tensor beside it as well.
#
# Why it matters: e8m0 is the dtype of the scales in MXFP8 and MXFP4 models. A bus has bytes and no
# file: what one side packs by this library, the other cannot unpack, and the error does not say
# which tensor or dtype is at fault. Upstream: safetensors#839, open.
#
# zbus: does not serialise by safetensors, so that such a tensor arrives bit by bit
# (tests/test_payload.py: test_every_dtype_is_bit_exact); of a latent's file it reads that one
# (tests/test_fetching.py: test_what_lies_beside_a_latent_is_not_read).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check \
    safetensors==0.8.0 torch==2.13.0 numpy==2.4.6

venv/bin/python -I - <<'PYTHON'
import pathlib
import sys

import safetensors
import torch
from safetensors.torch import load, load_file, save

print(f"safetensors {safetensors.__version__}, torch {torch.__version__}")
scales = torch.tensor([0.5, 1.0, 2.0]).to(torch.float8_e8m0fnu)
data = save({"scales": scales, "weights": torch.ones(2)})
pathlib.Path("both.safetensors").write_bytes(data)

from_file = load_file("both.safetensors")["scales"]
file_right = from_file.dtype == scales.dtype and torch.equal(
    from_file.view(torch.uint8), scales.view(torch.uint8)
)
try:
    from_bytes = str(load(data)["scales"].tolist())
except KeyError as error:
    from_bytes = repr(error)

print(f"  expected of both   {scales.tolist()}")
print(f"  seen of load_file  {from_file.tolist()}")
print(f"  seen of load       {from_bytes}")
if not file_right or from_bytes != "KeyError('F8_E8M0')":
    sys.exit("CHANGED: load or load_file no longer does what is described above")
print("as described: the same bytes can be read from a file, and not from memory")
PYTHON
