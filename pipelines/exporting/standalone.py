"""Predict with the model in this folder: `python predict.py IMAGE_OR_FOLDER... [--json] [--onnx]`.

Needs torch, numpy, Pillow and safetensors; with --onnx, onnxruntime instead of torch and safetensors. Every file of the
folder is compared with its SHA-256 before anything of it is used, and a file that differs is refused. From Python:

    model = Model.load("folder")
    for found in model.predict(["a.jpg", "b.jpg"]): print(found["answer"], found["top"])
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # a file beside this one, called as a library, must not stand in for it
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

SUMS, NEEDED = "SHA256SUMS", ("predict.py", "config.json", "model.py", "model.safetensors")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif",
)  # fmt: skip
FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "MPO", "ICO", "CUR", "ICNS", "DIB", "DDS",
    "FTEX", "BLP", "PCX", "DCX", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "XVTHUMB", "MSP", "IM", "FITS", "FLI", "GBR", "PIXAR",
    "TGA",
)  # fmt: skip
DARK, HALF_A_LEVEL, MOST_ELONGATED = 4096, 1 / 510, 256


class Refused(Exception):
    """Files that are not what was exported, or cannot be used."""


def sha256(path: Path) -> str:
    """Return the digest of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def check(folder: Path, expect: str | None = None) -> None:
    """Compare every file of the export with its digest.

    Raises:
        Refused: one is missing or differs, or the list of digests is not `expect`; lists all of them.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise Refused(f"{folder} has no {SUMS}: it is not an export, or not all of one. Copy the whole folder again.")
    if expect and sha256(sums) != expect:
        raise Refused(f"{sums} has the SHA-256 {sha256(sums)}, not {expect}: this is another export, or a changed one.")
    pairs = [line.split("  ", 1) for line in sums.read_text(encoding="utf-8").splitlines()]
    listed = {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and "/" not in pair[1]}
    wrong = [f"{name} is not listed in {SUMS}" for name in NEEDED if name not in listed]
    for name, digest in listed.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif sha256(folder / name) != digest:
            wrong.append(f"{name} is not what was exported: its SHA-256 is {sha256(folder / name)}, not {digest}")
    if wrong:
        raise Refused("refused, nothing was run:\n  " + "\n  ".join(wrong) + "\nCopy the whole folder again.")


def opened(image: Any, pixels: dict | None = None) -> Image.Image:
    """Return a path or a PIL image as an RGB picture; `pixels` says how more than 8 bits and transparency become RGB."""
    if not isinstance(image, Image.Image):
        if not Path(image).is_file():
            raise Refused("it is not a file")
        Image.init()
        formats = [form for form in FORMATS if form in Image.OPEN]
        image = Image.open(io.BytesIO(Path(image).read_bytes()), formats=formats)
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Refused(f"{image.width} x {image.height} pixels are too many to be decoded safely")
    return converted(image, pixels or {})


def converted(image: Image.Image, pixels: dict) -> Image.Image:
    """Return an RGB picture, scaled as the pictures were that the model was trained on."""
    bits, alpha = bits_of(image), pixels.get("alpha", "drop")
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(scaled(np.asarray(image), bits, pixels.get("range"))).convert("RGB")
    if alpha != "drop" and (image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info):
        ground = Image.new("RGBA", image.size, alpha)
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if isinstance(image.info.get("transparency"), bytes):
        image = image.copy()
        del image.info["transparency"]
    found = image.convert("RGB")
    if bits == 16:
        if pixels.get("range", [0, 65535]) != [0, 65535]:
            raise Refused("it holds 16-bit colour, of which only the upper 8 bits are decoded. Save it with 8 bits")
        if "range" not in pixels and 0 < max(high for _, high in found.getextrema()) < DARK >> 8:
            raise Refused("it holds 16-bit colour that is nearly black. Save it with 8 bits a channel")
    return found


def bits_of(image: Image.Image) -> int:
    """Return the bits of one value as the file holds them, 8 where it holds 8 or fewer."""
    tags = getattr(image, "tag_v2", None)
    sample = tags.get(258) if tags else None
    held = int(sample[0] if isinstance(sample, tuple) else sample or 0)
    if image.mode == "F":
        return 32
    if image.mode == "I":
        return 16 if held == 16 or image.format in ("PNG", "PPM") else 32
    if image.mode.startswith("I"):
        return 12 if held == 12 else 16
    tile = image.__dict__.get("tile") or [(None, None, None, "")]
    raw = tile[0][3]
    return 16 if held > 8 or ";16" in str(raw[0] if isinstance(raw, tuple) and raw else raw) else 8


def scaled(values: Any, bits: int, span: Any) -> Any:
    """Return (H, W) uint8 of values with more than 8 bits: by `span` (low, high), or by what the format holds."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Refused("it holds values that are NaN or infinite")
    low, high = values.min().item(), values.max().item()
    if span is None and values.dtype.kind == "f":
        if low < -HALF_A_LEVEL or high > 1 + HALF_A_LEVEL:
            raise Refused(f"its float values span {low:g} to {high:g}, not 0 to 1. Scale them to 0 to 1")
        span = (0.0, 1.0)
    if span is not None:
        stretched = (values.astype(np.float64) - span[0]) * (255 / (span[1] - span[0]))
        return np.floor(stretched.clip(0, 255) + 0.5).astype(np.uint8)
    if bits == 32 or low < 0:
        if low < 0 or high > 255:
            raise Refused(f"its {bits}-bit values span {low} to {high}, which says not what is black and white")
        return values.astype(np.uint8)
    if bits == 16 and 0 < high < DARK:
        raise Refused(f"its 16-bit values end at {high} of 65535: it would be nearly black")
    full = (1 << bits) - 1
    return ((values.astype(np.int64) * 255 + full // 2) // full).astype(np.uint8)


def resized(image: Image.Image, step: dict) -> Image.Image:
    """Return the picture scaled: to `size`, to a shorter side of `size`, or into `size` by one ratio for both sides."""
    grows = step["fit"] == "shorter" or step.get("longest", 1) < 1
    if grows and max(image.size) > MOST_ELONGATED * min(image.size):
        raise Refused(f"it is {image.width} x {image.height} pixels, too long to be resized by its shorter side")
    (width, height), size = image.size, step["size"]
    if step["fit"] == "shorter":
        longer = int(size * max(width, height) / min(width, height))
        wanted = (size, longer) if width <= height else (longer, size)
    elif step["fit"] == "exact":
        wanted = (size[1], size[0])
    else:
        ratios = (height / size[0], width / size[1])
        ratio = max(ratios) * step["longest"] + min(ratios) * (1.0 - step["longest"])
        wanted = (round(width / ratio), round(height / ratio))
    return image.resize(wanted, Image.Resampling[step["interpolation"].upper()]) if wanted != image.size else image


def cropped(image: Image.Image, step: dict) -> Image.Image:
    """Return the middle of the picture, on a ground of `fill` where it is smaller."""
    (width, height), (high, wide) = image.size, step["size"]
    if wide > width or high > height:
        ground = Image.new("RGB", (max(wide, width), max(high, height)), tuple(step["fill"]))
        ground.paste(image, (max(wide - width, 0) // 2, max(high - height, 0) // 2))
        image, (width, height) = ground, ground.size
    top, left = round((height - high) / 2.0), round((width - wide) / 2.0)
    return image.crop((left, top, left + wide, top + high))


def prepared(image: Image.Image, steps: list) -> Any:
    """Return a picture as (3, H, W) float32, as the backbone was given it when the features were made."""
    for step in steps:
        if step["step"] == "resize":
            image = resized(image, step)
        elif step["step"] == "center_crop":
            image = cropped(image, step)
        elif step["step"] == "normalise":
            values = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            mean, std = (np.float32(step[name]).reshape(3, 1, 1) for name in ("mean", "std"))
            image = (values - mean) / std
        else:
            raise Refused(f"config.json asks for the step {step['step']!r}, which this predict.py does not know.")
    return image


def ready(image: Any, pixels: dict, steps: list) -> Any:
    """Return a path or a PIL image as (3, H, W) float32.

    Raises:
        Refused: it cannot be read or prepared; names it.
    """
    try:
        return prepared(opened(image, pixels), steps)
    except Exception as error:  # on damaged bytes Pillow raises nearly everything there is
        name = str(image) if isinstance(image, (str, Path)) else "the image"
        raise Refused(f"cannot read {name}: {error}") from None


class Model:
    """The exported model."""

    def __init__(self, config: dict, run: Callable) -> None:
        self.config, self.run = config, run
        self.class_names, self.task = config["class_names"], config["task"]

    @classmethod
    def load(cls, folder: Any = HERE, *, device: str = "cpu", onnx: bool = False, expect: str | None = None) -> Model:
        """Check the folder and load its graph: by torch, or by onnxruntime."""
        folder = Path(folder)
        check(folder, expect)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return cls(config, _onnx_run(folder) if onnx else _torch_run(folder, device))

    def logits(self, images: Iterable, batch_size: int = 32) -> np.ndarray:
        """Return (N, C) float32 logits of paths or PIL images."""
        images, parts = list(images), []
        batch_size = self.config["batch"] or batch_size  # some graphs take one image at a time
        pixels = self.config.get("features", {}).get("data", {}).get("pixels", {})
        for start in range(0, len(images), batch_size):
            batch = [ready(image, pixels, self.config["preprocessing"]) for image in images[start : start + batch_size]]
            parts.append(self.run(np.stack(batch)))
        return np.concatenate(parts) if parts else np.zeros((0, len(self.class_names)), np.float32)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return what (N, C) logits mean for this task; values of a regression stay as they are."""
        values = np.asarray(logits, dtype=np.float64)
        if self.task == "classification":
            powers = np.exp(values - values.max(-1, keepdims=True))
            return powers / powers.sum(-1, keepdims=True)
        return np.exp(-np.logaddexp(0, -values)) if self.task == "multilabel" else values

    def predict(self, images: Iterable, topk: int = 5, batch_size: int = 32) -> list:
        """Return one entry an image: its answer, the classes that come first, and all logits."""
        images = list(images)
        logits = self.logits(images, batch_size)
        found = []
        for image, raw, values in zip(images, logits, self.probabilities(logits), strict=True):
            order = range(len(values)) if self.task == "regression" else np.argsort(-values, kind="stable")[:topk]
            top = {self.class_names[i]: float(values[i]) for i in order}
            name = str(image) if isinstance(image, (str, Path)) else "image"
            found.append({"image": name, "answer": self._answer(raw, values), "top": top, "logits": raw.tolist()})
        return found

    def _answer(self, raw: np.ndarray, values: np.ndarray) -> Any:
        if self.task == "classification":
            return self.class_names[int(raw.argmax())]
        if self.task == "multilabel":
            return "|".join(name for name, value in zip(self.class_names, values, strict=True) if value >= 0.5)
        return values.tolist() if len(values) > 1 else float(values[0])


def _torch_run(folder: Path, device: str) -> Callable:
    import torch
    from safetensors.torch import load_file

    program = {"__name__": "model"}
    exec(compile((folder / "model.py").read_text(encoding="utf-8"), str(folder / "model.py"), "exec"), program)
    held = load_file(folder / "model.safetensors", device=device)
    tensors = [held[name] for name in program["TENSORS"]]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return program["forward"](*tensors, torch.from_numpy(images).to(device))[0].float().cpu().numpy()

    return run


def _onnx_run(folder: Path) -> Callable:
    if not (folder / "model.onnx").is_file():
        raise Refused("this export has no model.onnx. Export the run again with --onnx.")
    try:
        import onnxruntime
    except ImportError:
        raise Refused("onnxruntime is not installed: pip install onnxruntime, or leave --onnx out.") from None
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def found_images(inputs: Iterable) -> list:
    """Return the image files of files and folders, folders by name."""
    absent = [str(place) for place in inputs if not Path(place).exists()]
    if absent:
        raise Refused(f"there is no {', '.join(absent)}.")
    images = []
    for place in map(Path, inputs):
        inside = (
            sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
        )
        images += inside
    if not images:
        raise Refused("there is no image to look at.")
    return images


def one_line(text: Any) -> str:
    """Return a text with its line breaks and other letters that cannot be printed written out, as \\n."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))


def main(arguments: list | None = None) -> int:
    """Print one line an image, or everything as JSON; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0].partition(":")[0])
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--topk", type=int, default=5, help="classes to name for each image")
    parser.add_argument("--batch-size", type=int, default=32, help="images a pass")
    parser.add_argument("--device", default="cpu", help="device of torch")
    parser.add_argument("--onnx", action="store_true", help="run model.onnx in onnxruntime instead")
    parser.add_argument("--expect", metavar="SHA256", help=f"digest that {SUMS} must have")
    parser.add_argument("--json", action="store_true", help="print JSON, logits too")
    given = parser.parse_args(arguments)
    try:
        if given.topk < 1 or given.batch_size < 1:
            raise Refused(f"--topk and --batch-size must be positive, got {given.topk} and {given.batch_size}.")
        model = Model.load(HERE, device=given.device, onnx=given.onnx, expect=given.expect)
        found = model.predict(found_images(given.inputs), given.topk, given.batch_size)
    except Refused as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for entry in found:
        words = (f"{one_line(name)} {value:.3f}" for name, value in entry["top"].items())
        print(one_line(entry["image"]), one_line(entry["answer"]), *words, sep="  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
