"""The sparse slide encoder against the golden values and against dense convolutions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Golden, assert_close, make_bag

from mil_zoo import Bag, BagBatch, InputError
from mil_zoo.ssl import SparseSlideEncoder, nt_xent
from mil_zoo.ssl.encoder import _grid_size


@pytest.fixture
def golden():
    return Golden("gigassl")


def golden_batch(golden) -> BagBatch:
    return BagBatch(
        features=torch.as_tensor(golden["feat"]),
        coords=torch.as_tensor(golden["locations"]).float(),
        offsets=torch.as_tensor(golden["offsets"]),
    )


def golden_encoder(golden) -> SparseSlideEncoder:
    encoder = SparseSlideEncoder(12, 16, downsample=int(golden["downsample"]))
    encoder.load_state_dict({name: torch.as_tensor(value) for name, value in golden.parameters.items()})
    return encoder


def test_embedding_loss_and_every_gradient_are_golden(golden):
    encoder = golden_encoder(golden)
    embedding, sites = encoder.embed_sites(golden_batch(golden))
    assert sites.tolist() == golden["active_sites"].tolist()
    assert_close(embedding, golden["slide_embedding"], "embedding")
    loss = nt_xent(embedding, torch.as_tensor(golden["other_view"]), float(golden["temperature"]))
    assert_close(loss, golden["nt_xent"], "NT-Xent")
    loss.backward()
    assert set(golden.gradients) == {name for name, _ in encoder.named_parameters()}
    for name, parameter in encoder.named_parameters():
        assert_close(parameter.grad, golden.gradients[name], f"gradient of {name}")


def full_grid(width: int, height: int, dim: int, seed: int = 0) -> Bag:
    """A bag on every site of a grid, in random order."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(width), np.arange(height), indexing="ij")
    coords = rng.permutation(np.stack([x.ravel(), y.ravel()], axis=1)) * 256.0
    features = rng.normal(size=(width * height, dim)).astype(np.float32)
    return Bag(features=features, coords=coords, patch_size=256.0)


def image_of(bag: Bag) -> torch.Tensor:
    """``[1, D, x, y]``: the features on the grid."""
    x, y = (bag.coords / 256).long().unbind(1)
    image = bag.features.new_zeros(int(x.max()) + 1, int(y.max()) + 1, bag.features.shape[1])
    image[x, y] = bag.features
    return image.permute(2, 0, 1)[None]


def dense_encoder(encoder: SparseSlideEncoder, image: torch.Tensor) -> torch.Tensor:
    """The encoder by torch's own dense operators, for full grids; train-mode statistics."""

    def kernel(weight):
        side = int(len(weight) ** 0.5)
        return weight.unflatten(0, (side, side)).permute(3, 2, 0, 1)

    def norm(x, layer):
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)

    block = encoder.block0
    h = F.relu(norm(F.conv2d(image, kernel(block.conv1), stride=2), block.norm1))
    h = norm(F.conv2d(h, kernel(block.conv2), padding=1), block.norm2)
    x = F.relu(h + norm(F.conv2d(F.avg_pool2d(image, 3, 2), kernel(block.convd)), block.normd))
    block = encoder.block1
    h = F.relu(norm(F.conv2d(x, kernel(block.conv1), padding=1), block.norm1))
    h = norm(F.conv2d(h, kernel(block.conv2), padding=1), block.norm2)
    return F.relu(h + x).mean((2, 3))


