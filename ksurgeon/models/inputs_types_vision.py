"""Inputs of model types that take pictures or videos and do not tell enough about them."""

from importlib import import_module
from typing import Any

import torch

from ksurgeon.models.inputs_example import TOKENS, Example, Make, ones

__all__ = ["VISION"]


def _pair_of_images(e: Example) -> dict[str, Any]:
    return {"pixel_values": e.random.normal(1, 2, *e.image_shape())}


def _seggpt(e: Example) -> dict[str, Any]:
    """A prompt and a picture, which the model puts one above the other."""
    channels, height, width = e.image_shape()
    names = ("pixel_values", "prompt_pixel_values", "prompt_masks")
    return {name: e.random.normal(1, channels, height // 2, width) for name in names}


def _tvp(e: Example) -> dict[str, Any]:
    side = e.config.max_img_size
    return {"pixel_values": e.random.normal(1, e.config.num_frames, 3, side, side)}


def _mllama(e: Example) -> dict[str, Any]:
    tiles = e.config.vision_config.max_num_tiles
    return {
        "pixel_values": e.random.normal(1, 1, tiles, *e.image_shape()),
        "aspect_ratio_ids": ones(1, 1),
        "aspect_ratio_mask": ones(1, 1, tiles),
        "cross_attention_mask": ones(1, TOKENS, 1, tiles),
    }


def _video_session(e: Example) -> dict[str, Any]:
    """Two frames, and a click on the first."""
    module = import_module(type(e.model).__module__)
    session = getattr(module, type(e.model).__name__.removesuffix("Model") + "InferenceSession")
    video = e.random.normal(2, *e.image_shape())
    found = session(
        video=video, video_height=video.shape[-2], video_width=video.shape[-1], dtype=e.random.dtype
    )
    if hasattr(found, "add_prompt"):
        found.add_prompt("a cat")
        prompt = next(iter(found.prompts))
        found.prompt_input_ids[prompt] = e.tokens(TOKENS)
        found.prompt_attention_masks[prompt] = ones(1, TOKENS)
    else:
        index = found.obj_id_to_idx(1)
        point = {
            "point_coords": torch.full((1, 1, 1, 2), 4.0, dtype=e.random.dtype),
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        }
        found.add_point_inputs(index, 0, point)
        found.obj_with_new_inputs = [1]
    return {"inference_session": found, "frame_idx": 0}


def _granite_docling(e: Example) -> dict[str, Any]:
    images = e.random.normal(1, 1, *e.image_shape())
    return {"pixel_values": images, "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}


def _minicpm(e: Example) -> dict[str, Any]:
    """Patches one beside the other."""
    vision = e.vision or e.config
    _, rows, columns = e.grid()
    return {"pixel_values": e.random.normal(1, 3, vision.patch_size, vision.patch_size * rows * columns)}


def _square_patches(e: Example) -> dict[str, Any]:
    vision = e.vision or e.config
    frames, rows, columns = e.grid()
    return {"pixel_values": e.random.normal(frames * rows * columns, 3, vision.patch_size, vision.patch_size)}


def _merged_patches(e: Example) -> dict[str, Any]:
    """Squares of patches that are merged, channels last."""
    vision = e.vision or e.config
    side = vision.patch_size * vision.spatial_merge_size
    frames, rows, columns = e.grid()
    return {"pixel_values": e.random.normal(frames * rows * columns, side, side, vision.num_channels)}


def _row_of_patches(e: Example) -> dict[str, Any]:
    width = e.config.num_channels * e.config.patch_size**2
    return {"pixel_values": e.random.normal(1, 4, width)}


def _rows_of_square_patches(e: Example) -> dict[str, Any]:
    return {"pixel_values": _square_patches(e)["pixel_values"][None]}


def _depth_pro(e: Example) -> dict[str, Any]:
    side = int(e.config.patch_size / min(e.config.scaled_images_ratios))
    return {"pixel_values": e.random.normal(1, 3, side, side)}


def _idefics(e: Example) -> dict[str, Any]:
    return {
        "pixel_values": e.random.normal(1, 1, *e.image_shape()),
        "image_attention_mask": ones(1, TOKENS, 1),
    }


_NAMES: tuple[tuple[Make, tuple[str, ...]], ...] = (
    (_seggpt, ("seggpt",)),
    (_tvp, ("tvp",)),
    (lambda e: {"input_ids": e.tokens()}, ("granite4_vision",)),  # features go to several layers
    (lambda e: {"input_ids": e.tokens()}, ("glm_image",)),  # pictures come with a grid of one to be made
    (lambda e: {"pixel_values": e.random.normal(1, 4, *e.image_shape())}, ("instructblipvideo",)),
    (_merged_patches, ("inkling2", "inkling2_loop", "inkling2_vision")),
    (_minicpm, ("minicpm_ocr", "minicpm_ocr_vision", "minicpmv4_6", "minicpmv4_6_vision")),
    (_minicpm, ("minicpmv4_7", "minicpmv4_7_vision")),
    (_square_patches, ("kimi_k25", "kimi_k25_vision", "paddleocr_vl")),
    (_rows_of_square_patches, ("paddleocr_vl_vision",)),
    (_row_of_patches, ("fuyu",)),
    (_granite_docling, ("granite_docling",)),
    (_idefics, ("idefics",)),
    (_mllama, ("mllama",)),
    (_depth_pro, ("depth_pro",)),
    (_pair_of_images, ("efficientloftr", "lightglue", "superglue")),
    (_video_session, ("edgetam_video", "sam2_video", "sam3_tracker_video", "sam3_video")),
)
VISION: dict[str, Make] = {name: make for make, names in _NAMES for name in names}
