"""From a request to the events of a run: a new run, or one that resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import attrs

from ftrain import models
from ftrain.data.images import Images
from ftrain.data.source import Preparing, Source
from ftrain.errors import DataError, FtrainError, SettingsError, as_usage
from ftrain.parallel import Place, end_process, joined, place
from ftrain.run import folder as run_folder
from ftrain.run import provenance
from ftrain.run.custom import Custom
from ftrain.run.events import Damaged, Event, Opened, Stopped
from ftrain.run.fit import fit
from ftrain.run.folder import RunFolder
from ftrain.run.locate import Located, locate
from ftrain.run.reopen import check_model
from ftrain.run.resolve import resolve, resolve_device
from ftrain.run.settings import LOCATIONS, SPLITS, Settings, merge
from ftrain.run.spec import RunSpec, seconds
from ftrain.text import shown

AUTO = "auto"
WITHOUT_SOURCES = (*LOCATIONS, "val_fraction")  # settings about images that ftrain finds


@attrs.frozen(kw_only=True)
class Request:
    """What a user asks for.

    Attributes:
      asked: the settings that were given, by name.
      custom: the caller's own network, loss, metrics and augmentation.
      sources: training and validation images, if they are not located by settings.
      resume: the folder of the run to resume; "auto" to start the run in `out`, to resume it, or to find it complete;
        "" for a new run.
      override: whether to resume although the result changes.
      command: how the run was started, for config.json.
    """

    asked: Mapping[str, Any]
    custom: Custom = attrs.field(factory=Custom)
    sources: tuple[Source, Source] | None = None
    resume: str = ""
    override: bool = False
    command: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.resume and self.resume != AUTO and "out" in self.asked:
            raise SettingsError("`out` is for a new run; it cannot be given with `resume`")
        if self.sources is not None and (given := [name for name in WITHOUT_SOURCES if name in self.asked]):
            raise SettingsError(f"give either a pair of images as `data`, or `{given[0]}`; got both")
        if {"shards", "accumulate"} <= self.asked.keys():
            raise SettingsError("`accumulate` sets the number of `shards`; give one of them")
        if self.override and not self.resume:
            raise SettingsError("`override=True` is for a run that resumes; give it with `resume=RUN`")


def launch(
    request: Request,
    *,
    stop: Callable[[], bool] = lambda: False,
    end: Callable[[BaseException], NoReturn] = end_process,
) -> Generator[Event]:
    """Starts or resumes a run, and trains it to its end; arguments and errors as for `ftrain.events`.

    Args:
      end: of a process among several, when another one has failed and its main thread cannot be told.
    """
    asked = Settings(**merge(_recorded(request), request.asked))
    device = resolve_device(asked.device)
    if device.index is not None and place().world > 1:
        raise SettingsError(f"`device={device}` is for one process; use `device=cuda`, and each has its own")
    with joined(timeout=seconds(asked.timeout), device=device.type, end=end) as processes:
        folder = processes.from_first(folder_of(request))
        with run_folder.lock(folder) if processes.is_first else nullcontext():
            run, spec, images = yield from processes.first_then_all(
                lambda: _opened(folder, request, stop, processes.place)
            )
            here = run.config["data"]
            run, spec = processes.from_first((run, spec))
            _check_same_images(here, run, processes.place)
            images = spec.images(images.train, images.val)
            yield Opened(run, spec)
            for event in fit(run, spec, images, request.custom, stop=stop, processes=processes):
                if processes.is_first or isinstance(event, Stopped):  # one process tells what happens
                    yield event


def _opened(
    folder: Path, request: Request, stop: Callable[[], bool], here: Place
) -> Generator[Event, None, tuple[RunFolder, RunSpec, Images]]:
    """The run, new or resumed, before anything is written."""
    if not request.resume or (request.resume == AUTO and not run_folder.is_started(folder)):
        return (yield from _new(folder, request, stop, here))
    before = run_folder.read(folder)
    if before.damage:
        yield Damaged(before.damage)
    return (yield from _resumed(before, request, stop, here))


def _check_same_images(here: Mapping[str, Any], run: RunFolder, place: Place) -> None:
    """Raises DataError if this process sees other images than the first one."""
    for name, what in SPLITS.items():
        if here[name]["fingerprint"] != run.config["data"][name]["fingerprint"]:
            raise DataError(
                f"process {place.rank} sees other {what} images than process 0, in {shown(here[name]['from'])}; every "
                "machine of the run needs the same images"
            )


def folder_of(request: Request) -> Path:
    """The folder of the run.

    Raises:
      SettingsError: if there is no run to resume in it.
    """
    if request.resume and request.resume != AUTO:
        if not run_folder.is_started(Path(request.resume)):
            raise SettingsError(
                f"`resume` must be the folder of a run, or auto; there is no run in {shown(request.resume)}"
            )
        return Path(request.resume)
    settings = Settings(**request.asked)
    if settings.out:
        return Path(settings.out)
    return Path("runs") / _model_folder(settings, request.custom) / (request.resume or time.strftime("%Y%m%d-%H%M%S"))


def shards_of(request: Request) -> int | None:
    """The number of logical shards of the run that a request resumes; None for a new run, or if it cannot be read."""
    return _recorded(request).get("shards")


def _recorded(request: Request) -> dict[str, Any]:
    """The settings of the run that a request resumes; none for a new run, or if they cannot be read."""
    if not request.resume or (request.resume == AUTO and request.override):
        return {}
    try:
        return attrs.asdict(run_folder.read(folder_of(request)).settings, recurse=False)
    except FtrainError:
        return {}


def _model_folder(settings: Settings, custom: Custom) -> str:
    if custom.module is not None:
        return type(custom.module).__name__.lower()
    if models.is_own(settings.model):
        return settings.model.rpartition(":")[2]
    return as_usage(models.canonical, settings.model)


def _new(
    folder: Path, request: Request, stop: Callable[[], bool], here: Place
) -> Generator[Event, None, tuple[RunFolder, RunSpec, Images]]:
    run_folder.check_free(folder)
    settings = Settings(**request.asked)
    sources = request.sources or (yield from _interruptible(locate(settings), stop))
    spec, images = resolve(settings, request.custom, sources, here=here)
    run = provenance.new_run(
        spec, images, folder, request.command, custom=request.custom, asked=request.asked, processes=here.world
    )
    return run, spec, images


def _interruptible(
    work: Generator[Preparing, None, Located], stop: Callable[[], bool]
) -> Generator[Event, None, Located]:
    """The progress and the result of work before a run starts, when nothing has to be saved."""
    with closing(work):
        while True:
            if stop():
                raise KeyboardInterrupt("stopped before the run started")
            try:
                yield next(work)
            except StopIteration as end:
                located: Located = end.value
                return located


def _resumed(
    run: RunFolder, request: Request, stop: Callable[[], bool], here: Place
) -> Generator[Event, None, tuple[RunFolder, RunSpec, Images]]:
    auto = request.resume == AUTO
    # The settings of the run apply where the request names none; but with `auto` and `override` the request is
    # complete.
    before = {} if auto and request.override else attrs.asdict(run.settings, recurse=False)
    settings = Settings(**merge(before, request.asked))
    check_model(run, request.custom.module or request.asked.get("model"))
    if request.sources is None and before and not any(getattr(settings, name) for name in LOCATIONS):
        raise SettingsError(
            f"the images of {shown(run.path)} were passed from Python; pass the same images as `data` to ftrain.fit"
        )
    sources = request.sources or (yield from _interruptible(locate(settings, run.split), stop))
    spec, images = resolve(settings, request.custom, sources, here=here)
    resumed = provenance.resumed_run(
        run,
        spec,
        images,
        request.command,
        custom=request.custom,
        asked=request.asked,
        asked_in_full=auto,
        override=request.override,
        processes=here.world,
    )
    return resumed, spec, images
