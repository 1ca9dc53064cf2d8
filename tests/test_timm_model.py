"""The encoder in timm, checked as timm checks its own (its tests/test_models.py) and against its ViT;
our checkpoints."""

import copy
import itertools
import json
from dataclasses import asdict

import pytest
import timm
import torch
from timm.models import is_model, load_checkpoint, model_entrypoint
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from megalodon_tasks import timm_model
from megalodon_tasks.models.classifier import ClassifierInputs, SequenceClassifier
from megalodon_tasks.models.config import MegalodonConfig
from megalodon_tasks.models.presets import CLASSIFIER_PRESETS

TINY, BASE = "megalodon_tiny_patch16_224", "megalodon_base_patch16_224"
# as the registered models are, only small
SMALL = {
    "num_layers": 3, "model_dim": 32, "value_dim": 32, "z_dim": 16, "ffn_hidden_dim": 48,
    "cema_ndim": 2, "norm_num_groups": 2, "img_size": 64,
}  # fmt: skip


def create(**changes):
    torch.manual_seed(0)
    return timm.create_model(TINY, **(SMALL | changes))


def create_vit(**changes):
    """timm's own ViT of the same shape, without a class token as ours."""
    sizes = {"depth": 3, "embed_dim": 32, "num_heads": 2, "img_size": 64, "class_token": False}
    return timm.create_model("vit_tiny_patch16_224", **({"global_pool": "avg"} | sizes | changes))


def shapes(result):
    """Replace the tensors in lists, tuples and dicts by their shapes."""
    if isinstance(result, torch.Tensor):
        return tuple(result.shape)
    return [shapes(item) for item in result] if isinstance(result, (list, tuple)) else result


def images(batch=2, side=64, channels=3):
    return torch.randn(batch, channels, side, side)


@pytest.mark.parametrize(
    ("name", "preset", "parameters"),
    [
        (TINY, "megalodon_imagenet_tiny", 6_200_296),
        (BASE, "megalodon_imagenet_base", 90_711_016),
    ],
)
def test_registered_models_have_the_sizes_and_names_of_the_presets(name, preset, parameters):
    assert is_model(name)
    assert model_entrypoint(name).__module__ == timm_model.__name__
    with torch.device("meta"):
        model = timm.create_model(name)
        ours = SequenceClassifier(
            MegalodonConfig(**CLASSIFIER_PRESETS[preset]), ClassifierInputs("patches", 1000)
        )
    assert sum(p.numel() for p in model.parameters()) == parameters
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}


@pytest.mark.parametrize("batch", [1, 3])
def test_forward_at_the_declared_size(batch):
    model = timm.create_model(TINY, num_layers=1).eval()
    outputs = model(torch.randn(batch, *model.default_cfg["input_size"]))
    assert outputs.shape == (batch, 1000)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(checkpointing):
    model = create(num_classes=42, drop_path_rate=0.1, drop_rate=0.1).train()
    model.set_grad_checkpointing(checkpointing)
    assert model.grad_checkpointing == checkpointing
    outputs = model(images())
    outputs.mean().backward()
    assert outputs.shape == (2, 42)
    assert outputs.isfinite().all()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_checkpointing_changes_no_gradient():
    x, gradients = images(), []
    for checkpointing in (False, True):
        model = create().train()
        model.set_grad_checkpointing(checkpointing)
        model(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_same_scores_as_the_classifier_of_the_recipes():
    model = create(num_classes=7).eval()
    config = MegalodonConfig(**{k: v for k, v in SMALL.items() if k != "img_size"}, num_heads=1)
    ours = SequenceClassifier(config, ClassifierInputs("patches", 7, image_size=(64, 64))).eval()
    ours.load_state_dict(model.state_dict())
    x = images()
    torch.testing.assert_close(model(x), ours(x))


def test_classifier_conventions():
    model, x = create().eval(), images()
    features = model.forward_features(x)
    assert features.shape == (2, 16, model.num_features)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(x))

    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    assert model.get_classifier().out_features == model.num_classes == 5
    with pytest.raises(ValueError, match="global_pool='token' is not one of"):
        model.reset_classifier(5, "token")


