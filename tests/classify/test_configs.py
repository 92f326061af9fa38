"""The configs of classifiers that come with detkit."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detkit.backbones.timm import Unfilled
from detkit.classify.model import build_classifier, read_classifier_config
from detkit.data.augment_labelled import ClassifierAugmenter
from detkit.data.crops import Crops, crop_objects
from detkit.data.dataset import load_dataset
from detkit.data.names import class_names
from detkit.structures import Target
from detkit.train.config import ClassifierTrainConfig, read_any_train_config
from detkit.train.module import Training
from detkit.train.task import Classification
from detkit.weights.darknet import darknet_header, load_darknet_weights, save_darknet_weights

COSTS = {  # parameters with ImageNet's classes, or the config's own; 10⁹ operations a picture
    "alexnet_imagenet": (61_100_840, 1.428),
    "coatnet-0_imagenet": (25_036_820, 9.093),
    "convnext-t_imagenet": (28_589_128, 8.911),
    "darknet19_imagenet": (20_842_376, 5.582),
    "darknet53_imagenet": (41_609_928, 18.57),
    "deit-s_imagenet": (22_050_664, 9.198),
    "deit-s-distilled_imagenet": (22_436_432, 9.248),
    "densenet121_imagenet": (7_978_856, 5.668),
    "efficientnet-b0_imagenet": (5_288_548, 0.772),
    "extraction_imagenet": (23_437_224, 8.519),
    "googlenet_imagenet": (13_004_888, 2.997),
    "lenet5_mnist": (60_850, 0.001),
    "nat-mini_imagenet": (19_984_174, 6.298),
    "poolformer-s24_imagenet": (21_388_968, 6.784),
    "psvit-2d-tiny_imagenet": (9_652_360, 2.744),
    "pvt-small_imagenet": (24_485_864, 7.631),
    "pvt-v2-b2_imagenet": (25_362_856, 8.053),
    "regnety-800mf_imagenet": (6_263_168, 1.594),
    "resnet50_imagenet": (25_557_032, 8.178),
    "simple-cnn_bccd": (93_859, 0.021),
    "swin-t_imagenet": (28_288_354, 8.981),
    "swin-v2-t_imagenet": (28_347_154, 11.879),
    "tnt-s_imagenet": (23_768_584, 10.434),
    "vgg16_imagenet": (138_357_544, 30.941),
    "vit-b_imagenet": (86_567_656, 110.969),
    "volo-d1_imagenet": (26_632_040, 13.837),
    "xcit-s12_imagenet": (26_253_304, 9.592),
}


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_the_headers(name) -> None:
    imagenet = [f"classes=[{', '.join(f'c{i}' for i in range(1000))}]"] if name.endswith("imagenet") else []
    config = read_classifier_config(f"classify_{name}", imagenet)
    parameters, gflops = COSTS[name]
    with torch.device("meta"), Unfilled():
        network = build_classifier(config)
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, *config.preprocess.size))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, abs=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COSTS, "fasternet_coco"])
def test_one_step_of_each_recipe(name) -> None:
    names = ["classes=[a, b, c]"] if name.endswith("imagenet") else []
    config = read_any_train_config(f"classify_{name}", names)
    assert isinstance(config, ClassifierTrainConfig)
    classes = class_names(config.classes)
    dataset = crop_objects(load_dataset("sample:shapes?pictures=2&size=96", "train"), Crops())
    augment = ClassifierAugmenter(config.augment, config.preprocess)
    size = config.preprocess.size
    pictures = [augment(dataset, i, epoch=0, seed=0, size_hw=size).picture for i in range(2)]
    batch, _ = config.preprocess.of_canvases(size)(pictures)
    torch.manual_seed(0)
    network = build_classifier(config).train()

    def teacher(images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), len(classes))

    task = Classification(classes, config.train, teacher)
    training = Training(network, config.train, task)
    optimizer = training.configure_optimizers()
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    flags = [torch.zeros(1, dtype=torch.bool)] * 3
    targets = [Target(torch.tensor([[0.0, 0, size[1], size[0]]]), torch.tensor([i]), *flags) for i in range(2)]
    loss = torch.stack(list(task.losses(network, batch, targets).values())).sum()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for key, value in network.named_parameters():
        assert value.isfinite().all(), key
        assert value.grad is not None, key
    moved = [not torch.equal(before[key], value) for key, value in network.named_parameters()]
    assert sum(moved) > len(moved) / 4  # blocks are passed over, or begin as zero


def test_the_small_one_costs_what_its_header_says() -> None:
    config = read_classifier_config("classify_fasternet_coco")
    with torch.device("meta"):
        network = build_classifier(config)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, *config.preprocess.size))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(2.2, abs=0.05)
    assert counter.get_total_flops() / 1e9 == pytest.approx(0.12, abs=0.005)


def test_darknets_weights_are_the_classifiers(tmp_path) -> None:
    options = read_classifier_config("classify_darknet19_imagenet", ["classes=[a, b, c]"])
    one, other = build_classifier(options), build_classifier(options)
    save_darknet_weights(tmp_path / "d.weights", one.darknet_layers(), darknet_header())
    load_darknet_weights(other.darknet_layers(), tmp_path / "d.weights")
    pictures = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(other(pictures), one(pictures))