@pytest.mark.parametrize("shape", [(7, 7), (11, 7), (15, 11)])
def test_a_full_grid_is_a_dense_convolution(shape):
    bag = full_grid(*shape, dim=6)
    encoder = SparseSlideEncoder(6, 5, downsample=None)
    batch = BagBatch.from_bags([bag])
    got, sites = encoder.embed_sites(batch)
    expected = dense_encoder(encoder, image_of(bag))
    assert sites.item() == (shape[0] - 1) // 2 * ((shape[1] - 1) // 2)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    names = [name for name, _ in encoder.named_parameters()]
    ours = torch.autograd.grad(got.square().sum(), list(encoder.parameters()))
    dense = torch.autograd.grad(expected.square().sum(), list(encoder.parameters()))
    for name, one, other in zip(names, ours, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_grid_sizes_are_the_authors():
    sizes = torch.arange(1, 16)
    assert _grid_size(sizes).tolist() == [7] * 7 + [11] * 4 + [15] * 4
    # 5 has an even half, so even the smallest grid is 7 sites wide.


def test_torchvision_weights_act_on_images_as_they_did():
    encoder = SparseSlideEncoder(4, 6, downsample=None)
    rng = torch.Generator().manual_seed(0)

    def norm(prefix):
        names = ("weight", "bias", "running_mean", "running_var")
        return {f"{prefix}.{name}": torch.rand(6, generator=rng) + 0.5 for name in names} | {
            f"{prefix}.num_batches_tracked": torch.tensor(3)
        }

    weights = {"conv1.weight": torch.ones(1)}  # of the network's other layers
    for i, width in ((0, 4), (1, 6)):
        weights[f"layer4.{i}.conv1.weight"] = torch.randn(6, width, 3, 3, generator=rng)
        weights[f"layer4.{i}.conv2.weight"] = torch.randn(6, 6, 3, 3, generator=rng)
        weights |= norm(f"layer4.{i}.bn1") | norm(f"layer4.{i}.bn2")
    weights["layer4.0.downsample.0.weight"] = torch.randn(6, 4, 1, 1, generator=rng)
    weights |= norm("layer4.0.downsample.1")
    encoder.load_torchvision_layer4(weights)
    encoder.eval()

    bag = full_grid(7, 11, dim=4)
    image = image_of(bag).transpose(2, 3)  # [1, D, y, x], as images are

    def bn(x, prefix):
        return F.batch_norm(
            x, *(weights[f"layer4.{prefix}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        )

    h = F.relu(bn(F.conv2d(image, weights["layer4.0.conv1.weight"], stride=2), "0.bn1"))
    h = bn(F.conv2d(h, weights["layer4.0.conv2.weight"], padding=1), "0.bn2")
    shortcut = F.conv2d(F.avg_pool2d(image, 3, 2), weights["layer4.0.downsample.0.weight"])
    x = F.relu(h + bn(shortcut, "0.downsample.1"))
    h = F.relu(bn(F.conv2d(x, weights["layer4.1.conv1.weight"], padding=1), "1.bn1"))
    h = bn(F.conv2d(h, weights["layer4.1.conv2.weight"], padding=1), "1.bn2")
    expected = F.relu(h + x).mean((2, 3))
    torch.testing.assert_close(encoder(BagBatch.from_bags([bag])), expected, rtol=1e-4, atol=1e-4)

    layer4_alone = {name.removeprefix("layer4."): value for name, value in weights.items() if "layer4" in name}
    other = SparseSlideEncoder(4, 6)
    other.load_torchvision_layer4(layer4_alone)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), other.parameters(), strict=True))
    with pytest.raises(InputError, match=r"layer4.0.conv1.weight.*in_dim=256"):
        SparseSlideEncoder(5, 6).load_torchvision_layer4(weights)
    del weights["layer4.1.bn1.bias"]
    with pytest.raises(InputError, match=r"lack 'layer4\.1\.bn1\.bias'"):
        encoder.load_torchvision_layer4(weights)


def test_order_and_duplicates():
    bag = make_bag(40, 6)
    encoder = SparseSlideEncoder(6, 5, downsample=None).eval()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = Bag(features=bag.features[order], coords=bag.coords[order], patch_size=256.0)
    twice = Bag(features=bag.features.repeat(2, 1), coords=bag.coords.repeat(2, 1), patch_size=256.0)
    expected = encoder(BagBatch.from_bags([bag]))
    for same in (shuffled, twice):
        torch.testing.assert_close(encoder(BagBatch.from_bags([same])), expected, rtol=1e-4, atol=1e-5)


def test_single_instances():
    one = [make_bag(1, 6, seed=i) for i in range(3)]
    encoder = SparseSlideEncoder(6, 5)
    assert encoder(BagBatch.from_bags(one)).isfinite().all()
    assert encoder.eval()(BagBatch.from_bags(one[:1])).isfinite().all()
    with pytest.raises(InputError, match="this batch has one; put more slides"):
        encoder.train()(BagBatch.from_bags(one[:1]))


def test_what_is_missing_is_named():
    bag = make_bag(5, 6)
    batch = BagBatch.from_bags([Bag(features=bag.features)])
    with pytest.raises(InputError, match="needs coordinates for every slide"):
        SparseSlideEncoder(6, 5)(batch)
    batch = BagBatch.from_bags([Bag(features=bag.features, coords=bag.coords)])
    with pytest.raises(InputError, match="needs a patch size"):
        SparseSlideEncoder(6, 5, downsample=None)(batch)
    with pytest.raises(InputError, match="must be positive"):
        SparseSlideEncoder(6, 0)


def test_bfloat16_stays_close():
    bag = make_bag(60, 16)
    encoder = SparseSlideEncoder(16, 12, downsample=None).eval()
    batch = BagBatch.from_bags([bag])
    with torch.autocast("cpu", torch.bfloat16):
        low = encoder(batch)
    full = encoder(batch)
    assert torch.nn.functional.cosine_similarity(low.float(), full).item() > 0.999
