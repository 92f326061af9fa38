import sys
from pathlib import Path
from urllib.error import URLError

import cv2
import pytest
import torch
from torch import nn
from torchvision.models import detection

import detkit
from detkit import cli
from detkit.data.names import CLASS_LISTS, match_classes
from detkit.errors import DetkitError
from detkit.export.torchvision import export_torchvision
from detkit.model import ModelConfig, build_detector, read_model
from detkit.weights.checkpoint import Header, save_checkpoint
from detkit.weights.torchvision import coco_classes, from_torchvision, to_torchvision, torchvision_model_config

NAMES = ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"]
SMALL = {"min_size": 160, "max_size": 224}


def theirs(name: str, picture: torch.Tensor | None = None, **options) -> nn.Module:
    """torchvision's model with random weights, of about the size of trained ones on a picture [3, H, W]."""
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, **SMALL, **options)
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = 1.0
    with torch.no_grad():  # statistics that fit the weights, so that signals neither fade nor grow
        if picture is None:
            picture = torch.rand(3, 64, 64)
        picture = model.transform([picture])[0].tensors
        model.backbone.train()(picture)
        model.eval()
        if not isinstance(model.backbone.fpn.layer_blocks[0][-1], nn.BatchNorm2d):
            for block in model.backbone.fpn.layer_blocks:
                block[0].weight.mul_(0.02)  # to a size that trained maps have
        nn.init.normal_(model.rpn.head.cls_logits.bias, std=0.5)
        nn.init.normal_(model.rpn.head.bbox_pred.bias, std=0.2)
        predictor = model.roi_heads.box_predictor
        regions = nn.functional.unfold(model.backbone(picture)["0"], 7, padding=3, stride=4).unflatten(1, (256, 7, 7))
        regions = regions.permute(0, 4, 1, 2, 3).flatten(0, 1)
        for module in model.roi_heads.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        features = model.roi_heads.box_head.train()(regions)
        model.eval()
        # Weaker for v2: else torchvision's own float32 scores are up to 4e-4 from its float64 ones.
        strength = 0.125 if name.endswith("_v2") else 1
        predictor.cls_score.weight.mul_(2 * strength / predictor.cls_score(features).std())
        predictor.bbox_pred.weight.mul_(0.5 * strength / predictor.bbox_pred(features).std())
        nn.init.normal_(predictor.cls_score.bias, std=1.0)
        nn.init.normal_(predictor.bbox_pred.bias, std=0.5)
    return model


@pytest.fixture
def pictures(shared: Path, tmp_path: Path) -> list[Path]:
    """Two real pictures of different shapes, as PNG."""
    found = []
    for name in ("dog", "person"):
        picture = cv2.imread(str(shared / "sample_images" / "darknet" / f"{name}.jpg"))
        picture = cv2.resize(picture, (300, 221) if name == "dog" else (201, 260), interpolation=cv2.INTER_AREA)
        found.append(tmp_path / f"{name}.png")
        cv2.imwrite(str(found[-1]), picture)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_detections_are_torchvisions(name, pictures, tmp_path) -> None:
    pixels = [cv2.imread(str(path))[..., ::-1].copy() for path in pictures]
    tensors = [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in pixels]
    reference = theirs(name, tensors[0])
    torch.save(reference.state_dict(), tmp_path / "x.pt")
    size = "preprocess.size=[160, 224]"
    ours = detkit.load(f"torchvision/{name}", tmp_path / "x.pt", device="cpu", settings=[size])
    with torch.no_grad():
        expected = reference(tensors)
    for found, wanted in zip(ours.predict(pixels), expected, strict=True):
        assert len(found) == len(wanted["scores"]) > 10
        assert wanted["scores"].unique().numel() > 50
        # Row by row but for the order of scores that are as good as equal, of which the worst may be cut off.
        same = found.labels[:, None] == wanted["labels"] - 1
        same &= (found.scores[:, None] - wanted["scores"]).abs() < 1e-4
        same &= (found.boxes[:, None] - wanted["boxes"]).abs().amax(-1) < 1e-2
        sure = found.scores > found.scores.min() + 1e-4
        assert sure.sum() > 0.9 * len(found)
        assert same.any(0)[sure].all()
        assert same.any(1)[sure].all()
        torch.testing.assert_close(found.scores, wanted["scores"], atol=1e-4, rtol=0)


