"""Measures data larger than memory allows for: decoding beside Pillow alone, then memory and waiting of a training.

    python tests/large_data.py FOLDER make 60000      # JPEGs of 256x256, drawn, each of them under ten names
    python tests/large_data.py FOLDER decode 20000    # the cache, and Pillow alone beside it
    python tests/large_data.py FOLDER train 20000     # a few updates of SimCLR, streamed

Remove the folder afterwards: 60,000 images take 12 GB decoded.
"""

import multiprocessing
import os
import resource
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

NAMES, CLASSES, SIDE = 10, 10, 256


def draw(folder, start, stop):
    """Smooth patterns under noise at quality 95: as many bytes for each pixel as photos of ImageNet have, 0.6."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(start)
    for number in range(start, stop):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        noise = rng.integers(-16, 17, (SIDE, SIDE, 3), dtype=np.int16)
        pixels = np.clip(np.asarray(coarse).astype(np.int16) + noise, 0, 255).astype(np.uint8)
        file = folder / f"n{number % CLASSES:08}" / f"{number * NAMES:07}.JPEG"
        Image.fromarray(pixels).save(file, quality=95)
        for more in range(1, NAMES):
            os.link(file, file.with_name(f"{number * NAMES + more:07}.JPEG"))


def make(root, count):
    for split in ("train", "val"):
        for label in range(CLASSES):
            (root / split / f"n{label:08}").mkdir(parents=True)
    draw(root / "val", 0, 20)
    parts = [(start, min(start + 100, count // NAMES)) for start in range(0, count // NAMES, 100)]
    with processes(2) as pool:
        for done in [pool.submit(draw, root / "train", *part) for part in parts]:
            done.result()


def processes(count):
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def alone(files, over, counts, place):
    """Pixels of files by Pillow and nothing else, again and again: how many, until it is over."""
    import numpy as np
    from PIL import Image

    while True:
        for file in files:
            with Image.open(file) as image:
                np.asarray(image.convert("RGB"))
            counts[place] += 1
            if over.is_set():
                return


def load(root, count):
    from bench.data.images import load_data
    from bench.datasets import imagenet
    from bench.spec import DataSpec

    spec = DataSpec(name="imagenet", path=str(part_of(root, count)), root=str(root / "cache"))
    return load_data(imagenet.Dataset(), spec)


def part_of(root, count):
    """A folder of the first so many images, as links."""
    part = root / f"first-{count}"
    if not part.exists():
        for file in sorted(root.glob("train/*/*"), key=lambda file: file.name)[:count]:
            into = part / file.relative_to(root)
            into.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, into)
        (part / "val").symlink_to(root / "val")
    return part


def decode(root, count):
    """Both at the same time, by two processes each, so that whatever else runs takes as much from one as the other."""
    from bench.data.cache import decoded
    from bench.datasets.folder import class_folders, listing_of

    files = [str(file) for file in sorted(part_of(root, count).glob("train/*/*"))]
    context = multiprocessing.get_context("spawn")
    counts, over = context.Array("q", 2, lock=False), context.Event()
    pillow = [context.Process(target=alone, args=(files[place::2], over, counts, place)) for place in range(2)]
    for process in pillow:
        process.start()
    while not all(counts):
        time.sleep(0.01)
    before, began = sum(counts), time.perf_counter()
    folder = root / f"first-{count}" / "train"
    decoded(listing_of("imagenet", folder, sorted(class_folders(folder))), 256, root / "cache" / "decoded", workers=2)
    took = time.perf_counter() - began
    done = sum(counts) - before
    over.set()
    for process in pillow:
        process.join()
    rates = f"the cache {count / took:.0f} a second, Pillow alone beside it {done / took:.0f}, {count / done:.1%}"
    print(f"{count} images in {took:.1f} s: {rates}", flush=True)


def train(root, count):
    import torch

    from bench.encoders.common.build import build_encoder
    from bench.spec import Budget
    from bench.training.train import train
    from methods import simclr

    torch.set_num_threads(1)
    images, _ = load(root, count)
    config = simclr.Config(batch=8, view_share=224 / 256, feature_width=512, hidden_width=512)
    method = simclr.Method(config).attach(build_encoder("torchvision:resnet18", 3, 512))
    anonymous, over = [0], threading.Event()

    def watch():
        while not over.wait(0.02):
            anonymous[0] = max(anonymous[0], status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = train(method, images, Budget.parse("8up"), 0, torch.device("cpu"))
    over.set()
    watcher.join()
    share = result.data_wait_seconds / result.train_seconds
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"{count} images: {result.updates} updates in {result.train_seconds:.1f} s, "
        f"waited {result.data_wait_seconds:.4f} s ({share:.3%}); peak VmHWM {status('VmHWM') / 1e9:.3f} GB, "
        f"RssAnon {anonymous[0] / 1e9:.3f} GB, of children {children / 1e9:.3f} GB"
    )


def status(name):
    """Bytes, from the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    {"make": make, "decode": decode, "train": train}[sys.argv[2]](Path(sys.argv[1]).resolve(), int(sys.argv[3]))
