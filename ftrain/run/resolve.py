"""From settings as given to a run spec: what they leave open is decided by the data, the model and the device."""

from __future__ import annotations

import os
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt
import torch

from ftrain import models
from ftrain.data import cache
from ftrain.data.augment import default_centre_fraction
from ftrain.data.decode import oriented_size
from ftrain.data.images import Images
from ftrain.data.index import Index
from ftrain.data.labels import images_of_class
from ftrain.data.skipped import skipped_line
from ftrain.data.source import Source
from ftrain.errors import DataError, SettingsError, as_usage
from ftrain.parallel import Place
from ftrain.run import kernels
from ftrain.run.custom import Custom, own_module
from ftrain.run.locate import Located, locate, to_end
from ftrain.run.notes import about_training, about_validation, unused
from ftrain.run.recipe import recipe
from ftrain.run.settings import WITH_WARMUP, Settings
from ftrain.run.spec import RunSpec
from ftrain.run.task import with_task
from ftrain.text import listed, shown

MAX_DEFAULT_SIZE = 224  # pixels
MAX_DEFAULT_DISK_CACHE = 64e9  # bytes that are used without being asked for
DEFAULT_CROP_SCALE = 0.35
HEADERS = 256  # images whose headers are read before anything else


def resolve(
    settings: Settings,
    custom: Custom | None = None,
    sources: Located | tuple[Source, Source] | None = None,
    *,
    here: Place | None = None,
) -> tuple[RunSpec, Images]:
    """Decides what the settings leave open.

    Args:
      custom: the caller's own network, loss, metrics and augmentation.
      sources: what `locate` found, or other training and validation images in place of it.
      here: the place of this process among those of the run; by default the only one.

    Returns:
      The spec of the run, and its images as batches.

    Raises:
      SettingsError: if settings conflict with each other, with the model or with this machine.
      DataError: if the images cannot be used for training.
    """
    custom, here = custom or Custom(), here or Place()
    catalogued = custom.module is None and not models.is_own(settings.model)
    model = _model(settings.model, custom)
    if custom.module is not None and settings.weights:
        raise SettingsError(
            "`weights` are for a network that ftrain builds; load them into your own module before you pass it"
        )
    if not catalogued and (given := [name for name in ("dropout", "drop_path") if getattr(settings, name) is not None]):
        raise SettingsError(f"`{given[0]}` is for a network that ftrain builds by name; set it in your own network")
    prepared = models.Preprocessing()
    if catalogued:
        prepared = as_usage(models.preprocessing, model, settings.weights)
    device = resolve_device(settings.device)
    notes: list[str] = []
    if sources is None:
        sources = to_end(locate(settings))
    if isinstance(sources, Located):
        settings, notes = sources.settings, list(sources.notes)
        sources = sources.train, sources.val
    train, val = sources
    settings = with_task(settings, train, val)
    if line := skipped_line(train, val):
        notes.append(line)
    notes.extend(about_validation(train, val))
    unused_settings = unused(settings)
    network = _skeleton(model, custom, len(train.classes), settings.seed)
    chosen = recipe(settings, images=len(train), batch_norm=bool(models.batch_norms(network)))
    settings = attrs.evolve(settings, **attrs.asdict(chosen))
    if chosen.batch_size > len(train):
        raise SettingsError(
            f"`batch_size` is {chosen.batch_size}, but {shown(train.name)} has only {len(train)} images; use a batch "
            f"size of at most {len(train)}"
        )
    shards = settings.shards or here.world * settings.accumulate
    check_shards(settings, shards, chosen.batch_size, here.world)
    sizes = _check_some_images(train, settings)
    _check_some_images(val, settings)
    short_side = int(np.median(sizes.min(axis=1)))
    image_size = settings.image_size or _default_size(model if catalogued else None, short_side, prepared.image_size)
    if catalogued:
        as_usage(models.check_size, model, image_size)
    if chosen.head_epochs >= settings.epochs:
        raise SettingsError(
            f"`head_epochs` must be less than `epochs`; got {chosen.head_epochs} of {settings.epochs} epochs. To "
            "train the head alone, use `freeze=backbone`"
        )
    after_head = settings.epochs - (chosen.head_epochs if settings.freeze != "backbone" else 0)
    warmup_epochs = min(1.0, after_head / 10) if settings.warmup_epochs is None else settings.warmup_epochs
    if warmup_epochs >= after_head and settings.schedule in WITH_WARMUP:
        rest = f"the {after_head} after `head_epochs`" if chosen.head_epochs else f"{settings.epochs} epochs"
        raise SettingsError(f"`warmup_epochs` must be less than `epochs`; got {warmup_epochs:g} of {rest}")
    _check_uneven(settings, train, custom)
    notes.extend(about_training(attrs.evolve(settings, image_size=image_size), named=catalogued))
    notes.extend(unused_settings)
    if settings.deterministic:
        notes.append(kernels.cost_of_determinism(device))
    convolutions = models.convolutions_of(network)
    large_images = short_side > 1.15 * image_size
    crop_scale = settings.crop_scale or (DEFAULT_CROP_SCALE if large_images else 1.0)
    settings = attrs.evolve(
        settings,
        model=model,
        weights=_absolute_if_file(settings.weights),
        image_size=image_size,
        fit=settings.fit or prepared.fit,
        interpolation=settings.interpolation or prepared.interpolation,
        crop_fraction=settings.crop_fraction or default_centre_fraction(crop_scale, prepared.crop_fraction),
        crop_scale=crop_scale,
        mean=settings.mean or prepared.mean,
        std=settings.std or prepared.std,
        drop_last=bool(settings.drop_last),
        eval_batch_size=settings.eval_batch_size or chosen.batch_size,
        warmup_epochs=warmup_epochs,
        feature_cache=settings.feature_cache is not False,
        recompute_statistics=settings.recompute_statistics is not False,
        device=str(device),
        workers=_default_workers(here) if settings.workers is None else settings.workers,
        shards=shards,
        threads=kernels.default_threads(here) if settings.threads is None else settings.threads,
        precision=kernels.precision(device) if settings.precision == "auto" else settings.precision,
        memory_format=(
            kernels.memory_format(convolutions, device) if settings.memory_format == "auto" else settings.memory_format
        ),
    )
    spec = RunSpec.of(
        settings,
        classes=tuple(train.classes),
        class_counts=tuple(images_of_class(train.labels, len(train.classes))),
        train_examples=len(train),
        compile_because="it was asked for",
        notes=tuple(notes),
    )
    if settings.compile is None:
        compile, because = _pays_to_compile(spec, custom, convolutions)
        spec = attrs.evolve(
            spec,
            compile=compile,
            compile_because=because,
            recorded={**spec.recorded, "compile": compile},
            notes=(*spec.notes, f"the training step is {because}"),
        )
    images = spec.images(train, val)
    if settings.cache == "auto":
        kind = _cache_with_room(images, sizes, shared=here.world > 1)
        spec = attrs.evolve(spec, cache=kind, recorded={**spec.recorded, "cache": kind})
    return spec, images


