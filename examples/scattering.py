"""Scattering features with proofs: a network, its constant, and a classifier on digits.

python examples/scattering.py
"""

from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline

from rectified.data import load_images
from rectified.scattering import (
    Layer,
    ScatteringNetwork,
    ScatteringTransformer,
    average,
    bounds,
    curvelets,
    modulus,
    prune_paths,
    tanh,
    weyl_heisenberg,
)

data = load_images("digits", seed=0, limit=200, image_size=32)
images = data.test.pixels.double() / data.test.peak

# any frame, non-linearity and pooling, another one in each layer
network = ScatteringNetwork(
    [Layer(curvelets(J=2), modulus, average(2)), Layer(weyl_heisenberg(4), tanh, average(2))],
    grid=(32, 32),
)
print("features by depth:", [tuple(one.shape[1:]) for one in network(images[:1])])
print(f"proved: no pair is driven apart by more than {bounds.network_constant(network):.6f}")
moved = images[:8].roll(4, -1)
for depth, (before, after) in enumerate(zip(network(images[:8]), network(moved), strict=True)):
    change = (after - before).norm() / images[:8].norm()
    bound = bounds.translation_bound(network, (0, 4), depth)
    print(f"moved by 4 pixels, depth {depth}: {change:.3f} (at most {bound:.3f})")
pruned = prune_paths(network, images[:8], tolerance=0.05)
print(f"{pruned.paths} of {network.count_paths(2)} paths, error at most {pruned.error:.3f}")

model = make_pipeline(ScatteringTransformer(J=3), RidgeClassifier(30.0))
pixels = (data.train.pixels.float() / data.train.peak).numpy()
model.fit(pixels, data.train.labels)
accuracy = model.score(images.float().numpy(), data.test.labels)
print(f"a linear classifier, {len(data.train)} training images: {accuracy:.1%}")
