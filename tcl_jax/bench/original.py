# standalone: the Python of `--against` runs this file.
"""Runs the official PyTorch code for `python -m tcl_jax.bench --against`, in a process of its own.

The user's own Python starts this file, with the user's own checkout of the official code and
packages: nothing of either is part of this project, and nothing here imports this project. Requests
come as lines of JSON on stdin, and every one is answered by a line of JSON on what was stdout:
`{"ok": {...}}`, or `{"error": text}`. `tcl_jax.bench.process` is the other end.

Nothing of the official code is replaced. For the comparison of losses, and then alone, the uniform
noise of the masks is taken from the request rather than drawn.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from functools import partial
from typing import Any, Callable, Dict, Iterator, Tuple  # noqa: UP035  (the user's Python may be old)

Request = Dict[str, Any]  # noqa: UP006
Step = Callable[[], Any]

HINTS = {
    "mmcv": "version 1 is meant, and without its own operators it is enough: "
    "MMCV_WITH_OPS=0 pip install 'mmcv<2'",
    "pkg_resources": "pip install 'setuptools<70'",
}
LONGEST = 2000
"""Characters of an error that are told."""
TERMS = {
    "tclf": "tclf_loss",
    "tcli": "tcli_loss",
    "area": "area_loss",
    "neg_area": "neg_area_loss",
    "tv_img": "tv_img_loss",
    "tv_mask": "tv_mask_loss",
}
"""Names of the loss's terms here and in the official code."""