@pytest.mark.parametrize(("num_classes", "pool"), [*itertools.product((0, 4), ("avg", ""))])
def test_classifier_and_pooling_are_replaced_as_in_timms_vit(num_classes, pool):
    x, ours = images(), []
    for make in (create, create_vit):
        built = make(num_classes=num_classes, global_pool=pool)
        replaced = make(drop_rate=0.5).bfloat16().eval()
        replaced.reset_classifier(num_classes, pool)
        scores = replaced(x.bfloat16())
        assert torch.equal(scores, replaced(x.bfloat16()))  # no dropout: still in evaluation
        features = built.forward_features(x)
        ours.append(shapes([built(x), scores, built.forward_head(features, pre_logits=True)]))
    assert ours[0] == ours[1]


PRUNINGS = list(itertools.product((False, True), (False, True)))


@pytest.mark.parametrize(("prune_norm", "prune_head"), PRUNINGS)
def test_pruned_models_work_as_timms_vit(prune_norm, prune_head):
    x, results = images(), []
    for make in (create, create_vit):
        model = make()
        indices = model.prune_intermediate_layers(
            [0, -2], prune_norm=prune_norm, prune_head=prune_head
        )
        outputs = [model(x), model.forward_features(x), model.forward_intermediates(x, norm=True)]
        model.set_grad_checkpointing()
        model.train()(x).mean().backward()
        without_gradient = [name for name, p in model.named_parameters() if p.grad is None]
        model.reset_classifier(5)
        outputs.append(model(x))
        model.reset_classifier(5, "avg")
        outputs.append(model(x))
        results.append([indices, without_gradient, *shapes(outputs)])
    assert results[0] == results[1]


@pytest.mark.parametrize("name", [TINY, BASE])
def test_registered_models_are_pruned(name):
    model = timm.create_model(name, num_layers=3, img_size=32).eval()
    x = images(side=32)
    expected = model.forward_intermediates(x, [1], output_fmt="NLC", intermediates_only=True)[0]
    model.prune_intermediate_layers([1], prune_norm=True)
    torch.testing.assert_close(model(x), expected)


OPTIONS = [
    {}, {"norm": True}, {"stop_early": True}, {"output_fmt": "NLC"}, {"intermediates_only": True},
    {"norm": True, "stop_early": True, "output_fmt": "NLC", "intermediates_only": True},
]  # fmt: skip


@pytest.mark.parametrize("indices", [None, 2, [0], (2, 0), [-1, 0], [1, 1]])
@pytest.mark.parametrize("options", OPTIONS)
def test_intermediates_are_chosen_as_in_timms_vit(indices, options):
    ours, timms = (
        make().eval().forward_intermediates(images(), indices, **options)
        for make in (create, create_vit)
    )
    assert shapes(ours) == shapes(timms)


def test_intermediates_are_contiguous_and_in_order_of_depth():
    model, x = create().eval(), images()
    last_first = model.forward_intermediates(x, [2, 0], intermediates_only=True)
    every = model.forward_intermediates(x, intermediates_only=True)
    assert all(grid.is_contiguous() for grid in every)
    torch.testing.assert_close(last_first, [every[0], every[2]])


def test_input_size_changes_as_in_timms_vit():
    sizes = [{"img_size": (32, 96)}, {"patch_size": 8}, {"img_size": 96, "patch_size": 32}, {}]
    for size in sizes:
        ours, timms = create(), create_vit()
        ours.embedding.proj.weight.requires_grad_(False)
        with torch.no_grad():  # the same stem
            timms.pos_embed.copy_(ours.embedding.position[None])
            timms.patch_embed.proj.load_state_dict(ours.embedding.proj.state_dict())
        for model in (ours, timms):
            model.set_input_size(**size)
        side = size.get("img_size", 64)
        x = torch.randn(2, 3, *(side if isinstance(side, tuple) else (side, side)))
        torch.testing.assert_close(ours.embedding(x), timms.patch_embed(x) + timms.pos_embed)
        assert ours(x).shape == (2, 1000)
        assert not ours.embedding.proj.weight.requires_grad
        assert ours.embedding.position.param_group == "no_weight_decay"
    with pytest.raises(ValueError, match="patch_size=16 does not divide"):
        create().set_input_size(90)


