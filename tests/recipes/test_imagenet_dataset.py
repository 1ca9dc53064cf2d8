"""Order, views and augmentation: functions of (seed, epoch, image, repeat), as in timm and DeiT."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.mixup import Mixup
from torchvision import transforms

from megalodon_tasks.recipes.imagenet.augmentation import (
    AugmentationConfig,
    Mixer,
    evaluation_transform,
    seeded,
    training_transform,
)
from megalodon_tasks.recipes.imagenet.image_dataset import (
    ATTEMPTS,
    EvaluationImages,
    TrainingImages,
    repeated_order,
)
from tests.recipes.image_files import build_index, noise, write_tree

CONFIG = AugmentationConfig(image_size=32)
TOKENS = 4


@pytest.fixture
def tree(tmp_path):
    return build_index(write_tree(tmp_path / "images"), tmp_path / "index")


def training(tree, repeats=3, seed=1, config=CONFIG):
    return TrainingImages(tree.split("train"), training_transform(config), TOKENS, repeats, seed)


def evaluation(tree):
    return EvaluationImages(tree.split("valid"), evaluation_transform(CONFIG), TOKENS)


@pytest.mark.parametrize("images", [5, 255, 256, 1000, 1543])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_order_is_that_of_timms_sampler(images, world, repeats):
    order = repeated_order(np.arange(images), repeats, world)
    shares = []
    for rank in range(world):
        sampler = RepeatAugSampler(range(images), world, rank, shuffle=False, num_repeats=repeats)
        ours = order[rank::world]
        assert (ours % images).tolist() == list(sampler)
        shares.append(len(ours))
    assert len(set(shares)) == 1
    if world * shares[0] <= images * repeats:
        assert len(set(order)) == len(order)  # no view twice
    assert set(order // images) <= set(range(repeats))


def test_an_epoch_of_imagenet_has_the_published_length():
    images, world, batch = 1_281_167, 8, 128
    order = repeated_order(np.arange(images), 3, world)
    assert len(order) / world // batch == len(order) / world / batch == 1251


def test_without_repeats_each_image_comes_once():
    order = repeated_order(np.random.default_rng(0).permutation(103), 1, 4)
    assert len(order) == len(set(order)) == 100


def batches(dataset, epoch, size, world=1):
    dataset.world = world
    dataset.set_epoch(epoch)
    return dataset.batch_by_size(dataset.ordered_indices(), max_sentences=size)


def test_order_depends_on_seed_and_epoch(tree):
    def order(seed, epoch):
        return np.concatenate(batches(training(tree, seed=seed), epoch, 6)) % 24

    assert (order(1, 1) == order(1, 1)).all()
    assert (order(1, 1) != order(1, 2)).any()
    assert (order(1, 1) != order(2, 1)).any()


def test_batches_are_full_and_alternate_between_the_processes(tree):
    dataset = training(tree)
    found = batches(dataset, 3, 5, world=2)
    assert [len(batch) for batch in found] == [5, 5, 5, 5]
    order = dataset.ordered_indices()
    assert (np.concatenate(found[0::2]) == order[0::2][:10]).all()
    assert (np.concatenate(found[1::2]) == order[1::2][:10]).all()
    # every image's three views lie on both processes
    with pytest.raises(ValueError, match="24 images for each of 1 processes, .* no batch of 25"):
        batches(dataset, 1, 25)
    with pytest.raises(ValueError, match="dataset.max_tokens=3 leaves no image"):
        dataset.batch_by_size(order, max_tokens=3)
    assert [len(b) for b in dataset.batch_by_size(order, max_tokens=24)] == [6, 6, 6, 6]


def test_a_view_is_always_the_same_and_views_differ(tree):
    dataset = training(tree)
    images = len(dataset)
    one = dataset[3 * images + 5]
    torch.rand(7), random.random(), np.random.rand()
    again = training(tree)[3 * images + 5]
    assert torch.equal(one["image"], again["image"])
    assert one["label"] == again["label"] == int(tree.split("train").labels[5])
    for other in (dataset[4 * images + 5], training(tree, seed=2)[3 * images + 5]):
        assert other["label"] == one["label"]
        assert not torch.equal(other["image"], one["image"])
    with pytest.raises(ValueError, match="task.repeats=0 must be at least 1"):
        training(tree, repeats=0)


def test_all_views_of_an_epoch_differ_from_those_of_the_next(tree):
    dataset = training(tree)
    epochs = [set(np.concatenate(batches(dataset, epoch, 4)).tolist()) for epoch in (1, 2, 3)]
    assert not epochs[0] & epochs[1]
    assert not epochs[1] & epochs[2]


def test_seeding_leaves_the_generators_as_they_were():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(3, 4):
        inside = random.random(), np.random.rand(), torch.rand(1)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    with seeded(3, 4):
        assert (random.random(), np.random.rand(), torch.rand(1)) == inside
    with seeded(4, 3):
        assert random.random() != inside[0]


def test_evaluation_is_deits_protocol(tree):
    """Shorter side to 256 bicubic, centre crop of 224, ImageNet's mean and deviation."""
    image = Image.fromarray(noise(1, 500, 333))
    expected = transforms.Compose([
        transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ])(image)  # fmt: skip
    torch.testing.assert_close(evaluation_transform(AugmentationConfig())(image), expected)
    dataset = evaluation(tree)
    assert dataset.ordered_indices().tolist() == list(range(6))
    assert [len(b) for b in dataset.batch_by_size(np.arange(6), max_sentences=4)] == [4, 2]
    assert torch.equal(dataset[2]["image"], dataset[2]["image"])


