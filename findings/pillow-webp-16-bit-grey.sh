#!/usr/bin/env bash
# Pillow 13.0.0 (with numpy 2.4.6)
#
# Saving a 16-bit grey picture as lossless WebP neither refuses it nor scales it: every value above
# 255 becomes 255, so that all but the darkest 1/256 of the range is white.
#
# Why it matters: depth maps and masks are 16-bit grey, and "lossless" is taken for a promise when a
# bus packs pictures. JPEG and BMP, which cannot hold 16 bits either, refuse the same picture.
#
# zbus: hands Pillow strips of 8 bits alone, and widens 16-bit files by itself
# (tests/test_fetching.py: test_grey_of_16_bits_is_not_clipped).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cd "$work"
venv/bin/python -m pip install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6

venv/bin/python -I - <<'PYTHON'
import io
import sys
import warnings

import numpy as np
import PIL
from PIL import Image, features

warnings.simplefilter("error")  # a warning would be a word
print(f"Pillow {PIL.__version__}, libwebp {features.version('webp')}")

values = [0, 128, 255, 256, 4096, 32768, 65535]
picture = Image.fromarray(np.array([values], dtype=np.uint16))
print(f"  a picture of mode {picture.mode} with {values}")


def through(form, **options):
    file = io.BytesIO()
    try:
        picture.save(file, form, **options)
    except OSError as error:
        return f"refused: {error}"
    back = np.asarray(Image.open(file))
    return back.reshape(1, len(values), -1)[0, :, 0].tolist()


seen = {
    "PNG": through("PNG"),
    "JPEG": through("JPEG"),
    "BMP": through("BMP"),
    "lossless WebP": through("WEBP", lossless=True, exact=True),
}
print("  expected of WebP: an error as from JPEG, or the upper 8 bits: 0 0 0 1 16 128 255")
for form, what in seen.items():
    print(f"  seen of {form:14}{what}")

if (
    seen["PNG"] != values
    or not str(seen["JPEG"]).startswith("refused")
    or not str(seen["BMP"]).startswith("refused")
    or seen["lossless WebP"] != [min(v, 255) for v in values]
):
    sys.exit("CHANGED: not every format does what is described above")
print("as described: lossless WebP cuts 16 bits at 255 without a word")
PYTHON
