"""Starts ComfyUI's main.py: ``python runner.py COMFYUI_DIR [ComfyUI's own arguments]``.

Run by ``comfyui.ComfyUI``. It does two things that plain ``python main.py`` does not: it gets by
with a torchvision built for another torch, and it ends when its standard input does, so that a
killed test run leaves no ComfyUI behind.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    _make_torchvision_importable()
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


def _make_torchvision_importable() -> None:
    """PyPI's torchvision is a CUDA build and cannot load its operators beside a CPU torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError):
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define("torchvision::nms", boxes)
        torch.library.define("torchvision::qnms", boxes)
    except ImportError:
        pass  # ComfyUI says itself what it misses


if __name__ == "__main__":
    main()
