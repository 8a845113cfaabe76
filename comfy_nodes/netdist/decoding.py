"""Pure: files to pictures and latents, and back. What a file declares is checked before memory is
taken for it.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.lib import format as npy
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError

from zbus.operation import size_text
from zbus.protocol.fields import clip

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; ours holds where a pack took its limit away
MAX_LATENT = 1 << 30  # bytes of one array, unpacked and as float32
SD1_SCALE = 1.0 / 0.18215  # what ComfyUI multiplies a .latent of before its format had versions by
MAX_DIMENSIONS = 8
# The types of numbers that a latent may have, as safetensors calls them.
_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"} | {
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U8": "uint8"},
    **{"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
}
_HEADER = 1 << 14  # bytes that surely hold the header of an array (NumPy reads at most 10,000)


class Undecodable(Exception):
    """The bytes are not what they should be, or too much; the text is one clause."""


# --- pictures


def picture_format(data: bytes, *, pixels: int = MAX_PIXELS) -> str:
    """Which of FORMATS a picture file is of. It is decoded once: ComfyUI's LoadImage makes do with
    one that is cut short.

    Raises:
        Undecodable: No picture of a common format, damaged, or all its frames together have more
            than `pixels`.
    """
    with _opened(data) as opened:
        _check_size(opened, pixels)
        opened.load()
        count = int(getattr(opened, "n_frames", 1))
        if _all_pixels(opened, count) > pixels:
            raise Undecodable(
                f"the picture has {count} frames, which together are more than the "
                f"{pixels / 1e6:.0f} million pixels that are taken"
            )
        return "JPEG" if opened.format == "MPO" else str(opened.format)  # more than one JPEG


def _check_size(opened: Image.Image, pixels: int) -> None:
    width, height = opened.size
    if width * height > pixels:
        raise Undecodable(
            f"the picture has {width} x {height} pixels, more than the "
            f"{pixels / 1e6:.0f} million that are taken"
        )


def _all_pixels(opened: Image.Image, count: int) -> int:
    if opened.format != "TIFF":
        return opened.width * opened.height * count
    total = 0
    for page in range(count):  # which have sizes of their own
        opened.seek(page)
        total += opened.width * opened.height
    return total


def picture(data: bytes, *, pixels: int = MAX_PIXELS) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture file's first frame, where ComfyUI's own LoadImage does not take it.

    Returns:
        IMAGE float32 [1, H, W, 3], and MASK [1, H, W]: 1 - alpha, or zeros [1, 64, 64].

    Raises:
        Undecodable: No picture of a common format, damaged, or of more than `pixels`.
    """
    with _opened(data) as opened:
        _check_size(opened, pixels)
        return _image_and_mask(ImageOps.exif_transpose(opened))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            yield opened
    except Undecodable:
        raise
    except Image.DecompressionBombError as error:
        raise Undecodable(f"the picture is too large: {error}") from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise Undecodable(f"it is no picture of a known format ({known})") from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise Undecodable(f"the picture is damaged: {clip(str(error), 150)}") from error


