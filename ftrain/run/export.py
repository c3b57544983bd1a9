"""A trained network for other programs: one file, with its normalisation and class names."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import numpy as np
import torch
from torch import Tensor

from ftrain.data.images import Images
from ftrain.data.pixels import val_pixels
from ftrain.disk import durable, tensorfile
from ftrain.errors import DataError, ExportError
from ftrain.module import Tensors
from ftrain.run.build import Program
from ftrain.run.inference import Restored
from ftrain.text import shown

Format = Literal["safetensors", "onnx", "torch-export"]
FORMATS: tuple[str, ...] = get_args(Format)
SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
COMPARED = 16  # images on which an exported network is compared
TOLERANCE = 1e-3  # relative to the largest logit
OPSET = 18

Logits = Callable[[Tensor], Tensor]  # images uint8 [B, 3, S, S] -> logits [B, C]


class Exported(torch.nn.Module):
    """Images uint8 [B, 3, S, S] -> logits float32 [B, C]: the normalisation and the network."""

    def __init__(self, network: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", torch.tensor([1.0 / (255.0 * s) for s in std]).reshape(3, 1, 1))
        self.register_buffer("offset", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.float() * self.scale + self.offset)
        return logits


def export(restored: Restored, images: Images, kind: Format, target: Path) -> tuple[int, float]:
    """Writes a network to a file, which gets its name only if its logits on validation images equal those of the run.

    Args:
      restored: a trained network, on the CPU.
      images: whose validation images are compared.

    Returns:
      The number of images compared, and the largest difference of a logit.

    Raises:
      ExportError: if the format cannot represent the network, a package is missing, or the logits differ.
      DataError: if no image can be read.
    """
    spec = attrs.evolve(restored.program.spec, precision="float32")
    program, state = attrs.evolve(restored.program, spec=spec), restored.state
    samples = _samples(images)
    expected = program.predict_step(state, samples)
    facts = {
        "model": spec.model,
        "task": spec.task,
        **_about_labels(restored),
        "classes": json.dumps(spec.classes),
        "mean": json.dumps(spec.mean),
        "std": json.dumps(spec.std),
        "image_size": str(spec.image_size),
        "fit": spec.augmentation.fit,
        "centre_fraction": str(spec.augmentation.centre_fraction if spec.augmentation.fit == "crop" else 1.0),
        "interpolation": spec.augmentation.interpolation,
        "input": "uint8 RGB images [batch, 3, height, width] from 0 to 255"
        if kind != "safetensors"
        else "float RGB images [batch, 3, height, width]: (pixel / 255 - mean) / std",
    }
    module = _exported(program, state.params, state.buffers)
    parts = _WRITERS[kind](module, samples[:2], facts)
    with durable.new_file(target) as partial:
        durable.write(partial, parts)
        with torch.no_grad():
            found = _READERS[kind](program, partial)(samples)
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ExportError(
                f"the exported network's logits differ from the run's by up to {difference:.3g} on {len(samples)} "
                f"images, so {shown(target)} was not written; try another format: {', '.join(FORMATS)}"
            )
    return len(samples), difference


def _about_labels(restored: Restored) -> dict[str, str]:
    """How the logits are to be read if images may have several labels."""
    if not restored.thresholds:
        return {}
    return {
        "thresholds": json.dumps(restored.thresholds),
        "output": "logits [batch, classes]; a class applies where sigmoid(logit) is at least its threshold",
    }


def _samples(images: Images) -> Tensor:
    pixels = []
    for position in np.linspace(0, len(images.val) - 1, min(COMPARED, len(images.val))).astype(int).tolist():
        try:
            pixels.append(val_pixels(images, position))
        except DataError:
            if not images.skip_bad_images:
                raise
    if not pixels:
        raise DataError(f"none of the {COMPARED} images tried in {shown(images.val.name)} can be read")
    # At least two, because torch.export would take a batch of one for the only possible size.
    return torch.stack(pixels if len(pixels) > 1 else pixels * 2)


def _exported(program: Program, params: Tensors, buffers: Tensors) -> Exported:
    module = Exported(program.module(params, buffers), program.spec.mean, program.spec.std)
    exported: Any = module.eval()  # since the annotations of torch 2.11 do not know `memory_format`
    contiguous: Exported = exported.to(memory_format=torch.contiguous_format)  # the layout that other programs expect
    return contiguous


def _to_safetensors(module: Exported, example: Tensor, facts: dict[str, str]) -> list[durable.Part]:
    tensors = {name: tensor.contiguous() for name, tensor in module.network.state_dict().items()}
    return tensorfile.parts(tensors, metadata=facts)


def _from_safetensors(program: Program, path: Path) -> Logits:
    params, buffers = program.initial_tensors()
    with open(path, "rb") as file:
        found = tensorfile.TensorFile(file)
        saved = {name: found.read(name) for name in found.signatures()}
    # A buffer that is not persistent is not in the file, and has the value that the network gives it.
    return _exported(
        program,
        {name: saved[name] for name in params},
        {name: saved.get(name, buffer) for name, buffer in buffers.items()},
    )


def _to_torch_export(module: Exported, example: Tensor, facts: dict[str, str]) -> list[durable.Part]:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}})
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f"{name}.txt": value for name, value in facts.items()})
    return [buffer.getvalue()]


def _from_torch_export(program: Program, path: Path) -> Logits:
    with open(path, "rb") as file:
        logits: Logits = torch.export.load(file).module()
    return logits


def _to_onnx(module: Exported, example: Tensor, facts: dict[str, str]) -> list[durable.Part]:
    _needed("onnx", "onnxscript", "onnxruntime")
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes={"images": {0: batch}},
        input_names=["images"],
        output_names=["logits"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for name, value in facts.items():
        proto.metadata_props.add(key=name, value=value)
    return [proto.SerializeToString()]


def _from_onnx(program: Program, path: Path) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _needed(*packages: str) -> None:
    import importlib.util

    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ExportError(f"`format=onnx` needs {', '.join(missing)}; install ftrain with `pip install '.[onnx]'`")


_WRITERS: dict[str, Callable[[Exported, Tensor, dict[str, str]], list[durable.Part]]] = {
    "safetensors": _to_safetensors,
    "onnx": _to_onnx,
    "torch-export": _to_torch_export,
}
_READERS: dict[str, Callable[[Program, Path], Logits]] = {
    "safetensors": _from_safetensors,
    "onnx": _from_onnx,
    "torch-export": _from_torch_export,
}