def check_shards(settings: Settings, shards: int, batch_size: int, world: int) -> None:
    """Raises SettingsError if a batch cannot be cut into shards, or these processes cannot compute equally many."""
    if world & (world - 1):
        raise SettingsError(f"the number of processes must be a power of two; got {world}")
    if shards & (shards - 1) and (world > 1 or (settings.shards and shards != settings.accumulate)):
        name = "shards" if settings.shards else "accumulate"
        raise SettingsError(f"`{name}` must be a power of two; got {getattr(settings, name)}")
    if shards % world:
        raise SettingsError(f"the number of processes must divide `shards`, which is {shards}; got {world} processes")
    parts = shards if shards % settings.accumulate == 0 else shards * settings.accumulate
    if batch_size % parts:
        given = {"processes": world, "accumulate": settings.accumulate, "shards": settings.shards or 1}
        names = " and ".join(f"`{name}={value}`" for name, value in given.items() if value > 1)
        raise SettingsError(
            f"a batch must have equally many examples for each of its {parts} parts, which follow from {names}; got "
            f"`batch_size={batch_size}`"
        )
    if settings.eval_batch_size and settings.eval_batch_size % shards:
        raise SettingsError(
            f"`eval_batch_size` must be a multiple of `shards`, which is {shards}; got {settings.eval_batch_size}"
        )


def _pays_to_compile(spec: RunSpec, custom: Custom, convolutions: models.Convolutions) -> tuple[bool, str]:
    if spec.feature_cache and spec.freeze == "backbone" and not spec.varying and custom.augment is None:
        return False, "not compiled: only the head is trained, on features that do not change"
    pixels = spec.epochs * spec.train_examples * spec.image_size**2
    return kernels.pays_to_compile(convolutions, spec.torch_device, steps=spec.total_steps, pixels=pixels)