def test_training_has_the_parts_that_were_asked_for():
    names = [type(step).__name__ for step in training_transform(AugmentationConfig()).transforms]
    assert names == [
        "RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment", "MaybeToTensor",
        "Normalize", "ClippedErasing",
    ]  # fmt: skip
    crop, _, augment, _, _, clipped = training_transform(AugmentationConfig()).transforms
    erase = clipped.erase
    assert (crop.size, crop.scale) == ((224, 224), (0.08, 1.0))
    assert (erase.probability, erase.per_pixel, erase.max_count) == (0.25, True, 1)
    assert {op.magnitude for op in augment.ops} == {9}
    assert {op.magnitude_std for op in augment.ops} == {0.5}
    plain = AugmentationConfig(auto_augment=None, hflip=0.0, random_erasing=0.0)
    names = [type(step).__name__ for step in training_transform(plain).transforms]
    assert names == [
        "RandomResizedCropAndInterpolation", "ColorJitter", "MaybeToTensor", "Normalize",
    ]  # fmt: skip


@pytest.mark.parametrize("clip", [2.0, 0.5, None])
def test_noise_of_random_erasing_is_clipped_and_the_image_is_not(clip):
    """Mega's fork of timm clips at 2; pixels of a normalised image go up to 2.64."""
    config = AugmentationConfig(random_erasing=1.0, random_erasing_clip=clip)
    erase = training_transform(config).transforms[-1]
    image = torch.full((3, 64, 64), 2.6)
    with seeded(7):
        erased = erase(image.clone())
    noise_of_rectangle = erased[erased != 2.6]
    assert 0 < len(noise_of_rectangle) < image.numel()
    largest = noise_of_rectangle.abs().max().item()
    assert largest == clip if clip is not None else largest > 2.0


