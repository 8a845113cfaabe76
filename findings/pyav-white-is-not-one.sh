#!/usr/bin/env bash
# PyAV 18.1.0 (av; with numpy 2.4.6)
#
# A full white 8-bit frame that is read as floats (VideoFrame.to_ndarray, "gbrpf32le") is 0.9961 and
# not 1.0, while a 16-bit grey frame of full white is 1.0. It is about 65280/65535, as if 255 had
# been shifted to 16 bits and not stretched. Read as "rgb24" the same frame has its 255.
#
# Why it matters: frames that came this way are no multiples of 1/255. Who looks whether a picture
# "came from 8 bits", to pack it small without loss, finds that none did; and what compares with 1.0
# (masks, clipping) never matches.
#
# zbus: packs as 8 bits only what is exactly that and sends other values as they are
# (tests/test_payload.py: test_one_other_element_makes_it_plain); a film goes as its file's bytes
# (tests/test_films.py: test_an_untouched_film_is_its_file).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6

venv/bin/python -I - <<'PYTHON'
import sys

import av
import numpy as np

print(f"PyAV {av.__version__}, libswscale {'.'.join(map(str, av.library_versions['libswscale']))}")


def white(form, dtype, channels, *, into):
    shape = (16, 16, channels) if channels > 1 else (16, 16)
    frame = av.VideoFrame.from_ndarray(np.full(shape, np.iinfo(dtype).max, dtype), format=form)
    got = frame.to_ndarray(format=into)
    assert got.min() == got.max()
    return got.max()


kinds = {
    "rgb24": ("rgb24", np.uint8, 3),
    "gray": ("gray", np.uint8, 1),
    "gray16le": ("gray16le", np.uint16, 1),
}
floats = {name: float(white(*kind, into="gbrpf32le")) for name, kind in kinds.items()}
print(f"  white rgb24 as rgb24      {white(*kinds['rgb24'], into='rgb24')}")
print("  expected as gbrpf32le     1.0 for each")
for name, value in floats.items():
    print(f"  seen, from {name:15}{value:.5f}  (times 255: {value * 255:.3f})")

if not (0.99 < floats["rgb24"] < 0.999 and 0.99 < floats["gray"] < 0.999):
    sys.exit("CHANGED: 8-bit white is no longer a little less than one")
if floats["gray16le"] != 1.0:
    sys.exit("CHANGED: 16-bit white is no longer 1.0")
print("as described: white of 8 bits is less than one")
PYTHON