def _check_uneven(settings: Settings, train: Source, custom: Custom) -> None:
    """Raises SettingsError if what is asked for against uneven classes cannot be done."""
    given = [name for name in ("class_weights", "logit_adjustment") if getattr(settings, name) not in ("none", 0.0)]
    if given and settings.sampler == "balanced":
        raise SettingsError(
            f"`sampler=balanced` draws every class equally often already, so that `{given[0]}` would favour rare "
            "classes twice; leave one out"
        )
    if given and custom.loss is not None:
        raise SettingsError(f"`{given[0]}` changes ftrain's own losses; apply it inside your `loss` instead")
    if settings.logit_adjustment and settings.loss not in ("cross-entropy", "focal"):
        raise SettingsError(f"`logit_adjustment` needs a loss with a softmax; `loss={settings.loss}` has none")
    if given and len(empty := set(range(len(train.classes))) - set(train.labels.tolist())):
        names = listed(train.classes[label] for label in sorted(empty))
        raise SettingsError(f"`{given[0]}` needs training images of every class; there are none of {names}")


def resolve_device(name: str) -> torch.device:
    """The device of a setting.

    Raises:
      SettingsError: if there is no such device, or this machine does not have it.
    """
    Settings(device=name)  # raises if it is not the name of a device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"{count} CUDA device{'s' * (count > 1)}" if count else "no CUDA device"
            raise SettingsError(
                f"`device={name}` is not available: torch finds {found} on this machine; use `device=cpu` or "
                "`device=auto`"
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError(
            "`device=mps` is not available: torch finds no Apple GPU on this machine; use `device=cpu` or `device=auto`"
        )
    return device


def _check_some_images(source: Source, settings: Settings) -> npt.NDArray[np.int64]:
    """Looks for bad images where that is quick: empty files, and the headers of up to HEADERS images, evenly spread
    over the data. Returns their heights and widths, int64 [images, 2].

    Raises:
      DataError: if there is a bad image, unless bad images are skipped.
    """
    skip = settings.on_bad_image == "skip"
    if isinstance(source, Index) and not skip:
        empty = np.flatnonzero(source.sizes == 0)
        if len(empty):
            more = f" (and {len(empty) - 1} more such files)" if len(empty) > 1 else ""
            raise DataError(f"cannot read the image {shown(source.image_name(int(empty[0])))}: the file is empty{more}")
    sizes = []
    for position in np.unique(np.linspace(0, len(source) - 1, HEADERS).astype(int)).tolist():
        try:
            with source.open(position) as image:
                sizes.append(oriented_size(image))
        except DataError:
            if not skip:
                raise
    if not sizes:
        raise DataError(
            f"none of {min(HEADERS, len(source))} images can be read; the first is {shown(source.image_name(0))}"
        )
    return np.array(sizes)


def _model(name: str, custom: Custom) -> str:
    """The name of the model as config.json records it: as the catalogue spells it, or with the absolute path of a
    file."""
    if custom.module is not None:
        return name
    return models.absolute(name) if models.is_own(name) else as_usage(models.canonical, name)


def _skeleton(model: str, custom: Custom, classes: int, seed: int) -> torch.nn.Module:
    """The network, to look at its layers; one of the catalogue has no data."""
    if custom.module is not None:
        return custom.module
    if models.is_own(model):
        return own_module(model, classes=classes, seed=seed)
    return models.without_data(model, classes)


def _absolute_if_file(weights: str | None) -> str | None:
    return os.path.abspath(weights) if weights and os.path.isfile(weights) else weights


def _default_workers(here: Place) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    return min(8, max(1, cores // here.local_world))


def _cache_with_room(images: Images, sizes: npt.NDArray[np.int64], *, shared: bool) -> Literal["ram", "disk", "none"]:
    """ram, disk or none: the first with room for the decoded images, estimated from the sizes of some. Several
    processes share one on disk, which lies in memory as well once it has been read."""
    cached = np.array([images.train_cache_format.size(*size) for size in sizes.tolist()])
    needed = float(cached.prod(axis=1).mean()) * 3 * len(images.train) + 3 * images.image_size**2 * len(images.val)
    if not shared and needed < cache.free_shared_memory() / 4:
        return "ram"
    return "disk" if needed < min(cache.free_disk() / 2, MAX_DEFAULT_DISK_CACHE) else "none"


def _default_size(model: str | None, short_side: int, of_weights: int | None) -> int:
    """What the pretrained weights were trained on, if that is known and the images are no smaller; otherwise a multiple
    of 32 near the images' own size, at most 224. More for a model that needs more."""
    size = max(32, round(short_side / 32) * 32)
    if of_weights is None:
        size = min(size, MAX_DEFAULT_SIZE)
    else:
        size = min(size, of_weights) if short_side < of_weights else of_weights
    return size if model is None else models.next_size(model, size)
