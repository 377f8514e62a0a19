"""Where published CLIPs are, and their hashes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class HubFile:
    """One version of a file on the Hugging Face hub.

    Attributes:
        repo: owner/name.
        revision: commit, so that everybody gets the same bytes; or a branch, where none is known.
        sha256: of the file; "" if it is not known.
        filename: of the weights.
        config: name of the file beside it that tells what the weights do not.
    """

    repo: str
    revision: str
    sha256: str
    filename: str = "open_clip_model.safetensors"
    config: str = "open_clip_config.json"

    @property
    def url(self) -> str:
        """Address of the weights, for a browser or curl."""
        return f"https://huggingface.co/{self.repo}/resolve/{self.revision}/{self.filename}"


CLIP_FILES = {
    "ViT-B/32": HubFile(
        "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    ),
    "ViT-B/16": HubFile(
        "timm/vit_base_patch16_clip_224.openai",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    ),
    "ViT-L/14": HubFile(
        "timm/vit_large_patch14_clip_224.openai",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    ),
    "ViT-L/14@336px": HubFile(
        "timm/vit_large_patch14_clip_336.openai",
        "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
        "fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",
    ),
}
"""OpenAI's weights as safetensors, in the repositories that OpenCLIP itself loads them from."""

OPENAI_SHA256 = {
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
"""Of OpenAI's own .pt files; their addresses contain them."""

LAION = HubFile(
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "7288da5a0d6f0b51c4a2b27c624837a9236d0112", ""
)
"""The ViT-B/16 that CLIP-DINOiser's head was trained on."""