def test_both_kinds_of_batch_norm_and_old_names_are_read(tmp_path) -> None:
    state = theirs(NAMES[2]).state_dict()
    plain = from_torchvision(state)
    frozen = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    old = {}
    for name, tensor in frozen.items():
        for block in ("inner_blocks", "layer_blocks"):
            for level in "01":
                name = name.replace(f"{block}.{level}.0.", f"{block}.{level}.")
        old[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = tensor
    assert old.keys() != frozen.keys()
    for other in (from_torchvision(frozen), from_torchvision(old)):
        assert other.keys() == plain.keys()
        assert all(torch.equal(other[k], plain[k]) for k in plain if not k.endswith("num_batches_tracked"))
    torch.save(old, tmp_path / "x.pth")
    config, detector = read_model(f"torchvision/{NAMES[2]}", tmp_path / "x.pth")
    assert len(config.classes) == detector.num_classes == 90


def test_the_scale_makes_up_for_another_eps() -> None:
    norm = {"weight": torch.tensor([2.0, 3]), "running_var": torch.tensor([1e-6, 0.5])}
    state = {f"backbone.body.bn1.{name}": tensor for name, tensor in norm.items()}
    found = from_torchvision(state, eps=0)
    scale = found["backbone.model.bn1.weight"] / (norm["running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(scale, norm["weight"] / norm["running_var"].sqrt())
    same = from_torchvision(state)
    assert torch.equal(same["backbone.model.bn1.weight"], norm["weight"])


def test_classes_are_cocos_by_their_ids() -> None:
    names = coco_classes(NAMES[0])
    assert len(set(names)) == 90
    assert (names[0], names[11], names[12], names[89]) == ("person", "N/A 12", "stop sign", "toothbrush")
    assert None not in match_classes(names, CLASS_LISTS["coco"]).to_model


def test_a_model_of_other_classes_is_read_and_written_back(tmp_path) -> None:
    reference = theirs(NAMES[2], num_classes=4)
    torch.save(reference.state_dict(), tmp_path / "x.pt")
    config, detector = read_model(f"torchvision/{NAMES[2]}", tmp_path / "x.pt", ["classes=[cat, dog, cow]"])
    assert config.classes == ["cat", "dog", "cow"]
    assert read_model(f"torchvision/{NAMES[2]}", tmp_path / "x.pt")[0].classes == ["0", "1", "2"]
    state = reference.state_dict()
    back = to_torchvision(detector.state_dict(), state)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        if name.startswith("roi_heads.box_predictor.bbox_pred"):
            assert not back[name][:4].any()
            assert torch.equal(back[name][4:], tensor[4:])
        else:
            assert torch.equal(back[name], tensor)
    with pytest.raises(DetkitError, match=r"cls_score\.weight has shape \[91, 1024\]"):
        to_torchvision(detector.state_dict(), theirs(NAMES[2]).state_dict())
    with pytest.raises(DetkitError, match="it has no head"):
        to_torchvision({k: v for k, v in detector.state_dict().items() if "head" not in k}, state)
    with pytest.raises(DetkitError, match="which has no more"):
        to_torchvision(detector.state_dict() | {"more": torch.zeros(1)}, state)


def test_a_model_is_exported_to_torchvisions_of_the_same_layers(tmp_path) -> None:
    reference = theirs(NAMES[2], num_classes=4)
    torch.save(reference.state_dict(), tmp_path / "x.pt")
    assert export_torchvision(tmp_path / "y.pt", f"torchvision/{NAMES[2]}", tmp_path / "x.pt") == NAMES[2]
    nn.init.zeros_(reference.roi_heads.box_predictor.bbox_pred.weight[:4])
    nn.init.zeros_(reference.roi_heads.box_predictor.bbox_pred.bias[:4])
    written = torch.load(tmp_path / "y.pt", weights_only=True)
    assert all(torch.equal(written[name], tensor) for name, tensor in reference.state_dict().items())
    tree = torchvision_model_config(NAMES[2], 3)
    tree["detector"] |= {"fpn": {"channels": 128}}
    config = ModelConfig.model_validate(tree)
    header = Header(config.model_dump(mode="json"), tuple(config.classes), {})
    save_checkpoint(tmp_path / "narrow.safetensors", build_detector(config).state_dict(), header)
    with pytest.raises(DetkitError, match="none of torchvision's models"):
        export_torchvision(tmp_path / "z.pt", tmp_path / "narrow.safetensors")


def test_what_no_weight_tells_must_be_torchvisions_too(tmp_path, monkeypatch) -> None:
    small, large = "fasterrcnn_mobilenet_v3_large_320_fpn", NAMES[2]
    tree = torchvision_model_config(small, 3)
    plain = ModelConfig.model_validate(tree)
    detector = build_detector(plain)

    def export(name: str = "mine", **changes: object) -> str:
        config = ModelConfig.model_validate(tree | {"detector": tree["detector"] | changes})
        monkeypatch.setattr("detkit.export.torchvision.read_model", lambda *_: (config, detector))
        return export_torchvision(tmp_path / "x.pt", name)

    assert export() == small, "by the size of pictures and the number of proposals"
    assert export(f"torchvision/{large}") == large
    pooling, anchors = tree["detector"]["head"]["pooling"], tree["detector"]["anchors"]
    (tmp_path / "x.pt").unlink()
    for key, changes in (
        ("anchors.sizes", {"anchors": {"sizes": [[16, 32, 64, 128, 256]] * 3}}),
        ("anchors.ratios", {"anchors": anchors | {"ratios": [1, 0.5, 2]}}),
        ("head.delta_weights", {"head": {"pooling": pooling, "delta_weights": [1, 1, 1, 1]}}),
        ("head.pooling.method", {"head": {"pooling": pooling | {"method": "max"}}}),
        ("head.pooling.half_pixel", {"head": {"pooling": pooling | {"half_pixel": True}}}),
        ("strides", {"pooled_level": False, "strides": [16, 32, 32]}),
    ):
        with pytest.raises(DetkitError, match=rf"of torchvision's {small}, but its detector\.{key} is"):
            export(**changes)
    detector.normalize.mean.fill_(0.5)
    with pytest.raises(DetkitError, match=r"but its normalize\.mean is \[0\.5, 0\.5, 0\.5\] and not \[0\.485, "):
        export()
    assert not (tmp_path / "x.pt").exists()


def test_the_command_writes_a_state_dict(tmp_path, monkeypatch, capsys) -> None:
    reference = theirs(NAMES[2], num_classes=4)
    torch.save(reference.state_dict(), tmp_path / "x.pt")
    arguments = [f"torchvision/{NAMES[2]}", "--weights", str(tmp_path / "x.pt"), "--format", "torchvision", "--out"]

    def export(out: str, *more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["detkit", "export", *arguments, str(tmp_path / out), *more])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0

    assert export("y.pt") == 0
    assert f"torchvision.models.detection.{NAMES[2]}" in capsys.readouterr().err
    reference.load_state_dict(torch.load(tmp_path / "y.pt", weights_only=True))
    for out, more, message in (
        ("y.pt", (), "exists already"),
        ("z.pth", (), "the name ends in .pt"),
        ("z.pt", ("--half",), "--half: is for checkpoints"),
    ):
        assert export(out, *more) == 2
        assert message in capsys.readouterr().err


def test_weights_are_downloaded_only_when_none_are_named(tmp_path, monkeypatch) -> None:
    asked = []

    def download(url: str, path: str, **options: object) -> None:
        asked.append(url)
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(DetkitError, match=r"could not be downloaded .*pass the file with --weights"):
        read_model(f"torchvision/{NAMES[0]}")
    assert [Path(url).name for url in asked] == ["fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"]
    with pytest.raises(DetkitError, match="no such file"):
        read_model(f"torchvision/{NAMES[0]}", tmp_path / "missing.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(DetkitError, match=r"other\.pt: is no state dict of torchvision's"):
        read_model(f"torchvision/{NAMES[0]}", tmp_path / "other.pt")
    with pytest.raises(DetkitError, match="did you mean 'torchvision/fasterrcnn_resnet50_fpn"):
        read_model("torchvision/fasterrcnn_resnet50_fp")
    assert len(asked) == 1


def test_clipping_at_the_picture_needs_it_at_the_top_left(tmp_path) -> None:
    torch.save(theirs(NAMES[2]).state_dict(), tmp_path / "x.pt")
    with pytest.raises(DetkitError, match=r"needs preprocess\.mode shortest_edge"):
        read_model(
            f"torchvision/{NAMES[2]}", tmp_path / "x.pt", ["preprocess.mode=letterbox", "preprocess.size=[96, 96]"]
        )
    assert torchvision_model_config(NAMES[2])["preprocess"]["fill"] == (0.485, 0.456, 0.406)
