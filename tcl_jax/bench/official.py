# standalone: the Python that has PyTorch runs this file, without this project.
"""The official PyTorch code, run for `python -m tcl_jax.bench --against` in a process of its own.

The user's own Python starts this file with the user's own checkout of the official code: nothing
of either is part of this project, and nothing here imports this project. A request is a line of
JSON on stdin with the name of a method of `OfficialModel` and its arguments; the answer is a line
of JSON on stdout, `{"ok": {...}}` or `{"error": text}`. `tcl_jax.bench.against` asks.

Nothing of the official code is replaced, but that the comparison of losses takes the masks' uniform
noise from the batch, where the official code would draw it.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from typing import Any, Callable  # noqa: UP035  (its Python may be old)
from unittest import mock

LONGEST = 2000
"""Characters of an error that are shown."""


class OfficialModel:
    """The official model, and the requests that it answers.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, path: str, device: str) -> None:
        import torch
        import torch.distributed as dist

        if device == "cuda":
            torch.cuda.set_device(0)
        torch.backends.cudnn.benchmark = True  # as its main.py sets it
        self.torch, self.device, self.path = torch, device, path
        self.folder = tempfile.mkdtemp(prefix="tcl_official_")
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
        self.call: Any = None
        requests = (self.load, self.prepare, self.compare, self.run, self.release)
        self.requests: dict[str, Any] = {request.__name__: request for request in requests}

    def load(self, file: str, feature_layer: int, loss: Any, optimizer: Any) -> dict[str, Any]:
        """Reads the weights of both models; returns versions and the device.

        `file` is an .npz by official names under `clip.` and `tcl.`; `loss` has the weights tcl,
        area and tv; `optimizer` base_lr, weight_decay, eps, betas and clip_norm.
        """
        torch, tensors = self.torch, self.read(file, "cpu")
        clip = os.path.join(self.folder, "clip.pt")
        torch.save({n[5:]: t for n, t in tensors.items() if n.startswith("clip.")}, clip)
        self.weights = {
            "feature_layer": feature_layer, "loss": loss, "optimizer": optimizer, "clip": clip,
            "learned": {n[4:]: t for n, t in tensors.items() if n.startswith("tcl.")},
        }  # fmt: skip
        return {
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
        }

    def prepare(
        self, kind: str, file: str, precision: str, compiled: bool, **case: Any
    ) -> dict[str, Any]:
        """Makes the model anew, and what `compare` and `run` call: a training step, or masks.

        Args:
            kind: "train", with phase 0 or 1; or "masks", with pamr and kp_weight.
            file: an .npz with image [b, 3, H, W], normalised; to train also tokens, and, unless it
                is to be drawn, uniform [b, h, w]; for masks texts [n, d].
            precision: "float32", or that of autocast.
            compiled: by torch.compile and in channels_last, or as published.
        """
        torch = self.torch
        self.release()
        self.model, arrays = self.build(), self.read(file)
        if compiled:
            self.model.to(memory_format=torch.channels_last)
            arrays["image"] = arrays["image"].contiguous(memory_format=torch.channels_last)
        optimise = torch.compile if compiled else lambda call: call
        make: Any = {"train": self.make_step, "masks": self.make_masks}[kind]
        self.call = make(arrays, precision, optimise, **case)
        return {}

    def compare(self, output: str) -> dict[str, Any]:
        """Writes the results of a call, in full float32, as an .npz."""
        import numpy as np

        self.torch.backends.cudnn.allow_tf32 = False
        results = self.call()
        self.torch.backends.cudnn.allow_tf32 = True
        np.savez(output, **{n: x.detach().float().cpu().numpy() for n, x in results.items()})
        return {}

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
        self.call = self.model = None
        gc.collect()
        if self.device != "cuda":
            return {"peak_bytes": None}
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return {"peak_bytes": peak}

    # --------------------------------------------------------------------------------------- parts

    def build(self) -> Any:
        """The official model with the weights that were loaded."""
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
        return model.to(self.device)

    def make_step(
        self, arrays: Any, precision: str, optimise: Any, phase: int
    ) -> Callable[[], dict[str, Any]]:
        """The training step; returns loss terms, their total and the gradient's norm."""
        from omegaconf import OmegaConf

        torch, model, how = self.torch, self.model, self.weights["optimizer"]
        model.set_train(decoder_only=phase == 0, config=None)
        settings = {
            "optimizer": {"name": "adamw", "eps": how["eps"], "betas": how["betas"]},
            "base_lr": how["base_lr"],
            "weight_decay": how["weight_decay"],
        }
        optimizer = self.utils.build_optimizer(OmegaConf.create(settings), model)
        forward = optimise(model)

        def noise(like: Any, **_: Any) -> Any:
            return arrays["uniform"][:, None].expand_as(like).to(like.dtype).clone()

        def step() -> dict[str, Any]:
            optimizer.zero_grad()
            given = "uniform" in arrays
            known = mock.patch.object(torch, "rand_like", noise) if given else nullcontext()
            with known, self.autocast(precision):
                losses = forward(image=arrays["image"], text=arrays["tokens"])
            loss, _ = self.utils.parse_losses(losses)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), how["clip_norm"])
            optimizer.step()
            terms = {name.replace("_loss", ""): term for name, term in losses.items()}
            return {**terms, "total": loss, "grad_norm": norm}

        return step

    def make_masks(
        self, arrays: Any, precision: str, optimise: Any, pamr: bool, kp_weight: float
    ) -> Callable[[], dict[str, Any]]:
        """The mask generation; returns masks [b, H, W, n]."""
        self.model.eval()
        make = optimise(self.model.generate_masks)

        def masks() -> dict[str, Any]:
            with self.torch.no_grad(), self.autocast(precision):
                found, _ = make(arrays["image"], arrays["texts"], apply_pamr=pamr, kp_w=kp_weight)
            return {"masks": found.permute(0, 2, 3, 1)}

        return masks

    def read(self, file: str, device: str = "") -> dict[str, Any]:
        """Tensors of an .npz on the device."""
        import numpy as np

        with np.load(file) as arrays:
            tensors = {name: self.torch.from_numpy(arrays[name]) for name in arrays.files}
        if "tokens" in tensors:
            tensors["tokens"] = tensors["tokens"].long()
        return {name: tensor.to(device or self.device) for name, tensor in tensors.items()}

    def autocast(self, precision: str) -> Any:
        """The context in which a precision is computed."""
        if precision == "float32":
            return nullcontext()
        return self.torch.autocast(self.device, dtype=getattr(self.torch, precision))

    def wait(self) -> None:
        """Until the device has finished."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()


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
    official = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            official = official or OfficialModel(flags.path, flags.device)
            answer = {"ok": official.requests[request.pop("do")](**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error)[:LONGEST]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