def test_posterize_at_full_strength_is_black():
    """Pillow 13 refuses what timm asks of it there."""
    augment = training_transform(AugmentationConfig()).transforms[2]
    (posterize,) = [op for op in augment.ops if op.name.startswith("Posterize")]
    image = Image.fromarray(noise(1))
    posterize.prob, posterize.magnitude_std = 1.0, 0.0
    posterize.magnitude = 10
    assert not np.asarray(posterize(image)).any()
    posterize.magnitude = 5
    assert (np.asarray(posterize(image)) == noise(1) // 64 * 64).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hflip", 1.5), ("random_erasing", -0.1), ("mix_prob", 2), ("mix_switch_prob", -1),
        ("crop_pct", 0), ("smallest_crop", 1.5), ("mixup", -1), ("cutmix", -1),
        ("color_jitter", -0.5), ("interpolation", "nearest-ish"), ("random_erasing_clip", 0.0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"task.{field}="):
        AugmentationConfig(**{field: value}).validate()


@pytest.mark.parametrize("policy", ["rand-q9", "random", "v99"])
def test_an_unknown_policy_is_named(policy):
    with pytest.raises(ValueError, match=f"task.auto_augment='{policy}' is no policy of timm's"):
        training_transform(AugmentationConfig(auto_augment=policy))


def sample(count=6, classes=3):
    torch.manual_seed(0)
    return {
        "net_input": {"inputs": torch.randn(count, 3, 8, 8)},
        "target": torch.arange(count) % classes,
        "key": 5,
    }


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_timms(mixup, cutmix):
    config = AugmentationConfig(mixup=mixup, cutmix=cutmix)
    batch = sample()
    before = batch["net_input"]["inputs"].clone()
    mixed = Mixer(config, num_classes=3, seed=7)(batch, 5)
    assert torch.equal(batch["net_input"]["inputs"], before)
    again = Mixer(config, 3, 7)(batch, 5)
    assert torch.equal(mixed["net_input"]["inputs"], again["net_input"]["inputs"])
    others = [Mixer(config, 3, 7)(batch, key)["net_input"]["inputs"] for key in (6, 7)]
    assert not any(torch.equal(mixed["net_input"]["inputs"], other) for other in others)
    reference = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=3)
    with seeded(0x313, 7, 5):
        images, target = reference(before.clone(), batch["target"])
    assert torch.equal(mixed["net_input"]["inputs"], images)
    assert torch.equal(mixed["target"], target)
    torch.testing.assert_close(mixed["target"].sum(1), torch.ones(6))


@pytest.mark.parametrize("off", [{"mix_prob": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_mixing_can_be_off(off):
    batch = sample()
    assert Mixer(AugmentationConfig(**off), 3, 7)(batch, 5) is batch


def test_smoothing_in_the_criterion_is_timms_smoothing_of_mixed_targets():
    target, scores = torch.arange(6) % 3, torch.randn(6, 3)
    with seeded(1):
        _, theirs = Mixup(0.8, 0.0, label_smoothing=0.1, num_classes=3)(
            torch.zeros(6, 3, 8, 8), target
        )
    with seeded(1):
        _, plain = Mixup(0.8, 0.0, label_smoothing=0.0, num_classes=3)(
            torch.zeros(6, 3, 8, 8), target
        )
    expected = torch.nn.functional.cross_entropy(scores, theirs)
    ours = torch.nn.functional.cross_entropy(scores, plain, label_smoothing=0.1)
    torch.testing.assert_close(ours, expected)


def test_a_batch(tree):
    dataset = training(tree)
    batch = dataset.collater([dataset[100], dataset[130]])
    assert batch["net_input"]["inputs"].shape == (2, 3, 32, 32)
    assert batch["net_input"]["inputs"].dtype == torch.float32
    labels = tree.split("train").labels
    assert batch["target"].tolist() == [labels[100 % 24], labels[130 % 24]]
    assert batch["id"].tolist() == [100, 130]
    assert (batch["nsentences"], batch["ntokens"], batch["key"]) == (2, 2 * TOKENS, 100)
    assert batch["replaced"] == []
    assert dataset.collater([]) == {}


def test_a_damaged_training_image_is_replaced_by_the_next_and_reported(tree):
    split = tree.split("train")
    for index in (5, 6, 23):
        split.path(index).write_bytes(b"no image")
    dataset = training(tree)
    item = dataset[24 + 5]
    assert item["label"] == int(split.labels[7])
    assert [path for path, _ in item["replaced"]] == [str(split.path(5)), str(split.path(6))]
    assert dataset[24 + 23]["label"] == int(split.labels[0])
    assert torch.equal(item["image"], training(tree)[24 + 5]["image"])
    counts = Counter(path for path, _ in dataset.collater([item, dataset[7]])["replaced"])
    assert counts == {str(split.path(5)): 1, str(split.path(6)): 1}


def test_many_damaged_images_in_a_row_are_refused(tree):
    split = tree.split("train")
    for index in range(ATTEMPTS):
        split.path(index).unlink()
    with pytest.raises(ValueError, match=f"{ATTEMPTS} images in a row .* is the disk still there"):
        training(tree)[0]


def test_a_damaged_image_is_not_evaluated(tree):
    path = tree.split("valid").path(3)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"{path} cannot be decoded .* would not compare"):
        evaluation(tree)[3]
