"""ftrain on one NVIDIA GPU: the training step, ensembles under vmap, and the loop of `fit`.

    python benchmarks/gpu.py [steps|ensemble|loop] [--models resnet50,...] [--batches 256,...] [--trace FILE]
    python benchmarks/gpu.py --smoke --device cpu

Runs from a checkout, with torch, torchvision, attrs and typer, and with lightning, flax and optax where installed.
Each implementation runs in its own process. Each round runs them in turn, some steps of each after a few that do not
count, and synchronizes the device before and after; then the process releases its memory. A ratio is the median over
the rounds. The row of an implementation that fails shows the cause. --smoke runs everything in small sizes, which
measures nothing.

steps: on float32 images in memory, bfloat16 autocast, AdamW; cudnn.benchmark is on.
  hand        a hand-written loop: zero_grad, forward, backward, torch.optim.AdamW with its defaults
  timm        the same with torch.compile(model) and fused AdamW, which is what timm's script does
  lightning   the same network under Lightning's Trainer, bf16-mixed
  flax        the same network in flax.linen with optax.adamw, jitted, with a donated state, in jax's layout: resnet34
              and resnet50, defined below; convnext_tiny and vit_b_16 are not implemented in flax here
  ftrain      compile_step(train_step, donate=True)
  kept        the same with donate=False
Convolutional networks are tried contiguous and channels_last at the smallest batch; for larger batches each
implementation in torch uses the layout that was faster for it. Columns: milliseconds per step; images per second; the
speedup of ftrain; MFU, which is 3 x the FLOPs of a forward pass divided by the GPU's peak in dense bfloat16; the floor
as a fraction of the time, where the floor is the bytes that a step must move divided by the peak bandwidth; GB
allocated at the peak; seconds of the first call, with empty caches and in a new process with filled ones. The bytes are
a simple count: the outputs of convolutions, linear layers, norms, activations and attention, written and read once in
bfloat16; parameters, gradients and both moments, written and read once in float32. Targets: 1.15 x timm, and more than
1 x all others.

ensemble: one compiled step of 8 stacked states, against 8 calls of the compiled step, each with its own state; networks
of three convolutions, 32 px, batch 128 each, float32. Target: 4 x.

loop: `fit` over PNG files decoded into memory, from its second epoch on, from the end of an epoch's first step to the
end of its last, against its own compiled step on one batch. Target: 0.97 x. Then the first steps of one more epoch run
under torch's profiler, which counts the calls in which the loop's thread waits for the device. Target: 0, except to
read metrics, which happens twice a second.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

if importlib.util.find_spec("ftrain") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# What ftrain imports and nothing here calls: they annotate, read checkpoints and JPEG files, and name cache folders.
if missing := [
    name
    for name in ("jaxtyping", "psutil", "safetensors", "simplejpeg", "platformdirs")
    if importlib.util.find_spec(name) is None
]:

    def stand_in(name):
        if name.startswith("__"):  # which inspect asks of every module
            raise AttributeError(name)
        return dict  # can be subscripted, as annotations are: Float[Tensor, "B C"]

    for name in missing:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__getattr__ = stand_in

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import ftrain

PEAKS = {  # FLOP/s in dense bfloat16 with float32 sums, bytes/s of memory
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.04e12),
    "NVIDIA L4": (121e12, 0.3e12),
    "NVIDIA GeForce RTX 4090": (165e12, 1.008e12),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
COUNTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.ReLU, nn.GELU, nn.MultiheadAttention)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR")
UNCOUNTED = 3  # steps of a turn, after its first
MEMBERS = 8
STEP, READING = "step taken", "metrics read"  # marks in the trace
SMOKE = """--models small_cnn --batches 4 --layouts channels_last --size 32 --ensemble-batch 2 --rounds 1 --steps 1
 --backend aot_eager --loop-model shufflenet_v2_x0_5 --loop-batch 4 --images 24 --epochs 3 --traced 3"""


class Turns:
    """The steps that the parent asks for: yields once for each, and answers every line with the seconds of one."""

    def __init__(self, options, answers):
        self.cuda, self.answers = options.device == "cuda", answers
        self.wait = torch.cuda.synchronize if self.cuda else lambda: None
        self.peak = torch.cuda.max_memory_allocated if self.cuda else lambda: 0

    def answer(self, **values):
        print(json.dumps(values), file=self.answers, flush=True)

    def __iter__(self):
        first = None
        for line in sys.stdin:
            start = time.perf_counter()
            yield
            self.wait()
            first = first or time.perf_counter() - start
            for _ in range(UNCOUNTED):
                yield
            self.wait()
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            for _ in range(int(line)):
                yield
            self.wait()
            self.answer(seconds=(time.perf_counter() - start) / int(line), first=first, peak=self.peak())
            if self.cuda:
                torch.cuda.empty_cache()


def build(model, size):
    if model == "small_cnn":
        layers = []
        for width in (3, 32, 32):
            layers += [nn.Conv2d(width, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    import torchvision

    return torchvision.models.get_model(model, weights=None, **({"image_size": size} if "vit" in model else {}))


def parts(options, seed=0):
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    layout, shape = LAYOUTS[options.layout], (options.batch, 3, options.size, options.size)
    network = build(options.model, options.size).to(options.device, memory_format=layout)
    images = torch.randn(shape, device=options.device).to(memory_format=layout)
    return network, images, torch.randint(10, shape[:1], device=options.device)


def by_hand(options, turns, *, like_timm=False):
    network, images, labels = parts(options)
    optimizer = torch.optim.AdamW(network.parameters(), fused=like_timm or None)
    if like_timm:
        network = torch.compile(network, backend=options.backend)
    for _ in turns:
        optimizer.zero_grad()
        with torch.autocast(options.device, torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()


def by_lightning(options, turns):
    import lightning

    network, *batch = parts(options)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch, _):
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        max_epochs=1, accelerator=options.device, devices=1, precision="bf16-mixed", **dict.fromkeys(names, False)
    )
    # Lightning asks for a batch one step ahead, so that a turn holds as many steps, each one place earlier.
    trainer.fit(Module(), (batch for _ in turns))


def by_flax(options, turns):
    if options.model not in ("resnet34", "resnet50"):
        raise NotImplementedError(f"no {options.model} in flax here")
    import flax.linen as linen
    import jax
    import jax.numpy as jnp
    import optax

    if (jax.default_backend() == "gpu") != (options.device == "cuda"):
        raise RuntimeError(f"jax runs on the {jax.default_backend()}")
    bottleneck = options.model == "resnet50"

    def conv(x, width, side, stride=1):
        x = linen.Conv(width, (side, side), stride, padding=side // 2, use_bias=False, dtype=jnp.bfloat16)(x)
        return linen.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=jnp.bfloat16)(x)

    class Block(linen.Module):
        width: int
        stride: int

        @linen.compact
        def __call__(self, x):
            y = linen.relu(conv(x, self.width, *((1, 1) if bottleneck else (3, self.stride))))
            if bottleneck:
                y = linen.relu(conv(y, self.width, 3, self.stride))
            y = conv(y, 4 * self.width, 1) if bottleneck else conv(y, self.width, 3)
            return linen.relu(y + (x if x.shape == y.shape else conv(x, y.shape[-1], 1, self.stride)))

    class ResNet(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(conv(x, 64, 7, 2))
            x = linen.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
            for stage, blocks in enumerate((3, 4, 6, 3)):
                for block in range(blocks):
                    x = Block(64 * 2**stage, 2 if stage and not block else 1)(x)
            return linen.Dense(1000, dtype=jnp.bfloat16)(x.mean((1, 2))).astype(jnp.float32)

    network, optimizer = ResNet(), optax.adamw(1e-3, weight_decay=0.01)
    images = jax.random.normal(jax.random.key(0), (options.batch, options.size, options.size, 3))
    labels = jax.random.randint(jax.random.key(1), (options.batch,), 0, 10)
    variables = jax.jit(network.init)(jax.random.key(2), images)
    state = variables["params"], variables["batch_stats"], optimizer.init(variables["params"])
    del variables

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, images, labels):
        params, stats, moments = state

        def loss(params):
            tensors = {"params": params, "batch_stats": stats}
            logits, changed = network.apply(tensors, images, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), stats, moments

    turns.cuda = False  # not torch's
    turns.wait = lambda: jax.block_until_ready(state)
    turns.peak = lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    for _ in turns:
        state = step(state, images, labels)


def by_ftrain(options, turns, *, donate=True):
    network, *batch = parts(options)
    apply, params, buffers = ftrain.functionalize(network)
    optimizer = ftrain.adamw(1e-3)
    take = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer, precision=torch.bfloat16)
    take = ftrain.compile_step(take, donate=donate, backend=options.backend)
    state = ftrain.init_state(params, buffers, optimizer, seed=0)
    del network, params, buffers
    for _ in turns:
        state, _ = take(state, tuple(batch))


def ensemble(options, turns, *, stacked):
    optimizer, states, batches = ftrain.adamw(1e-3), [], []
    for seed in range(MEMBERS):
        network, *batch = parts(options, seed)
        apply, params, buffers = ftrain.functionalize(network)
        states.append(ftrain.init_state(params, buffers, optimizer, seed=seed))
        batches.append(tuple(batch))
    step = functools.partial(ftrain.train_step, apply=apply, optimizer=optimizer)
    if stacked:
        step = torch.vmap(step)
        states, batches = ([pytree.tree_map(lambda *leaves: torch.stack(leaves), *own)] for own in (states, batches))
    take = ftrain.compile_step(step, donate=True, backend=options.backend)
    for _ in turns:
        states = [take(state, batch)[0] for state, batch in zip(states, batches, strict=True)]


def resolved(options):
    from ftrain.run.resolve import resolve
    from ftrain.run.settings import Settings

    fields = {"data": "folder", "epochs": "epochs", "image_size": "size", "batch_size": "batch", "device": "device"}
    asked = {field: getattr(options, name) for field, name in fields.items()}
    compiled = options.device == "cuda"  # by itself it would not be, in so short a run
    return resolve(Settings(model=options.model, cache="ram", compile=compiled, drop_last=True, **asked))


def by_fit(options, turns):
    from ftrain.run import log, provenance
    from ftrain.run.events import Evaluating, StepTaken
    from ftrain.run.fit import fit

    spec, images = resolved(options)
    log.Log.read = torch.profiler.record_function(READING)(log.Log.read)
    profiler = torch.profiler.profile()  # of all that there is
    seconds, start = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for event in fit(provenance.new_run(spec, images, Path(folder) / "run", []), spec, images):
            if isinstance(event, Evaluating) and 1 < event.epoch < options.epochs:
                turns.wait()
                seconds.append((time.perf_counter() - start) / (images.pace.steps(1) - 1))
            if not isinstance(event, StepTaken):
                continue
            place = (event.step - 1) % images.pace.steps(1)
            if place == 0:
                turns.wait()
                start = time.perf_counter()
            if event.epoch == options.epochs and place <= options.traced:
                if place == 0:
                    profiler.start()
                with torch.profiler.record_function(STEP):
                    pass
                if place == options.traced:
                    profiler.stop()
    profiler.export_chrome_trace(options.trace)
    events = json.loads(Path(options.trace).read_text())["traceEvents"]
    turns.answer(seconds=statistics.median(seconds), **waits(events))


def by_bare_step(options, turns):
    from ftrain.data import load, on_device
    from ftrain.run import kernels
    from ftrain.run.build import build

    spec, images = resolved(options)
    program = build(spec)
    state = program.init()
    [(batch, _)] = on_device(load(images, images.train_jobs(0)[:1]), spec.torch_device)
    with kernels.using(spec):
        for _ in turns:
            state, _ = program.stage_at(0).train_step(state, batch)


def waits(events):
    """Of the events of a Chrome trace: the steps between the first mark and the last, the CUDA calls of their thread,
    those of them that wait for the device, and those that do so while metrics are read."""
    kinds = {kind: [event for event in events if event.get("cat") == kind] for kind in {e.get("cat") for e in events}}
    marks = [mark for mark in kinds["user_annotation"] if mark["name"] == STEP]
    reads = [mark for mark in kinds["user_annotation"] if mark["name"] == READING]
    start, end = min(mark["ts"] for mark in marks), max(mark["ts"] for mark in marks)
    calls = kinds.get("cuda_runtime", []) + kinds.get("cuda_driver", [])
    calls = [call for call in calls if call["tid"] == marks[0]["tid"] and start < call["ts"] < end]
    # A copy from or to memory that is not page-locked waits, whatever its call is named.
    pageable = {copy["args"]["correlation"] for copy in kinds.get("gpu_memcpy", []) if "Pageable" in copy["name"]}
    waiting = [
        call["ts"]
        for call in calls
        if "Synchronize" in call["name"] or call["name"] == "cudaMemcpy" or call["args"].get("correlation") in pageable
    ]
    reading = [when for when in waiting if any(read["ts"] <= when <= read["ts"] + read["dur"] for read in reads)]
    return {"steps": len(marks) - 1, "calls": len(calls), "waiting": len(waiting), "reading": len(reading)}


WAYS = {
    "hand": by_hand,
    "timm": functools.partial(by_hand, like_timm=True),
    "lightning": by_lightning,
    "flax": by_flax,
    "ftrain": by_ftrain,
    "kept": functools.partial(by_ftrain, donate=False),
    "one by one": functools.partial(ensemble, stacked=False),
    "vmapped": functools.partial(ensemble, stacked=True),
    "bare step": by_bare_step,
    "fit": by_fit,
}
COMPARED = ("hand", "timm", "lightning", "flax", "ftrain")
COMPILED = ("timm", "flax", "ftrain")
ONE_TURN = ("flax", "fit")  # jax holds its memory until the process ends; fit ends


def serve(options):
    """In its own process: for each line with a number, takes that many steps."""
    turns = Turns(options, os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # so that what libraries print is not read as an answer
    try:
        WAYS[options.way](options, turns)
    except ImportError as error:
        turns.answer(error=f"{error.name} is not installed")
    except Exception as error:
        full = "out of memory" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error)
        turns.answer(error="out of memory" if full else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


class Served:
    """A way in another process, which starts when it is first asked."""

    def __init__(self, options, cache, **changes):
        self.options = argparse.Namespace(**{**vars(options), **changes})
        self.environment = {
            **os.environ,
            **{name: f"{cache}/{name}" for name in CACHES},
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        }
        self.process = None

    def turn(self, steps):
        if self.process is None:
            command = [sys.executable, __file__, "--serve", json.dumps(vars(self.options))]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(command, env=self.environment, text=True, **pipes)
        with contextlib.suppress(BrokenPipeError):  # its exit code says more
            print(steps, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with exit code {self.process.wait()}"}
        if "error" in answer or self.options.way in ONE_TURN:
            self.end()
        if "error" in answer:
            raise ChildProcessError(answer["error"])
        return answer

    def end(self):
        if self.process is not None:
            self.process.communicate()
            self.process = None


def in_turn(served, options):
    """The answers of each way in every round; and why the others have none."""
    answers, failed = {way: [] for way in served}, {}
    for _ in range(options.rounds):
        for way in [way for way in served if way not in failed]:
            try:
                answers[way].append(served[way].turn(options.steps))
            except OSError as error:
                failed[way] = str(error)
    for process in served.values():
        process.end()
    return {way: found for way, found in answers.items() if way not in failed}, failed


def middle(answers, key="seconds"):
    return statistics.median(answer[key] for answer in answers)


def times_as_fast(answers, others):
    """How many times as fast the first is."""
    return statistics.median(other["seconds"] / own["seconds"] for own, other in zip(answers, others, strict=True))


def counts(model, size):
    """Of one image: the FLOPs of a forward pass, and the bytes of activations that a step moves; and the bytes of
    parameters, gradients and moments that it moves."""
    outputs = []
    with torch.device("meta"):
        network, images = build(model, size), torch.empty(2, 3, size, size)  # two, for BatchNorm over a single pixel
    for module in network.modules():
        if isinstance(module, COUNTED):
            module.register_forward_hook(lambda *call: outputs.append(pytree.tree_leaves(call[2])[0].numel()))
    with FlopCounterMode(display=False) as flops:
        network(images)
    params = sum(param.numel() for param in network.parameters())
    return flops.get_total_flops() / 2, sum(outputs) / 2 * 2 * 2, params * 4 * 4 * 2


def device_name(device):
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def percentage(amount, rate, seconds):
    return f"{100 * amount / rate / seconds:.0f} %" if rate else "?"


def steps_part(options):
    print("\nsteps        layout                ms  images/s   ftrain    MFU  floor     GB  first call")
    for model in options.models.split(","):
        only = ["contiguous"] if "vit" in model else options.layouts.split(",")
        layouts = {way: ["jax's"] if way == "flax" else only for way in COMPARED}
        for batch in sorted(int(number) for number in options.batches.split(",")):
            print(f"{model}, {options.size} px, batch {batch}", flush=True)
            with tempfile.TemporaryDirectory() as cache:
                layouts |= steps_rows(options, cache, layouts, counts(model, options.size), model=model, batch=batch)


def steps_rows(options, cache, layouts, counted, **case):
    """Prints a row for each implementation, and returns the fastest layout of each."""
    served, cold, failed = {}, {}, {}
    for way in COMPARED:
        found = {}
        for layout in layouts[way]:
            process = Served(options, f"{cache}/{way} {layout}", way=way, layout=layout, **case)
            try:
                answer = process.turn(options.steps)
                found[answer["seconds"]], cold[way, layout] = process, answer["first"]
            except OSError as error:
                failed[way] = str(error)
            if way in COMPILED:
                process.end()  # so that its next start is warm
        if found:
            served[way] = found.pop(min(found))
        for slower in found.values():
            slower.end()
    best = {way: process.options.layout for way, process in served.items()}
    if "ftrain" in served:
        served["kept"] = Served(options, f"{cache}/kept", way="kept", layout=best["ftrain"], **case)
    answers, late = in_turn(served, options)
    for way in (*COMPARED, "kept"):
        if way not in answers:
            print(f"  {way:<11}{late.get(way) or failed.get(way) or 'as ftrain'}", flush=True)
            continue
        seconds, peak = middle(answers[way]), middle(answers[way], "peak") / 1e9
        faster = f"{times_as_fast(answers['ftrain'], answers[way]):.2f} x" if "ftrain" in answers else "?"
        flops, per_image, per_step = counted
        flop_rate, bandwidth = PEAKS.get(device_name(options.device), (None, None))
        used = percentage(3 * flops * case["batch"], flop_rate, seconds)
        floor = percentage(per_image * case["batch"] + per_step, bandwidth, seconds)
        layout = served[way].options.layout
        row = f"  {way:<11}{layout:<15}{1e3 * seconds:9.1f}{case['batch'] / seconds:10.0f}{faster:>9}"
        row += f"{used:>7}{floor:>7}{f'{peak:.2f}' if peak else '?':>7}"
        if way in COMPILED:
            row += f"  {cold[way, layout]:.0f} s cold, {answers[way][0]['first']:.0f} s warm"
        print(row, flush=True)
    return {way: [layout] for way, layout in best.items()}


def ensemble_part(options):
    case = {"model": "small_cnn", "size": 32, "batch": options.ensemble_batch, "layout": "contiguous"}
    print(f"\nensemble: {MEMBERS} small networks, {case['size']} px, batch {case['batch']} each", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        compare("vmapped", "one by one", MEMBERS * case["batch"], options, cache, **case)


def compare(way, base, images, options, cache, **case):
    """Prints a row for each of two implementations, with the speedup of the first, and returns their answers."""
    served = {name: Served(options, cache, way=name, **case) for name in (base, way)}
    answers, failed = in_turn(served, options)
    for name in served:
        if name in failed:
            print(f"  {name:<11}{failed[name]}")
            continue
        seconds = middle(answers[name])
        ratio = f"   {times_as_fast(answers[way], answers[base]):.3f} x" if name == way and not failed else ""
        print(f"  {name:<11}{1e3 * seconds:9.2f} ms{images / seconds:10.0f} images/s{ratio}", flush=True)
    return answers


def write_images(folder, count, side):
    """Writes PNG files in ten classes: a few different images, repeated."""
    from PIL import Image

    pictures = []
    for _ in range(64):
        file, coarse = io.BytesIO(), torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
        pictures.append(file.getvalue())
    for split, number in (("train", count), ("val", min(count, 256))):
        for position in range(number):
            path = Path(folder, split, str(position % 10), f"{position}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures[position % 64])


def loop_part(options):
    case = {"model": options.loop_model, "batch": options.loop_batch}
    print(f"\nloop: {case['model']}, {options.size} px, batch {case['batch']}, {options.images} images", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder, options.images, options.size * 8 // 7)
        case |= {"folder": folder, "trace": os.path.abspath(options.trace or f"{folder}/trace.json")}
        answers = compare("fit", "bare step", case["batch"], options, folder, **case)
    if "fit" in answers:
        found = answers["fit"][-1]
        others = found["waiting"] - found["reading"]
        told = f"of {found['calls']} CUDA calls {others} wait for the device, and {found['reading']} to read metrics"
        print(f"  trace      {found['steps']} steps: {told if found['calls'] else 'no CUDA calls, so none that wait'}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=("all", "steps", "ensemble", "loop"), default="all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--trace", metavar="FILE", help="save the loop's trace here, for chrome://tracing")
    parser.add_argument("--models", default="resnet34,resnet50,convnext_tiny,vit_b_16")
    parser.add_argument("--batches", default="128,256,512,1024")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--loop-model", default="resnet34")
    numbers = {"size": 224, "rounds": 5, "steps": 10, "ensemble-batch": 128}
    numbers |= {"loop-batch": 256, "images": 12_800, "epochs": 4, "traced": 20}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    if sys.argv[1:2] == ["--serve"]:
        serve(argparse.Namespace(**json.loads(sys.argv[2])))
        return
    given = sys.argv[1:]
    options = parser.parse_args([*SMOKE.split(), *given] if "--smoke" in given else given)
    if options.device == "cuda" and not torch.cuda.is_available():
        found = f"torch {torch.__version__} finds none"
        parser.exit(2, f"expected an NVIDIA GPU, but {found}; run this where one is, or try --smoke --device cpu\n")
    versions = f"torch {torch.__version__}, torchvision {importlib.metadata.version('torchvision')}"
    print(f"{versions}, {device_name(options.device)}{', small sizes that measure nothing' if options.smoke else ''}")
    print(
        f"rounds: {options.rounds}, steps in a turn: {options.steps}, after {1 + UNCOUNTED} that do not count",
        flush=True,
    )
    for name, part in (("steps", steps_part), ("ensemble", ensemble_part), ("loop", loop_part)):
        if options.part in ("all", name):
            part(options)


if __name__ == "__main__":
    main()
