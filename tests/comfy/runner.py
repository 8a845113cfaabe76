"""Starts ComfyUI's main.py: ``python runner.py COMFYUI_DIR [ComfyUI's own arguments]``.

Run by ``comfyui.ComfyUI``. It does two things that plain ``python main.py`` does not: it gets by
with a torchvision or torchaudio built for another torch, and it ends when its standard input does,
so that a killed test run leaves no ComfyUI behind.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import threading
import types
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    make_importable()
    script = folder / "main.py"
    sys.argv = [str(script), *sys.argv[2:]]
    sys.path[0] = str(folder)  # in place of this file's folder
    runpy.run_path(str(script), run_name="__main__")


def _end_with_parent() -> None:
    """The parent holds the other end of the pipe: its end, however it came, closes it."""
    # Not sys.stdin: a reader blocked in its buffer would hold up the interpreter's shutdown.
    while os.read(0, 4096):
        pass
    os._exit(3)


def make_importable() -> None:
    """torchvision and torchaudio, as far as they are installed: PyPI's are CUDA builds, which
    cannot load their operators beside a CPU torch. ComfyUI says itself which of them it misses."""
    import torch

    if _is_for_another_torch("torchvision"):
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define("torchvision::nms", boxes)
        torch.library.define("torchvision::qnms", boxes)
    if _is_for_another_torch("torchaudio"):
        # In place of the module that loads them: it has a state for "none are installed".
        without = types.ModuleType("torchaudio._extension")
        without._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
        without._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
        without.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
        sys.modules["torchaudio._extension"] = without


def _is_for_another_torch(package: str) -> bool:
    """Whether it is there but cannot load its operators; nothing of it stays imported then."""
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    except (RuntimeError, OSError):
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            del sys.modules[name]
        return True
    return False


if __name__ == "__main__":
    main()
