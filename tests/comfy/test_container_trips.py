"""MESH, SVG and others of this ComfyUI's own classes on their way: see container_trips.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from comfyui import host_python

WORKER = Path(__file__).with_name("container_trips.py")


def test_every_container_of_this_comfyui_arrives_as_it_was(comfyui_dir, tmp_path):
    command = [host_python(), "-B", str(WORKER), str(comfyui_dir)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-3000:]
    trips = json.loads(ran.stdout)
    assert trips.keys() >= {"MESH", "VOXEL", "SVG", "CLIP_VISION_OUTPUT", "in a conditioning"}
    for name, (here, there) in trips.items():
        assert here == there, name
