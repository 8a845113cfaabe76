#!/usr/bin/env bash
# safetensors 0.8.0 (with numpy 2.4.6)
#
# safetensors.numpy.save takes an array in Fortran order, or a transposed one, without a word and
# stores its elements in the order of memory: other values come back in the same shape.
#
# Why it matters: arrays of a tensor bus are often transposed views (channels first to channels
# last). Nothing raises, shape and dtype are right, only the values are not. The torch half of the
# same library refuses such a tensor, and 0.7.0 wrote it correctly. Upstream: safetensors#825, open.
#
# zbus: does not serialise by safetensors; it puts an array into C order before it looks at its
# bytes (tests/test_payload.py: test_numpy_arrays).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"

for version in 0.7.0 0.8.0; do
    venv/bin/python -m pip install --quiet --disable-pip-version-check \
        "safetensors==$version" numpy==2.4.6
    venv/bin/python -I - "$version" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

version = sys.argv[1]
assert safetensors.__version__ == version
print(f"\nsafetensors {version}, numpy {np.__version__}")

plain = np.arange(6, dtype=np.float32).reshape(2, 3)
cases = {"C order": plain, "Fortran order": np.asfortranarray(plain), "transposed": plain.T}
equal = {}
for name, array in cases.items():
    back = load(save({"x": array}))["x"]
    equal[name] = array.shape == back.shape and bool((array == back).all())
    print(f"  {name:14}expected {array.tolist()}")
    print(f"  {'':14}seen     {back.tolist()}")

right = {"C order": True, "Fortran order": True, "transposed": True}
wrong = {"C order": True, "Fortran order": False, "transposed": False}
if equal != (wrong if version == "0.8.0" else right):
    sys.exit(f"CHANGED: what comes back equal from {version} is now {equal}")
PYTHON
done
echo
echo "as described: 0.7.0 gives every array back, 0.8.0 mixes up all but C order"