def test_default_cfg_names_layers_that_exist_and_survives_json():
    model = create()
    cfg, state = model.default_cfg, model.state_dict()
    assert f"{cfg['classifier']}.weight" in state
    assert f"{cfg['first_conv']}.weight" in state
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    again = json.loads(json.dumps(cfg))
    rebuilt = timm.create_model(TINY, pretrained_cfg=again, **SMALL)
    assert json.loads(json.dumps(rebuilt.pretrained_cfg)) == again
    data = timm.data.resolve_model_data_config(model)
    assert (data["crop_pct"], data["interpolation"]) == (0.875, "bicubic")
    assert not timm.get_pretrained_cfg(TINY).has_weights
    assert "paper_ids" in asdict(timm.get_pretrained_cfg(TINY))


def test_features_only():
    model = timm.create_model(TINY, features_only=True, **SMALL).eval()
    outputs = model(images())
    assert model.feature_info.channels() == [32, 32, 32]
    assert model.feature_info.reduction() == [16, 16, 16]
    assert [tuple(o.shape) for o in outputs] == [(2, 32, 4, 4)] * 3
    pruned = timm.create_model(TINY, features_only=True, out_indices=[0, -2], **SMALL)
    assert len(pruned.model.stack.blocks) == 2
    assert [tuple(o.shape) for o in pruned(images())] == [(2, 32, 4, 4)] * 2


def test_intermediates_are_those_of_the_blocks():
    model, x = create().eval(), images()
    seen = []
    for block in model.stack.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    final, grids = model.forward_intermediates(x)
    for grid, tokens in zip(grids, seen, strict=True):
        torch.testing.assert_close(grid.flatten(2).mT, tokens)
    torch.testing.assert_close(final, model.forward_features(x))
    (normed,) = model.forward_intermediates(
        x, indices=[-1], norm=True, output_fmt="NLC", intermediates_only=True
    )
    torch.testing.assert_close(normed, final)
    seen.clear()
    model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    assert len(seen) == 1
    with pytest.raises(ValueError, match="output_fmt='NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_image_sizes_and_channels():
    model = create(img_size=(32, 96), in_chans=1)
    assert model(torch.randn(2, 1, 32, 96)).shape == (2, 1000)
    with pytest.raises(ValueError, match=r"images have shape \(3, 64, 64\)"):
        model(images())
    assert create(patch_size=8)(images()).shape == (2, 1000)


def test_parameter_groups():
    model = copy.deepcopy(create())  # a deepcopy loses attributes of parameters
    names = {"embedding.position"} | {
        f"stack.blocks.{i}.attention.cema.{name}"
        for i in range(3)
        for name in ("alpha", "delta", "theta")
    }
    assert model.no_weight_decay() == names
    spared = model.no_weight_decay()
    without, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=spared)
    assert without["weight_decay"] == 0.0
    assert any(p is model.embedding.position for p in without["params"])
    assert any(p is model.get_classifier().weight for p in decayed["params"])
    # the stem, three blocks, the rest: lower layers learn more slowly
    scales = sorted({group["lr_scale"] for group in param_groups_layer_decay(model)})
    assert len(scales) == 5
    assert model.group_matcher(coarse=True)["stem"] == r"^embedding"


def fairseq_checkpoint(path, model, *, ema=None, task=None, **settings):
    """Write the parts of a checkpoint of the recipe that are read here."""
    config = asdict(MegalodonConfig(**{k: v for k, v in SMALL.items() if k != "img_size"}))
    torch.save(
        {
            "cfg": {"model": {"_name": "megalodon_imagenet_tiny", **config, **settings},
                    "task": task or {"_name": "imagenet", "image_size": 64}},
            "model": model.state_dict(),
            "extra_state": {} if ema is None else {"ema": ema.state_dict()},
        },
        path,
    )  # fmt: skip
    return path