def _image_and_mask(frame: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    if frame.mode.startswith("I"):  # grey of 16 bits, which a conversion to RGB would clip
        grey = np.clip(np.array(frame).astype(np.float32) / 65535.0, 0.0, 1.0)
        image = np.repeat(grey[..., None], 3, axis=2)
    else:
        image = np.array(frame.convert("RGB"), dtype=np.float32) / np.float32(255.0)
    return torch.from_numpy(image)[None], _mask(frame)[None]


def _mask(frame: Image.Image) -> torch.Tensor:
    if "A" in frame.getbands():
        alpha = frame.getchannel("A")
    elif "transparency" in frame.info and frame.mode in ("P", "RGB", "L"):
        alpha = frame.convert("RGBA").getchannel("A")
    else:
        return torch.zeros((64, 64), dtype=torch.float32)
    return 1.0 - torch.from_numpy(np.array(alpha, dtype=np.float32) / 255.0)


def png(image: torch.Tensor, texts: Mapping[str, str]) -> bytes:
    """One image [H, W, C] as an 8-bit PNG, clipped to 0..1, with text chunks.

    Raises:
        Undecodable: It has not 1, 3 or 4 channels.
    """
    if image.shape[-1] not in (1, 3, 4):
        raise Undecodable(f"an image of {image.shape[-1]} channels is not one for a PNG")
    eight_bit = image.detach().cpu().float().mul(255.0).clamp(0, 255).to(torch.uint8).numpy()
    made = Image.fromarray(eight_bit[..., 0] if eight_bit.shape[-1] == 1 else eight_bit)
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    buffer = BytesIO()
    made.save(buffer, "png", pnginfo=info, compress_level=4)
    return buffer.getvalue()


# --- latents


def latent(data: bytes, *, most: int = MAX_LATENT) -> torch.Tensor:
    """The samples in a file of ComfyUI (.latent, .safetensors) or NumPy (.npy, .npz).

    The content tells which it is, and not a name.

    Returns:
        float32 with a batch dimension: at least 4 dimensions.

    Raises:
        Undecodable: It is neither, or damaged, or an array of more than `most` bytes.
    """
    if data.startswith(npy.MAGIC_PREFIX):
        found = _array(data, most)
    elif data.startswith(b"PK"):
        found = _from_archive(data, most)
    else:
        found = _from_safetensors(data)
    if found.dim() < 3:
        raise Undecodable(f"an array of shape {list(found.shape)} is no latent (3 dimensions up)")
    return found.unsqueeze(0) if found.dim() == 3 else found


def _from_safetensors(data: bytes) -> torch.Tensor:
    try:
        tensors = dict(safetensors.deserialize(data))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        said = "it is neither a latent of ComfyUI (.latent, .safetensors) nor of NumPy (.npy, .npz)"
        raise Undecodable(said) from error
    if "latent_tensor" not in tensors:
        there = clip(", ".join(sorted(tensors)) or "nothing", 100)
        raise Undecodable(f'it is a file of tensors without "latent_tensor"; it has {there}')
    # Of the others nothing is read: some have types that not every version can load.
    found = _samples(tensors["latent_tensor"])
    return found if "latent_format_version_0" in tensors else found * SD1_SCALE


def _samples(stored: Mapping[str, Any]) -> torch.Tensor:
    dtype = getattr(torch, _SAFETENSORS.get(stored["dtype"], ""), None)
    if dtype is None:
        raise Undecodable(f"{clip(str(stored['dtype']), 50)} is no type for a latent")
    if 0 in stored["shape"]:
        raise Undecodable(f"an array of shape {clip(str(stored['shape']), 100)} is no latent")
    flat = torch.frombuffer(bytearray(stored["data"]), dtype=dtype)
    return flat.reshape(stored["shape"]).to(torch.float32)


def _from_archive(data: bytes, most: int) -> torch.Tensor:
    """The array "latents" of an .npz, else the first with 3 dimensions or more."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            named = (m for m in members if m.filename == "latents.npy")
            likely = (m for m in members if _dimensions(archive, m) >= 3)
            member = next(named, None) or next(likely, None)
            if member is None:
                there = clip(", ".join(m.filename for m in members) or "no array", 100)
                raise Undecodable(f"no array in it has 3 dimensions or more; it has {there}")
            if member.file_size > most + _HEADER:
                raise Undecodable(_too_much(member.file_size, most))
            return _array(_unpacked(archive, member, member.file_size), most)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        raise Undecodable("the .npz file is damaged") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in an exotic way
        raise Undecodable("the .npz file is packed in a way that NumPy does not use") from error


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, size: int) -> bytes:
    """The first `size` bytes of a member, and never more than that, whatever it declares."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError  # these unpack a piece at once, to whatever size
    with archive.open(member) as opened:
        return opened.read(size)


def _dimensions(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    try:
        return len(_header(_unpacked(archive, member, _HEADER))[0])
    except Undecodable:  # not numbers, such as a list of names beside the latents
        return 0


def _array(data: bytes, most: int) -> torch.Tensor:
    """The array in .npy data, as float32. Never unpickles."""
    shape, fortran, dtype, start = _header(data)
    count, there = math.prod(shape), len(data) - start
    if count * max(4, dtype.itemsize) > most:
        raise Undecodable(_too_much(count * max(4, dtype.itemsize), most))
    if count * dtype.itemsize > there:
        declared = size_text(count * dtype.itemsize)
        raise Undecodable(f"it declares {declared} of numbers and has {size_text(there)}")
    flat = np.frombuffer(data, dtype, count, start)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, as torch does it
        numbers = flat.reshape(shape, order="F" if fortran else "C").astype(np.float32, order="C")
    return torch.from_numpy(numbers)


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, Fortran order, dtype, where the numbers start) of .npy data."""
    stream = BytesIO(data[:_HEADER])
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[npy.read_magic(stream)](stream)
    except Exception as error:  # it is a Python literal, whose parser raises all sorts
        raise Undecodable("its NumPy header cannot be read") from error
    if dtype.hasobject or dtype.kind not in "fiu":
        raise Undecodable(f"it holds {clip(str(dtype), 50)}, and not plain numbers")
    if len(shape) > MAX_DIMENSIONS or any(size < 1 for size in shape):
        raise Undecodable(f"an array of shape {clip(str(shape), 100)} is no latent")
    return shape, fortran, dtype, stream.tell()


def _too_much(size: int, most: int) -> str:
    return f"it unpacks to {size_text(size)}, more than the {size_text(most)} that are taken"


def npy_file(samples: torch.Tensor) -> bytes:
    """An array as a .npy file; types that NumPy lacks become float32."""
    plain = samples.detach().cpu()
    try:
        numbers = plain.numpy()
    except TypeError:  # bfloat16, float8
        numbers = plain.float().numpy()
    buffer = BytesIO()
    np.save(buffer, numbers, allow_pickle=False)
    return buffer.getvalue()
