"""What a ComfyUI can be given to compute with: each GPU here, or the CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ...printable import shown

ALL = "all"
PATIENCE = 60.0  # seconds for a driver that wakes its cards first, or for torch to load
MAX_NAME = 60  # characters
# Set by a scheduler, or by who shares the machine: then only these GPUs are to be used.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
# CUDA counts the fastest first unless it is told otherwise, and nvidia-smi by the slots.
BY_SLOT = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
TRY_CPU = "Give --cpu N to try it out without"

_GPU = re.compile(r"GPU (\d+): (.+) \(UUID: (GPU-[\w-]+)\)")
_MIG = re.compile(r"\s+MIG (.+?)\s+Device\s+(\d+): \(UUID: (MIG-[\w/-]+)\)")
_ASK_TORCH = """
import json, torch
count = torch.cuda.device_count()
print(json.dumps([torch.cuda.get_device_name(number) for number in range(count)]))
"""


@dataclass(frozen=True)
class Device:
    """One that a ComfyUI gets to itself.

    Attributes:
        number: Of a GPU, as `--gpus` takes it and nvidia-smi shows it; "" for the CPU.
        name: Of the card, or "".
        arguments: For ComfyUI's command line.
        variables: For its environment.
    """

    number: str = ""
    name: str = ""
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        label = f"GPU {self.number}" if self.number else "CPU"
        return f"{label}: {self.name}" if self.name else label


CPU = Device(arguments=("--cpu",))


def gpus(wanted: str, python: str) -> list[Device]:
    """The GPUs of a text such as "all" or "0,1".

    Args:
        wanted: What the user has written.
        python: The one that runs ComfyUI, whose torch is asked where there is no nvidia-smi.

    Raises:
        InputError: There is none, or not that one; the text says which there are.
    """
    found = _visible() if any(name in os.environ for name in VISIBLE) else None
    if found is None:
        found = parse_nvidia_smi(_nvidia_smi()) or parse_torch(_output(python, "-c", _ASK_TORCH))
    if not found:
        raise InputError(_none_here(), remedy=TRY_CPU)
    if wanted.strip().lower() == ALL:
        return found
    known = {device.number: device for device in found}
    numbers = [number.strip() for number in wanted.split(",")]
    for number in numbers:
        if number not in known:
            raise InputError(
                f'there is no GPU "{number}" here',
                remedy=f"There are: {', '.join(map(str, found))}",
            )
        if numbers.count(number) > 1:
            raise InputError(f"GPU {number} is named twice", remedy="One ComfyUI gets each GPU")
    return [known[number] for number in numbers]


def parse_nvidia_smi(output: str) -> list[Device]:
    """The GPUs in what ``nvidia-smi -L`` prints.

    They are told to ComfyUI by UUID, which is the same in whatever order they are counted.
    """
    found: list[Device] = []
    for line in output.splitlines():
        if gpu := _GPU.match(line):
            found.append(_nvidia(gpu[1], gpu[2], gpu[3]))
        elif (part := _MIG.match(line)) and found:
            # The card itself cannot be used while it is cut into parts.
            card = found[-1].number.partition(":")[0]
            if found[-1].number == card:
                found.pop()
            found.append(_nvidia(f"{card}:{part[2]}", f"MIG {part[1]}", part[3]))
    return found


def parse_torch(output: str) -> list[Device]:
    """The GPUs in what `_ASK_TORCH` prints, in its last line."""
    try:
        names: Any = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return []
    if not isinstance(names, list):
        return []
    # ComfyUI's own flag knows the variables of every maker.
    return [
        Device(str(number), shown(str(name), MAX_NAME), ("--cuda-device", str(number)), BY_SLOT)
        for number, name in enumerate(names)
    ]


def _nvidia(number: str, name: str, uuid: str) -> Device:
    return Device(number, shown(name, MAX_NAME), variables={"CUDA_VISIBLE_DEVICES": uuid})


def _visible() -> list[Device]:
    """Those that the environment leaves, each in the very word of the variable."""
    name = next(name for name in VISIBLE if name in os.environ)
    words = [word.strip() for word in os.environ[name].split(",")]
    # What follows an invalid one is invisible to CUDA as well.
    count = next((n for n, word in enumerate(words) if word in ("", "-1")), len(words))
    return [Device(word, variables={name: word}) for word in words[:count]]


def _none_here() -> str:
    for name in VISIBLE:
        if name in os.environ:
            return f'{name} is "{shown(os.environ[name], 40)}", which leaves no GPU'
    return "no GPU was found here, neither by nvidia-smi nor by ComfyUI's torch"


def _nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    return _output(program, "-L") if program else ""


def _output(*command: str) -> str:
    """What a program prints; nothing if it fails."""
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            env={**os.environ, **BY_SLOT},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.decode(errors="replace") if ended.returncode == 0 else ""
