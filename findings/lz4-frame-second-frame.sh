#!/usr/bin/env bash
# lz4 4.4.5 (python-lz4)
#
# lz4.frame.decompress gives the content of the first frame and drops a second one behind it, which
# the frame format allows and lz4.frame.open of the same library reads.
#
# Why it matters: who compresses the chunks of a tensor one by one and joins them gets one chunk
# back, with no error. gzip, bz2 and lzma of the standard library give all of it.
#
# zbus: uses lz4 blocks, compares the length with what was announced and checks a digest of its own
# (tests/test_codecs.py: test_truncated_lengthened_and_of_another_size).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check lz4==4.4.5

venv/bin/python -I - <<'PYTHON'
import bz2
import gzip
import io
import lzma
import sys

import lz4.frame

print(f"lz4 {lz4.__version__}, library {lz4.library_version_string()}")
one, two = b"first chunk, ", b"second chunk"

for module in (gzip, bz2, lzma):
    got = module.decompress(module.compress(one) + module.compress(two))
    print(f"  {module.__name__ + '.decompress':24}{got}")
    assert got == one + two

joined = lz4.frame.compress(one) + lz4.frame.compress(two)
whole = lz4.frame.open(io.BytesIO(joined)).read()
short = lz4.frame.decompress(joined)
print(f"  {'lz4.frame.open().read()':24}{whole}")
print(f"  expected of lz4.frame.decompress: {one + two}, or an error")
print(f"  seen of lz4.frame.decompress:     {short}")

if (whole, short) != (one + two, one):
    sys.exit("CHANGED: lz4.frame no longer does what is described above")
print("as described: the second frame is dropped")
PYTHON
