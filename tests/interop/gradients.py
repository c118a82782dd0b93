"""Writes tests/fixtures/gradients/*.safetensors: gradients of ResNets by PyTorch in double precision, and says how far PyTorch in
single precision is from itself.

    python tests/interop/gradients.py

Needs torch, torchvision and safetensors. The tests of crates/encoders compare with the files; they are written again only when a case is
added.

In training mode the gradient of a ReLU network jumps where a value's sign turns on its last digits, and batch norm over a few images
magnifies such digits: two correct programs differ by per cents then, as the printed table shows of PyTorch and itself. In the files every
batch norm's bias is 8 more in even channels and 8 less in odd ones, so that each ReLU's sign is settled with a wide margin, half of
them open: what is left of a difference is a program's own.

A file has the features and, of every parameter, ENTRIES entries of its gradient (all of a smaller one) from all over it, its
norm, and its products with PROBES tensors of given numbers that repeat after PERIOD: what is wrong elsewhere shows in these.
Gradients that are nothing but rounding, such as those of a bias that a following batch norm takes away, are left out.
"""
import json
import math
import pathlib
import zlib

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file

ENTRIES, PROBES, PERIOD, STRIDE, SHIFT, SEED, IMAGES = 64, 4, 8191, 2654435761, 8.0, 0, 8
CASES = {"resnet18_cifar": ("resnet18", True, 32), "resnet18": ("resnet18", False, 64), "resnet50": ("resnet50", False, 64)}


def procedural(name, shape):
    """The weights that tests/support makes of a name and a shape (seed 0)."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        h = (np.arange(1, n + 1, dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())).astype(np.uint32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h ^= h >> np.uint32(shift)
            h *= np.uint32(factor)
    u = h.astype(np.float64) / 2.0**32 * 2 - 1
    if name.endswith("running_var"):
        v = 1 + 0.5 * np.abs(u)
    elif name.endswith("running_mean"):
        v = 0.1 * u
    elif len(shape) <= 1:
        v = 1 + 0.1 * u if name.endswith("weight") else 0.1 * u
    else:
        v = u * math.sqrt(3.0 / np.prod(shape[1:]))
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def network(name, cifar, shift):
    net = getattr(torchvision.models, name)()
    net.fc = torch.nn.Identity()
    if cifar:
        net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    state = net.state_dict()
    for key, value in state.items():
        if value.dtype.is_floating_point:
            state[key] = procedural(key, tuple(value.shape))
            if value.dim() == 1 and key.endswith("bias"):
                state[key] += torch.where(torch.arange(value.numel()) % 2 == 0, shift, -shift)
    net.load_state_dict(state)
    return net.train()


def gradients(case, dtype, shift, images, planes=True):
    """The features and every parameter's gradient, of sum(features * probe)."""
    name, cifar, size = CASES[case]
    shape = (images, 3, size, size)
    net = network(name, cifar, shift).to(dtype)
    # Uniform with unit variance and mean zero.
    x = (procedural("images", shape) * np.float32(math.sqrt(3 * size * size))).to(dtype)
    if not planes:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    margins = []
    # The ReLUs work in place: what they are given is looked at before.
    for module in net.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(lambda _, given: margins.append(float(given[0].detach().abs().min())))
    y = net(x)
    (y * procedural("probe", tuple(y.shape)).to(dtype)).sum().backward()
    return y.detach().double(), {k: p.grad.double() for k, p in net.named_parameters()}, min(margins)


def some(g):
    """Entries from all over a gradient: STRIDE is a prime longer than any, the golden ratio's of 2^32."""
    flat = g.flatten()
    return flat if flat.numel() <= ENTRIES else flat[torch.arange(ENTRIES) * STRIDE % flat.numel()]


def products(key, g):
    """A gradient's norm, and its products with given numbers, which repeat after PERIOD."""
    flat = g.flatten()
    times = -(-flat.numel() // PERIOD)
    probes = [procedural(f"{key}.{i}.mean", (PERIOD,)).double().repeat(times)[: flat.numel()] for i in range(PROBES)]
    return torch.stack([flat.norm(), *(flat @ p for p in probes)])


def kept(exact):
    """The gradients that are more than rounding."""
    top = max(float(g.norm()) for g in exact.values())
    return {k: g for k, g in exact.items() if float(g.norm()) > 1e-6 * top}


def apart(a, b, of=lambda g: g):
    """The largest relative distance of a gradient, over parameters that have one."""
    return max(float((of(a[k]) - of(g)).norm() / of(g).norm()) for k, g in kept(b).items())


def main():
    folder = pathlib.Path(__file__).parents[1] / "fixtures/gradients"
    folder.mkdir(exist_ok=True)
    for case, (name, cifar, size) in CASES.items():
        y, exact, margin = gradients(case, torch.float64, SHIFT, IMAGES)
        assert margin > 1e-2, f"{case}: a sign hangs on {margin}"
        tensors = {"train": y.float()}
        for key, g in kept(exact).items():
            tensors[f"grad.{key}"] = some(g).float().contiguous()
            tensors[f"products.{key}"] = products(key, g).float()
        said = dict(seed=SEED, images=IMAGES, size=size, network=name, cifar_stem=cifar, shift=SHIFT, entries=ENTRIES, stride=STRIDE, probes=PROBES, period=PERIOD,
                    source=f"torchvision {torchvision.__version__}, torch {torch.__version__}, float64")
        save_file(tensors, folder / f"{case}.safetensors", metadata={"case": json.dumps(said)})
        single = gradients(case, torch.float32, SHIFT, IMAGES)[1]
        print(
            f"{case}: {len(kept(exact))} of {len(exact)} gradients kept; no value is nearer to a change of sign than {margin:.2g}; "
            f"PyTorch in single precision is {apart(single, exact, some):.1e} away in these entries"
        )
    print("largest relative distance of a gradient: | network | signs | images | f32 to f64 | channels last to planes | without oneDNN to with |")
    for case in CASES:
        for shift, images in ((SHIFT, IMAGES), (0.0, 3), (0.0, 16)):
            exact = gradients(case, torch.float64, shift, images)[1]
            single = gradients(case, torch.float32, shift, images)[1]
            last = gradients(case, torch.float32, shift, images, planes=False)[1]
            torch.backends.mkldnn.enabled = False
            other = gradients(case, torch.float32, shift, images)[1]
            torch.backends.mkldnn.enabled = True
            figures = " | ".join(f"{v:.1e}" for v in (apart(single, exact), apart(last, single), apart(other, single)))
            print(f"| {case} | {'settled' if shift else 'as they fall'} | {images} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