def test_checkpoints_of_the_recipe_load(tmp_path):
    model, x = create(num_classes=7).eval(), images()
    averaged = create(num_classes=7).eval()
    torch.nn.init.normal_(averaged.head.proj.weight)
    path = fairseq_checkpoint(tmp_path / "checkpoint_best.pt", model, ema=averaged)
    expected = model(x)
    torch.testing.assert_close(timm_model.from_checkpoint(path)(x), expected)
    torch.testing.assert_close(timm_model.from_checkpoint(path, ema=True)(x), averaged(x))
    for arguments in (
        {"checkpoint_path": str(path)},
        {"pretrained": True,
         "pretrained_cfg_overlay": {"file": str(path), "num_classes": 7}},
    ):  # fmt: skip
        loaded = timm.create_model(TINY, num_classes=7, **SMALL, **arguments).eval()
        torch.testing.assert_close(loaded(x), expected)
    other = create(num_classes=7)
    load_checkpoint(other, str(path))
    torch.testing.assert_close(other.eval()(x), expected)


def test_fine_tuning_at_another_size_and_number_of_classes(tmp_path):
    model = create(num_classes=7)
    path = fairseq_checkpoint(tmp_path / "checkpoint_best.pt", model)
    larger = timm.create_model(
        TINY, pretrained=True, num_classes=3, **(SMALL | {"img_size": 96}),
        pretrained_cfg_overlay={"file": str(path), "num_classes": 7},
    )  # fmt: skip
    assert larger(images(side=96)).shape == (2, 3)
    torch.testing.assert_close(larger.pool.proj.weight, model.pool.proj.weight)
    old, new = model.embedding.position, larger.embedding.position
    assert (len(old), len(new)) == (16, 36)
    corners = (new[0] - old[0]).norm() / old[0].norm()
    assert corners < 0.5  # resampled, not drawn again
    same = timm_model.from_checkpoint(path, img_size=96)
    torch.testing.assert_close(same.embedding.position, new)


class Unsafe:
    """Pickles into a call."""

    def __reduce__(self):
        return print, ("this must not be printed",)


def test_bad_checkpoints_are_named(tmp_path, capsys):
    model, load = create(), timm_model.from_checkpoint
    with pytest.raises(ValueError, match="nowhere.pt: there is no such checkpoint"):
        load(tmp_path / "nowhere.pt")
    path = fairseq_checkpoint(tmp_path / "a.pt", model)
    with pytest.raises(ValueError, match=r"a.pt: holds no running average"):
        load(path, ema=True)
    truncated = tmp_path / "b.pt"
    truncated.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="b.pt is not a torch file of plain tensors"):
        load(truncated)
    torch.save({"model": Unsafe()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt is not a torch file of plain tensors"):
        load(tmp_path / "c.pt")
    assert capsys.readouterr().out == ""
    text = fairseq_checkpoint(tmp_path / "d.pt", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="d.pt: .* does not read images"):
        load(text)
    torch.save({"weights": 1}, tmp_path / "e.pt")
    with pytest.raises(ValueError, match="e.pt: holds no fairseq settings"):
        load(tmp_path / "e.pt")
    with pytest.raises(ValueError, match="no embedding.position"):
        timm_model.checkpoint_filter_fn(torch.nn.Linear(2, 2).state_dict(), model)
    oblong = {"embedding.position": torch.zeros(18, 32)}
    with pytest.raises(ValueError, match="18 vectors, which fill no square grid"):
        timm_model.checkpoint_filter_fn(oblong, model)


def test_settings_that_the_encoder_does_not_take_are_refused():
    with pytest.raises(ValueError, match="causal=True"):
        create(causal=True)
    with pytest.raises(TypeError, match="drop_path"):
        create(drop_path=0.1)
