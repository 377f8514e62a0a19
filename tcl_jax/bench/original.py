# standalone: the Python that has PyTorch runs this file, without this project.
"""The official PyTorch code, run for `python -m tcl_jax.bench --against` in a process of its own.

The user's own Python starts this file with the user's own checkout of the official code: nothing
of either is part of this project, and nothing here imports this project. A request is a line of
JSON on stdin with the name of a method of `Original` and its arguments; the answer is a line of
JSON on stdout, `{"ok": {...}}` or `{"error": text}`. `tcl_jax.bench.process` is the other end.

Nothing of the official code is replaced, but that the comparison of losses takes the masks' uniform
noise from the request, where the official code would draw it.
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
from typing import Any, Iterator  # noqa: UP035  (its Python may be old)

HINTS = {
    "mmcv": "version 1 is meant, and without its own operators it is enough: "
    "MMCV_WITH_OPS=0 pip install 'mmcv<2'",
    "pkg_resources": "pip install 'setuptools<70'",
}
LONGEST = 2000
"""Characters of an error that are shown."""
TERMS = {
    "tclf": "tclf_loss",
    "tcli": "tcli_loss",
    "area": "area_loss",
    "neg_area": "neg_area_loss",
    "tv_img": "tv_img_loss",
    "tv_mask": "tv_mask_loss",
}
"""Terms of the loss by their names here and in the official code."""


class Original:
    """The official model, and the requests that it answers.

    Args:
        path: the checkout.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: str, device: str) -> None:
        import torch
        import torch.distributed as dist

        if device == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("its PyTorch sees no CUDA device")
            torch.cuda.set_device(0)
        torch.backends.cudnn.benchmark = True  # as its main.py sets it
        self.torch, self.device, self.path = torch, device, path
        self.folder = tempfile.mkdtemp(prefix="tcl_original_")
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        # The official code expects a process group, of which this is the only process.
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
        self.weights: dict[str, Any] = {}
        self.model: Any = None
        self.call: Any = lambda: None
        self.requests: dict[str, Any] = {
            "hello": self.hello,
            "load": self.load,
            "compare_train": self.compare_train,
            "compare_masks": self.compare_masks,
            "prepare_train": self.prepare_train,
            "prepare_masks": self.prepare_masks,
            "run": self.run,
            "release": self.release,
        }

    def hello(self) -> dict[str, Any]:
        """Versions and the device."""
        torch = self.torch
        return {
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
        }

    def load(self, file: str, feature_layer: int, loss: Any, optimizer: Any) -> dict[str, Any]:
        """Reads the weights of both models: an .npz by official names under `clip.` and `tcl.`.

        `loss` has the weights tcl, area and tv; `optimizer` base_lr, weight_decay, eps, betas and
        clip_norm.
        """
        tensors = self.read(file, "cpu")
        clip = os.path.join(self.folder, "clip.pt")
        self.torch.save({n[5:]: t for n, t in tensors.items() if n.startswith("clip.")}, clip)
        learned = {n[4:]: t for n, t in tensors.items() if n.startswith("tcl.")}
        self.weights = {
            "feature_layer": feature_layer, "loss": loss, "optimizer": optimizer, "clip": clip,
            "learned": learned,
        }  # fmt: skip
        self.build()
        return {"parameters": sum(p.numel() for p in self.model.parameters())}

    def build(self) -> None:
        """Makes the official model anew, with the weights that were loaded."""
        from omegaconf import OmegaConf

        config = OmegaConf.load(os.path.join(self.path, "configs", "tcl.yml")).model
        loss, learned = self.weights["loss"], self.weights["learned"]
        config.clip_model, config.ie_freeze = self.weights["clip"], self.weights["feature_layer"]
        config.tcl_w, config.area_w, config.tv_w = loss["tcl"], loss["area"], loss["tv"]
        model = self.models.build_model(config)
        unknown = model.load_state_dict(learned, strict=False).unexpected_keys
        expected = [n for n, _ in model.named_parameters() if not n.startswith("clip_")]
        missing = [name for name in expected if name not in learned]
        if unknown or missing:
            raise RuntimeError(f"the weights do not fit it: missing {missing}, unknown {unknown}")
        self.model = model.to(self.device)

    # ----------------------------------------------------------------------------- float32 results

    def compare_train(self, file: str, phase: int) -> dict[str, float]:
        """Loss terms and gradient norm of a batch.

        `file` is an .npz with image [b, 3, H, W] normalised, tokens and uniform [b, h, w].
        """
        self.build()
        torch, arrays = self.torch, self.read(file)
        uniform = arrays["uniform"][:, None]
        self.model.set_train(decoder_only=phase == 0, config=None)
        drawn = torch.rand_like
        torch.rand_like = lambda like, **_: uniform.expand_as(like).to(like.dtype).clone()
        try:
            with self.without_tf32():
                losses = self.model(image=arrays["image"], text=arrays["tokens"])
                total, _ = self.utils.parse_losses(losses)
                total.backward()
        finally:
            torch.rand_like = drawn
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        terms = {ours: float(losses[theirs]) for ours, theirs in TERMS.items()}
        self.model.zero_grad(set_to_none=True)
        return {**terms, "total": float(total), "grad_norm": float(norm)}

    def compare_masks(
        self, file: str, pamr: bool, kp_weight: float, output: str
    ) -> dict[str, float]:
        """Writes masks [b, n, H, W] as .npy; `file` has image and texts [n, d]."""
        import numpy as np

        self.build()
        arrays = self.read(file)
        self.model.eval()
        with self.without_tf32():
            masks, _ = self.model.generate_masks(
                arrays["image"], arrays["texts"], apply_pamr=pamr, kp_w=kp_weight
            )
        np.save(output, masks.float().cpu().numpy())
        return {}

    # ---------------------------------------------------------------------------------------- time

    def prepare_train(
        self, file: str, phase: int, precision: str, compiled: bool, warm_up: int
    ) -> dict[str, float]:
        """Makes the training step that `run` repeats, and warms it up."""
        from omegaconf import OmegaConf

        self.build()
        torch, how = self.torch, self.weights["optimizer"]
        model, forward, arrays = self.variant(file, compiled, self.model)
        model.set_train(decoder_only=phase == 0, config=None)
        settings = {
            "optimizer": {"name": "adamw", "eps": how["eps"], "betas": how["betas"]},
            "base_lr": how["base_lr"],
            "weight_decay": how["weight_decay"],
        }
        optimizer = self.utils.build_optimizer(OmegaConf.create(settings), model)
        # As the official code scales the loss; only float16 needs it.
        old = not hasattr(torch.amp, "GradScaler")
        make = torch.cuda.amp.GradScaler if old else partial(torch.amp.GradScaler, self.device)
        scaler = make(enabled=precision == "float16")

        def step() -> None:
            optimizer.zero_grad()
            with self.autocast(precision):
                losses = forward(image=arrays["image"], text=arrays["tokens"])
            loss, _ = self.utils.parse_losses(losses)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), how["clip_norm"])
            scaler.step(optimizer)
            scaler.update()

        return self.warm_up(step, warm_up)

    def prepare_masks(
        self, file: str, pamr: bool, kp_weight: float, precision: str, compiled: bool, warm_up: int
    ) -> dict[str, float]:
        """Makes the mask generation that `run` repeats, and warms it up."""
        self.build()
        model, make, arrays = self.variant(file, compiled, self.model.generate_masks)
        model.eval()

        def masks() -> None:
            with self.torch.no_grad(), self.autocast(precision):
                make(arrays["image"], arrays["texts"], apply_pamr=pamr, kp_w=kp_weight)

        return self.warm_up(masks, warm_up)

    def run(self, calls: int) -> dict[str, float]:
        """Seconds that `calls` calls in a row take."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        self.wait()
        return {"seconds": time.perf_counter() - start}

    def release(self) -> dict[str, Any]:
        """Frees memory; returns the peak in bytes since the last release, None on a CPU."""
        torch = self.torch
        self.call, self.model = (lambda: None), None
        gc.collect()
        if self.device != "cuda":
            return {"peak_bytes": None}
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return {"peak_bytes": peak}

    # --------------------------------------------------------------------------------------- parts

    def read(self, file: str, device: str = "") -> dict[str, Any]:
        """Tensors of an .npz on the device."""
        import numpy as np

        with np.load(file) as arrays:
            tensors = {name: self.torch.from_numpy(arrays[name]) for name in arrays.files}
        if "tokens" in tensors:
            tensors["tokens"] = tensors["tokens"].long()
        return {name: tensor.to(device or self.device) for name, tensor in tensors.items()}

    def variant(self, file: str, compiled: bool, call: Any) -> Any:
        """The model, its `call` and the arrays: as published, or compiled in channels_last."""
        torch, model, arrays = self.torch, self.model, self.read(file)
        if not compiled:
            return model, call, arrays
        model.to(memory_format=torch.channels_last)
        arrays["image"] = arrays["image"].contiguous(memory_format=torch.channels_last)
        return model, torch.compile(call), arrays

    def autocast(self, precision: str) -> Any:
        """The context in which a precision is computed."""
        if precision == "float32":
            return contextlib.nullcontext()
        return self.torch.autocast(self.device, dtype=getattr(self.torch, precision))

    @contextlib.contextmanager
    def without_tf32(self) -> Iterator[None]:
        """Float32 in full."""
        backends = (self.torch.backends.cuda.matmul, self.torch.backends.cudnn)
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            backend.allow_tf32 = False
        try:
            yield
        finally:
            for backend, value in zip(backends, before):  # noqa: B905
                backend.allow_tf32 = value

    def warm_up(self, call: Any, calls: int) -> dict[str, float]:
        """Takes a function for `run`; returns the seconds of its first calls."""
        self.call = call
        return self.run(max(calls, 1))

    def wait(self) -> None:
        """Until the device has finished."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def describe(error: BaseException) -> dict[str, str]:
    """An answer that says what went wrong."""
    if isinstance(error, ImportError):
        name = (error.name or "").split(".")[0]
        what = f"the package {name} cannot be imported by {sys.executable} ({error})"
        hint = HINTS.get(name, f"pip install {name}" if name else "")
        return {"error": f"{what}; {hint or 'install it there'}"}
    return {"error": f"{type(error).__name__}: {str(error)[:LONGEST]}"}


def main() -> None:
    """Answers requests until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    flags = parser.parse_args()
    # The official code's packages have names that folders beside this file have, too.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != here]
    sys.path.insert(0, flags.path)
    # What it prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    original = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            original = original or Original(flags.path, flags.device)
            answer: dict[str, Any] = {"ok": original.requests[request.pop("do")](**request)}
        except Exception as error:
            traceback.print_exc()
            answer = describe(error)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