class Original:
    """The official model, and what is timed of it.

    Args:
        path: the checkout.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: str, device: str) -> None:
        import torch
        import torch.distributed as dist

        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("its PyTorch sees no CUDA device")
        if device == "cuda":
            torch.cuda.set_device(0)
        self.torch, self.device, self.path = torch, device, path
        torch.backends.cudnn.benchmark = True  # as its main.py has it
        self.folder = tempfile.mkdtemp(prefix="tcl_original_")
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        # The official code is written for several processes, of which this is the only one.
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method="file://" + os.path.join(self.folder, "rendezvous"),
            rank=0,
            world_size=1,
        )
        import models
        import us  # noqa: F401
        import utils

        self.models, self.utils = models, utils
        self.weights: Request = {}
        self.model: Any = None
        self.call: Step = lambda: None
        self.requests = {
            "hello": self.hello,
            "load": self.load,
            "compare_train": self.compare_train,
            "compare_masks": self.compare_masks,
            "prepare_train": self.prepare_train,
            "prepare_masks": self.prepare_masks,
            "run": self.run,
            "release": self.release,
        }

    def hello(self, request: Request) -> Request:
        """Versions and the device."""
        torch = self.torch
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        return {
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "device": name,
            "threads": torch.get_num_threads(),
        }

    def load(self, request: Request) -> Request:
        """Remembers the weights: a file of both models' tensors by their official names.

        `request`: file (.npz; CLIP's under `clip.`, TCL's under `tcl.`), tap_layer, loss (tcl,
        area, tv), optimizer (base_lr, weight_decay, eps, betas, clip_norm).
        """
        import numpy as np

        torch = self.torch
        with np.load(request["file"]) as arrays:
            tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        clip = {n[5:]: t for n, t in tensors.items() if n.startswith("clip.")}
        file = os.path.join(self.folder, "clip.pt")
        torch.save(clip, file)
        learned = {n[4:]: t for n, t in tensors.items() if n.startswith("tcl.")}
        self.weights = {**request, "clip": file, "learned": learned}
        self.build()
        return {"parameters": sum(p.numel() for p in self.model.parameters())}

    def build(self) -> None:
        """The official model with the weights, made anew."""
        from omegaconf import OmegaConf

        config = OmegaConf.load(os.path.join(self.path, "configs", "tcl.yml")).model
        loss = self.weights["loss"]
        config.clip_model = self.weights["clip"]
        config.ie_freeze = self.weights["tap_layer"]
        config.tcl_w, config.area_w, config.tv_w = loss["tcl"], loss["area"], loss["tv"]
        model = self.models.build_model(config)
        learned = self.weights["learned"]
        unknown = model.load_state_dict(learned, strict=False).unexpected_keys
        expected = [n for n, _ in model.named_parameters() if not n.startswith("clip_")]
        missing = [name for name in expected if name not in learned]
        if unknown or missing:
            raise RuntimeError(f"the weights do not fit it: missing {missing}, unknown {unknown}")
        self.model = model.to(self.device)

    # ------------------------------------------------------------------------------- the results

    def compare_train(self, request: Request) -> Request:
        """Float32 loss terms and gradient norm of a batch.

        `request`: file (.npz with image [b, 3, H, W] normalised, tokens, uniform [b, h, w]), phase.
        """
        torch = self.torch
        self.build()
        arrays = self.read(request["file"])
        uniform = arrays["uniform"][:, None]
        self.model.set_train(decoder_only=request["phase"] == 0, config=None)

        def given(like: Any, **_: Any) -> Any:
            return uniform.expand_as(like).to(like.dtype).clone()

        drawn, torch.rand_like = torch.rand_like, given
        try:
            with self.exact():
                losses = self.model(image=arrays["image"], text=arrays["tokens"])
                total, _ = self.utils.parse_losses(losses)
                total.backward()
        finally:
            torch.rand_like = drawn
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        terms = {ours: float(losses[theirs]) for ours, theirs in TERMS.items()}
        self.model.zero_grad(set_to_none=True)
        return {**terms, "total": float(total), "grad_norm": float(norm)}

    def compare_masks(self, request: Request) -> Request:
        """Float32 masks [b, n, H, W] into a file.

        `request`: file (.npz with image and texts [n, d]), pamr, kp_weight, output (.npy).
        """
        import numpy as np

        self.build()
        arrays = self.read(request["file"])
        self.model.eval()
        with self.exact():
            masks, _ = self.model.generate_masks(
                arrays["image"],
                arrays["texts"],
                apply_pamr=request["pamr"],
                kp_w=request["kp_weight"],
            )
        np.save(request["output"], masks.float().cpu().numpy())
        return {}

    # ------------------------------------------------------------------------------------- the time

    def prepare_train(self, request: Request) -> Request:
        """Makes the step that `run` repeats, and warms it up.

        `request`: file, phase, precision, compiled, warm_up.
        """
        torch, how = self.torch, self.weights["optimizer"]
        from omegaconf import OmegaConf

        self.build()
        model, forward, arrays = self.variant(request, self.model)
        model.set_train(decoder_only=request["phase"] == 0, config=None)
        settings = {
            "optimizer": {"name": "adamw", "eps": how["eps"], "betas": how["betas"]},
            "base_lr": how["base_lr"],
            "weight_decay": how["weight_decay"],
        }
        optimizer = self.utils.build_optimizer(OmegaConf.create(settings), model)
        # Scaled as the official code does; where it is not float16 this does nothing.
        old = not hasattr(torch.amp, "GradScaler")
        make = torch.cuda.amp.GradScaler if old else partial(torch.amp.GradScaler, self.device)
        scaler = make(enabled=request["precision"] == "float16")
        clip_norm = how["clip_norm"]

        def step() -> None:
            optimizer.zero_grad()
            with self.autocast(request["precision"]):
                losses = forward(image=arrays["image"], text=arrays["tokens"])
            loss, _ = self.utils.parse_losses(losses)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            scaler.step(optimizer)
            scaler.update()

        return self.warm_up(step, request["warm_up"])

    def prepare_masks(self, request: Request) -> Request:
        """Makes the mask making that `run` repeats, and warms it up.

        `request`: file, pamr, kp_weight, precision, compiled, warm_up.
        """
        torch = self.torch
        self.build()
        model, make, arrays = self.variant(request, self.model.generate_masks)
        model.eval()

        def masks() -> Any:
            with torch.no_grad(), self.autocast(request["precision"]):
                return make(
                    arrays["image"],
                    arrays["texts"],
                    apply_pamr=request["pamr"],
                    kp_w=request["kp_weight"],
                )

        return self.warm_up(masks, request["warm_up"])

    def run(self, request: Request) -> Request:
        """Seconds that `calls` calls in a row take."""
        self.wait()
        start = time.perf_counter()
        for _ in range(request["calls"]):
            self.call()
        self.wait()
        return {"seconds": time.perf_counter() - start}

    def release(self, request: Request) -> Request:
        """Gives memory back; the peak in bytes since it was given back before, None on a CPU."""
        torch = self.torch
        self.call, self.model = (lambda: None), None
        gc.collect()
        if self.device != "cuda":
            return {"peak_bytes": None}
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return {"peak_bytes": peak}

    # ------------------------------------------------------------------------------------ its parts

    def read(self, file: str) -> Request:
        """Tensors of an .npz on the device."""
        import numpy as np

        with np.load(file) as arrays:
            tensors = {name: self.torch.from_numpy(arrays[name]) for name in arrays.files}
        if "tokens" in tensors:
            tensors["tokens"] = tensors["tokens"].long()
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def variant(self, request: Request, call: Any) -> Tuple[Any, Any, Request]:  # noqa: UP006
        """The model, its `call` and the arrays; as published, or compiled in channels_last."""
        torch, model, arrays = self.torch, self.model, self.read(request["file"])
        if not request["compiled"]:
            return model, call, arrays
        model.to(memory_format=torch.channels_last)
        arrays["image"] = arrays["image"].contiguous(memory_format=torch.channels_last)
        return model, torch.compile(call), arrays

    def autocast(self, precision: str) -> Any:
        """The context that a precision is computed in."""
        if precision == "float32":
            return contextlib.nullcontext()
        return self.torch.autocast(self.device, dtype=getattr(self.torch, precision))

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Float32 in full, without TF32."""
        backends = (self.torch.backends.cuda.matmul, self.torch.backends.cudnn)
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            backend.allow_tf32 = False
        try:
            yield
        finally:
            for backend, value in zip(backends, before):  # noqa: B905
                backend.allow_tf32 = value

    def warm_up(self, call: Step, calls: int) -> Request:
        """Takes a function for `run` and calls it some times."""
        self.call = call
        self.wait()
        start = time.perf_counter()
        for _ in range(max(calls, 1)):
            self.call()
        self.wait()
        return {"seconds": time.perf_counter() - start}

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def describe(error: BaseException) -> Request:
    """An answer that says what went wrong."""
    if isinstance(error, ImportError):
        name = (error.name or "").split(".")[0]
        what = f"the package {name} cannot be imported by {sys.executable} ({error})"
        hint = HINTS.get(name, f"pip install {name}" if name else "")
        return {"error": f"{what}; {hint or 'install it there'}"}
    return {"error": f"{type(error).__name__}: {str(error)[:LONGEST]}"}


def serve(path: str, device: str, answers: Any) -> None:
    """Answers requests until stdin ends."""

    def answer(content: Request) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    original = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if original is None:
                original = Original(path, device)
            result = original.requests[request["do"]](request)
        except Exception as error:
            traceback.print_exc()
            answer(describe(error))
        else:
            answer({"ok": result})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    flags = parser.parse_args()
    # Packages of the official code have names that folders beside this file have, too.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != here]
    sys.path.insert(0, flags.path)
    # What it prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(flags.path, flags.device, answers)


if __name__ == "__main__":
    main()
