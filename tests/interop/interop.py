"""Weights between Twinsight and PyTorch's homes, with the same numbers out.

    python interop.py PROGRAM [--work DIR] [--only NAME ...]

In: random weights in torchvision or timm -> a file -> `twinsight import` -> `twinsight embed` on 16 images, against the network's own
features on the same pixels. Out: `twinsight train --init` for a few steps on those images -> `twinsight export` in every form ->
`load_state_dict(strict=True)` (or `from_pretrained` without a missing or unexpected key) and ONNX Runtime, against `twinsight embed`.

Besides: shards of a Dinov2Model with gated layers, positions resampled as timm's `resample_abs_pos_embed` does, and pictures of other
than square form that go through the exported configurations' own preprocessing.

Needs torch, torchvision, timm, transformers, safetensors, onnxruntime, onnx, numpy and pillow. Prints a table, one line a check, and ends with
1 when the relative error of one is over its tolerance (1e-4; RESIZED for whole pictures).
"""
import argparse, json, os, pathlib, subprocess, sys, tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOLERANCE = 1e-4
# Whole pictures: Pillow and torchvision round to 8 bits after each of the two passes of a resize and round the longer side, where we resize
# the very part that is kept. The pictures' sides are such that the middle begins at a whole pixel (at a half one, image processors and
# timm round to different sides, which alone makes 1e-2). A wrong step is several times as far off, which is checked too.
RESIZED = 0.005
rows = []


def networks():
    import timm, torchvision

    def torchvision_net(name, cifar):
        def make():
            net = getattr(torchvision.models, name)()
            net.fc = torch.nn.Identity()
            if cifar:
                net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
            return net
        return make

    registers = dict(reg_tokens=4, no_embed_class=True, init_values=1e-5)
    return {
        # name: (our encoder, side, network)
        "resnet18": ("resnet18", 64, torchvision_net("resnet18", False)),
        "resnet18 (CIFAR stem)": ("resnet18", 32, torchvision_net("resnet18", True)),
        "resnet50": ("resnet50", 64, torchvision_net("resnet50", False)),
        "vit_tiny": ("vit_tiny", 32, lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0)),
        "vit_small, 4 registers": (
            "vit_small", 56, lambda: timm.create_model("vit_small_patch16_224", img_size=56, patch_size=14, num_classes=0, **registers)),
        "vit_tiny, SwiGLU": (
            "vit_tiny", 32, lambda: timm.create_model(
                "vit_giant_patch14_dinov2", img_size=32, patch_size=8, embed_dim=192, depth=12, num_heads=3, mlp_ratio=1024.5 / 192,
                num_classes=0)),
        "vit_small, 12 heads": (
            "vit_small", 32, lambda: timm.create_model("vit_small_patch16_224", img_size=32, patch_size=8, num_heads=12, num_classes=0)),
        "convnext_atto": ("convnext_atto", 64, lambda: timm.create_model("convnext_atto", num_classes=0)),
    }


def run(program, *args):
    done = subprocess.run([program, *map(str, args), "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{args}: exit code {done.returncode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def pictures(folder, side):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(side)
    for i in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
        noise = rng.normal(0, 12, (side, side, 3))
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i:02}.png")


def batch(folder, mean=MEAN, std=STD):
    pixels = np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))]).astype(np.float32) / 255
    return ((torch.from_numpy(pixels) - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).contiguous()


def randomise(net):
    """Random weights whose every part shows in the features: scales, shifts, statistics and factors too."""
    generator = torch.Generator().manual_seed(7)
    state = net.state_dict()
    for name, value in state.items():
        if not value.dtype.is_floating_point:
            continue
        draw = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(1 + 0.3 * draw.abs())
        elif name.endswith("gamma") or (value.dim() == 1 and name.endswith("weight")):
            value.copy_(1 + 0.1 * draw)
        elif value.dim() >= 2 and "token" not in name and "pos_embed" not in name:
            value.copy_(draw * (2 / value[0].numel()) ** 0.5 * 0.7)
        else:
            value.copy_(0.1 * draw)
    net.load_state_dict(state)
    return net.eval()


def error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want)) if got.shape == want.shape else float("inf")


def note(name, way, value, tolerance=TOLERANCE):
    rows.append((name, way, value, tolerance))
    print(f"| {name} | {way} | {value:.1e} |" + ("" if value <= tolerance else " **over the tolerance**"), flush=True)


def features(net, x):
    with torch.no_grad():
        return net(x).numpy()


