"""Files of named tensors, in the safetensors format: https://github.com/huggingface/safetensors#format"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from ftrain.disk.durable import Part
from ftrain.text import shown

MAX_HEADER = 2**23  # bytes; about 60,000 tensors
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NAMES = {theirs: str(ours).removeprefix("torch.") for ours, theirs in _DTYPES.items()}


def parts(tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> list[Part]:
    """The contents of a file, in parts that share the memory of the tensors.

    The library's `save` copies all tensors, and its `save_file` gives neither a checksum nor the errno of a full disk,
    and refuses tensors that share memory.

    Args:
      tensors: contiguous, on the CPU.
      metadata: strings for the header.

    Raises:
      TypeError: if the format has no name for a dtype.
    """
    # The widest first, so that each starts at a multiple of its width.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"the safetensors format has no name for {tensor.dtype}, the dtype of {shown(name)}")
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(_bytes(tensors[name]) for name in names)]


class TensorFile:
    """An open file of tensors. Only its header is read until a tensor is.

    Raises:
      ValueError: if it is not in this format, or its header is longer than any that ftrain writes.
    """

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"its header has {length} bytes, more than the limit of {MAX_HEADER}")
        # By its descriptor, because another file may have its name by now, and the name may not be UTF-8.
        self._file: Any = _checked(safetensors.safe_open, f"/dev/fd/{file.fileno()}", framework="pt")

    def signatures(self) -> dict[str, str]:
        """Dtype and shape of each tensor, such as "float32 [3, 4]"."""
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        return {
            name: f"{_NAMES.get(part.get_dtype(), part.get_dtype())} {part.get_shape()}"
            for name, part in slices.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor of this name, in memory of its own."""
        # The library returns mapped memory, which changes with the file.
        tensor: Tensor = _checked(self._file.get_tensor, name).clone()
        return tensor


def signature(tensor: Tensor) -> str:
    """Dtype and shape of a tensor, as `TensorFile.signatures` gives them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _bytes(tensor: Tensor) -> Part:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _checked(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
