"""Colours: of pages, and of labels, easily told apart and the same every time."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

PAPER, INK, FAINT = (255, 255, 255), (34, 36, 40), (120, 124, 132)
"""Colours of pages and of what is written on them."""

BACKGROUND = (0, 0, 0)
"""Colour of the background class in a label map."""

# Red, green and blue. Each colour is the one that is farthest in OKLab from black, white and those
# before it; the first 20 are of middle lightness and clearly coloured, the first 64 less strictly.
_COLORS = np.frombuffer(bytes.fromhex(
    "449df0d52e1e7ecb1bff77e3ff9d572c8c599f47cc2ee5ebb27d0fc27193c2b1ffd8d7773db6a34b67ee1af796"
    "aa80ee0683aac62f8c12ac28f9a0bb633e1d47358d7e0f56105b662a21dc7b5677bffd280363129a0901fd4592"
    "b1b17dd64efc740fca6e6623f36520aff7d38578b268c2fe4a5ea9a156428b2295f5c9f09b9dcd8da332d28f7c"
    "f3c2a362d292af2655dfb214a9e3feffe8105d395a68f20fc404be883ffeca59c381c7c35b30f0739872ef015b"
    "4d06b6fb6d78d280cba5569f0133050727544b0f1d52076401208e343434927b76fafab3f119bbba04fd6796ac"
    "536c6916426e344806c5b3c32b086c721b27fea3f6737ffaf7e1d40a47fd163facc65f1e7a5ec1808825b3fe9a"
    "844340b5d2ac33790f371848593db5abdc49da86146a448d4ab6683083d7ca555e3c220226add2f926f29c9c9c"
    "4c4c4c50567b114b4148f7cf2d928f9c3c7ef4464b5c0f3fa6c770617397e078fffe74b3aa52701fdd6bee5bc0"
    "9b0fbcb4c8f0667b560d694fad76be652297bc7e5dd694b50e60cad7b1932106bc037287f3be68b79859b7291b"
    "8041b57b4e18af63f184a9f7946a32b699ebb5b124ce1b6029a6805921078061f4fa8565728ad82729708a385e"
    "a91a924f953381bb8da182a486b2cb8030084b273afffd7d003b4a303052b06a6c37360c72267988e1872f279c"
    "90657625c0cd6d8785c5ded33855372a488dfee68585639ad99cfe9c1fecd8e8fa76605cd958a2eab8c6d6e33b"
    "7fd7ed3142cc018c1be571993f00849a166ad6a6dad1467c44734444356ba36c958bf662526bca8b1736d99e4d"
    "87be53fd9b8b61225e9cedad6fe1b94f54ca93a47b5884b58eebe07817ec674ef8e954e1df0ff19765c7fa90d4"
    "7472d7db6655457e838882586fa8aaff8516bb8e9ffdd2515c3334ded9acb4bda93cc96a71b223bda4a0737373"
    "ca73e4011a7134232b232c1d43412f33424f65007b5c5a471856ab8492f8968e7ac8c8c8b48bc1b7006e1f5f86"
    "177afb9cb9f45250007435454d622599914dd7f1b0914f5e695b95b93cdbe2158aec8a976ca2d1627f274dd2bc"
    "824d92"
), np.uint8).reshape(-1, 3)  # fmt: skip


def class_palette(names: int, background: bool) -> UInt8[np.ndarray, "labels 3"]:
    """A colour for every name, after `BACKGROUND` if there is that class.

    A name has the same colour with and without background, and however many follow it. There are
    256 different ones; beyond these they begin again.
    """
    colors = np.resize(_COLORS, (names, 3))
    return np.concatenate([np.array([BACKGROUND], np.uint8), colors]) if background else colors