def check(program, work, name, encoder, side, make):
    work.mkdir(parents=True)
    images = work / "images"
    pictures(images, side)
    net, x = randomise(make()), batch(images)
    want = features(net, x)
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    noise = {"module.projector.0.weight": torch.randn(8, 8), "epoch": 3}
    files = {
        "safetensors": lambda p: save_file(state, p),
        ".pth": lambda p: torch.save(state, p),
        ".pth of DINO": lambda p: torch.save({"student": {"module.backbone." + k: v * 0 for k, v in state.items()},
                                              "teacher": {"backbone." + k: v for k, v in state.items()}, "epoch": 3}, p),
        ".pth of MoCo": lambda p: torch.save({"state_dict": {"module.encoder_q." + k: v for k, v in state.items()} | noise,
                                              "arch": encoder}, p),
        ".ckpt of solo-learn": lambda p: torch.save({"state_dict": {"backbone." + k: v for k, v in state.items()}
                                                     | {"momentum_backbone." + k: v * 0 for k, v in state.items()} | noise}, p),
    }
    for way, write in files.items():
        path = work / ("in.safetensors" if way == "safetensors" else "in.pth")
        write(path)
        more = ("--heads", 12) if "12 heads" in name else ()
        run(program, "import", path, "--encoder", encoder, "--image-size", side, "--out", work / "imported.safetensors", "--force", *more)
        run(program, "embed", work / "imported.safetensors", "--data", images, "--out", work / "in.npy")
        note(name, f"{way} in", error(np.load(work / "in.npy"), want))

    trained = work / "run"
    run(program, "train", "--data", images, "--init", work / "imported.safetensors", "--method", "simclr", "--epochs", 2, "--batch", 8,
        "--image-size", side, "--out", trained, "--set", "schedule.lr=0.001", "--on-collapse", "warn")
    run(program, "embed", trained, "--data", images, "--out", work / "out.npy")
    want = np.load(work / "out.npy")
    norm = json.loads(json.dumps(run(program, "export", trained, "--format", "safetensors", "--out", work / "own") and
                                 json.load(open(work / "own" / "config.json"))["pretrained_cfg"]))
    x = batch(images, norm["mean"], norm["std"])
    moved = features(net, x)
    if error(moved, want) < 1e-6:
        sys.exit(f"{name}: training changed nothing")

    def strict(path):
        fresh = make()
        fresh.load_state_dict(load_file(path), strict=True)
        return features(fresh.eval(), x)

    note(name, "out, safetensors", error(strict(work / "own" / "model.safetensors"), want))
    for form in ("timm", "torchvision", "transformers", "onnx"):
        out = work / form
        done = subprocess.run([program, "export", trained, "--format", form, "--out", out], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"| {name} | out, {form} | refused: {done.stderr.strip()} |", flush=True)
            continue
        note(name, f"out, {form}", error(loaded(form, out, x, name), want))


def loaded(form, out, x, name):
    if form == "onnx":
        import onnx, onnxruntime
        onnx.checker.check_model(str(out / "model.onnx"), full_check=True)
        session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
        parts = [session.run(["features"], {"images": part.numpy()})[0] for part in (x[:5], x[5:6], x[6:])]
        return np.concatenate(parts)
    if form == "transformers":
        import transformers
        config = json.load(open(out / "config.json"))
        cls = getattr(transformers, config["architectures"][0])
        extra = dict(add_pooling_layer=False) if cls.__name__ == "ViTModel" else {}
        net, info = cls.from_pretrained(out, output_loading_info=True, **extra)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info.get(key):
                sys.exit(f"{name}: transformers: {key}: {info[key]}")
        with torch.no_grad():
            y = net.eval()(pixel_values=x)
        return (y.last_hidden_state[:, 0] if "hidden_size" in config else y.pooler_output.flatten(1)).numpy()
    # timm and torchvision: the lines of the model card themselves.
    card = (out / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('"model.safetensors"', repr(str(out / "model.safetensors")))
    names = {"torch": torch}
    exec(code, names)
    return features(names["model"].eval(), x)


def shards(program, work):
    """A Dinov2Model with gated layers, saved by transformers in several files, by `import` and as a folder."""
    import transformers

    work.mkdir(parents=True)
    pictures(work / "images", 56)
    config = transformers.Dinov2Config(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, image_size=56, patch_size=14,
                                       use_swiglu_ffn=True, layerscale_value=1.0)
    net = randomise(transformers.Dinov2Model(config))
    net.save_pretrained(work / "saved", max_shard_size="4MB")
    count = len(list((work / "saved").glob("*.safetensors")))
    if count < 3:
        sys.exit(f"transformers wrote {count} shards; expected several")
    with torch.no_grad():
        want = net(pixel_values=batch(work / "images")).last_hidden_state[:, 0].numpy()
    run(program, "import", work / "saved", "--encoder", "vit_tiny", "--out", work / "in.safetensors")
    for way, source in (("import of {} shards", work / "in.safetensors"), ("folder of {} shards", work / "saved")):
        run(program, "embed", source, "--data", work / "images", "--out", work / "in.npy")
        note("Dinov2Model, SwiGLU", way.format(count), error(np.load(work / "in.npy"), want))


def positions(program, work):
    """Positions for larger and smaller images than the file's, against timm's own resampling."""
    import timm

    work.mkdir(parents=True)
    make = lambda side: timm.create_model("vit_tiny_patch16_224", img_size=side, patch_size=8, num_classes=0)
    net = randomise(make(56))
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, work / "in.safetensors")
    # Up to 64 pixels, where evaluation leaves a picture of that size as it is.
    for side in (64, 40):
        pictures(work / f"images-{side}", side)
        grid = side // 8
        moved = timm.layers.resample_abs_pos_embed(state["pos_embed"], new_size=[grid, grid], num_prefix_tokens=1)
        other = make(side)
        other.load_state_dict(state | {"pos_embed": moved})
        out = work / f"at-{side}.safetensors"
        run(program, "import", work / "in.safetensors", "--encoder", "vit_tiny", "--image-size", side, "--out", out)
        run(program, "embed", out, "--data", work / f"images-{side}", "--out", work / "in.npy")
        note("vit_tiny", f"positions 7 × 7 as {grid} × {grid}", error(np.load(work / "in.npy"), features(other.eval(), batch(work / f"images-{side}"))))


def whole_pictures(program, work, name, encoder, make):
    """Pictures of 400 × 320 pixels at 224, by the preprocessing of the exported configurations."""
    import timm, transformers

    folder = work / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for i in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((400, 320), Image.BICUBIC)
        noise = rng.normal(0, 12, (320, 400, 3))
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i:02}.png")
    images = [Image.open(p).convert("RGB") for p in sorted(folder.glob("*.png"))]
    net = randomise(make())
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, work / "in.safetensors")
    run(program, "import", work / "in.safetensors", "--encoder", encoder, "--image-size", 224, "--out", work / "encoder.safetensors")
    run(program, "embed", work / "encoder.safetensors", "--data", folder, "--out", work / "in.npy")
    want = np.load(work / "in.npy")
    for form in ("safetensors", "timm", "onnx"):
        run(program, "export", work / "encoder.safetensors", "--format", form, "--out", work / form)
        said = json.load(open(work / form / "config.json"))["pretrained_cfg"]
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=said))
        note(name, f"pictures of 400 × 320 by {form}'s config", error(features(net, torch.stack([transform(i) for i in images])), want), RESIZED)
    run(program, "export", work / "encoder.safetensors", "--format", "transformers", "--out", work / "transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(work / "transformers")
    x = torch.as_tensor(np.asarray(processor(images, return_tensors="np")["pixel_values"]))
    note(name, "pictures of 400 × 320 by the image processor", error(features(net, x), want), RESIZED)
    # That the tolerance tells a wrong step: the whole picture, squeezed into the square, and the same crop by another filter.
    for what, change in (("no crop", dict(crop_pct=1.0)), ("squeezed", dict(crop_mode="squash", crop_pct=1.0))):
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=said | change))
        away = error(features(net, torch.stack([transform(i) for i in images])), want)
        print(f"| {name} | (for comparison: {what}) | {away:.1e} |", flush=True)
        if away < 4 * RESIZED:
            sys.exit(f"{name}: the tolerance {RESIZED} does not tell pictures with {what} ({away:.1e})")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("program")
    p.add_argument("--work")
    p.add_argument("--only", nargs="*")
    o = p.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(o.work or temporary).resolve()
        print("| encoder | way | relative error |\n| --- | --- | --- |")
        for name, (encoder, side, make) in networks().items():
            if not o.only or name in o.only:
                check(o.program, work / name.replace(" ", "-").replace(",", ""), name, encoder, side, make)
        if not o.only or "shards" in o.only:
            shards(o.program, work / "shards")
        if not o.only or "positions" in o.only:
            positions(o.program, work / "positions")
        if not o.only or "pictures" in o.only:
            import timm, torchvision

            def resnet():
                net = torchvision.models.resnet18()
                net.fc = torch.nn.Identity()
                return net

            whole_pictures(o.program, work / "pictures-resnet18", "resnet18", "resnet18", resnet)
            whole_pictures(o.program, work / "pictures-vit", "vit_tiny", "vit_tiny",
                           lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0))
    over = [row for row in rows if not row[2] <= row[3]]
    exact = [value for _, _, value, tolerance in rows if tolerance == TOLERANCE]
    if exact:
        print(f"{len(rows)} checks, {len(over)} over their tolerance; of the same pixels, the largest relative error {max(exact):.1e}")
    sys.exit(1 if over else 0)


main()
