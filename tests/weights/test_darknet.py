import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detkit.backbones.layers import ConvUnit
from detkit.backbones.norm import DarknetNorm
from detkit.errors import DetkitError
from detkit.weights.darknet import (
    darknet_tensors,
    first_layers,
    load_darknet_weights,
    parse_cfg,
    read_cfg,
    read_weights,
    save_darknet_weights,
)

CFG = """# a comment
[net]
width = 64   ; another
height=32

[convolutional]
filters = 8
filters=16
anchors = 10, 14,  23,27.5,
; nothing
[route]
layers = -1, 3
"""


def write(path: Path, numbers: np.ndarray, version=(0, 2, 0), seen=7) -> Path:
    wide = version[0] * 10 + version[1] >= 2
    path.write_bytes(struct.pack("<3i", *version) + struct.pack("<Q" if wide else "<I", seen) + numbers.tobytes())
    return path


def test_sections_have_numbers_lines_and_typed_options():
    net, conv, route = parse_cfg(CFG, "a.cfg")
    assert [(s.number, s.layer, s.kind, s.line) for s in (net, conv, route)] == [
        (0, -1, "net", 2),
        (1, 0, "convolutional", 6),
        (2, 1, "route", 11),
    ]
    assert (net.integer("width", 0), net.integer("height", 0), net.integer("channels", 3)) == (64, 32, 3)
    assert conv.integer("filters", 1) == 8  # of a repeated key Darknet takes the first
    assert conv.numbers("anchors") == [10, 14, 23, 27.5]
    assert route.integers("layers") == [-1, 3]
    assert conv.text("activation", "logistic") == "logistic"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.cfg: is no Darknet \.cfg: expected \[net\] .* got no section"),
        ("# only a comment\n", "got no section"),
        ("[convolutional]\nfilters=1\n", r"expected \[net\] .* got \[convolutional\]"),
        ("width=3\n[net]\n", r"a\.cfg, line 1: expected \[net\] first, got 'width=3'"),
        ("[net]\nwidth 416\n", r"a\.cfg, line 2: expected \[section\] or key=value, got 'width416'"),
        ("[net]\n\nwidth=\n", "line 3: expected"),
    ],
)
def test_a_text_that_is_no_cfg(text, message):
    with pytest.raises(DetkitError, match=message):
        parse_cfg(text, "a.cfg")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0", b"[net]\nwidth=\xff\xfe\n"])
def test_a_binary_cfg(tmp_path, content):
    path = tmp_path / "a.cfg"
    path.write_bytes(content)
    with pytest.raises(DetkitError, match=r"a\.cfg: is no text in UTF-8"):
        read_cfg(path)


def test_a_missing_cfg(tmp_path):
    with pytest.raises(DetkitError, match=r"none\.cfg: cannot be read: No such file"):
        read_cfg(tmp_path / "none.cfg")


@pytest.mark.parametrize(
    ("line", "read", "message"),
    [
        (
            "filters=many",
            lambda s: s.integer("filters", 1),
            "line 3: section 1 .conv.: filters must be a whole number, got",
        ),
        ("filters=0", lambda s: s.integer("filters", 1, low=1), "filters must be at least 1, got 0"),
        ("scale=nan", lambda s: s.number_of("scale", 1), "scale must be a number, got 'nan'"),
        ("layers=1,x", lambda s: s.integers("layers"), "layers must be whole numbers, got '1,x'"),
        ("anchors=1,,2", lambda s: s.numbers("anchors"), "anchors must be a number, got ''"),
        ("other=1", lambda s: s.integers("layers"), "line 2: section 1 .conv.: the option layers is missing"),
    ],
)
def test_bad_values_name_file_line_and_section(line, read, message):
    section = parse_cfg(f"[net]\n[conv]\n{line}\n", "a.cfg")[1]
    with pytest.raises(DetkitError, match=r"^a\.cfg, line \d: section 1 \[conv\]: ") as error:
        read(section)
    assert re.search(message, str(error.value))


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 5), (1, 0, 0)])
def test_both_headers_keep_their_values(tmp_path, version):
    numbers = np.arange(6, dtype="<f4")
    seen = 32013312 if version < (0, 2) else 2**40 + 1
    path = write(tmp_path / "a.weights", numbers, version, seen)
    file = read_weights(path)
    assert (file.major, file.minor, file.revision, file.seen) == (*version, seen)
    assert np.array_equal(file.numbers, numbers)
    assert file.header + file.numbers.tobytes() == path.read_bytes()


def test_convolutions_load_in_the_order_of_the_file_and_come_back_to_the_bit(tmp_path):
    normalised, plain = ConvUnit(3, 2, 3), nn.Conv2d(2, 4, 1)
    numbers = np.random.default_rng(0).random(2 * 4 + 2 * 3 * 9 + 4 + 4 * 2, dtype=np.float32)
    path = write(tmp_path / "a.weights", numbers)
    file = load_darknet_weights([normalised, plain], path)
    assert file.seen == 7
    assert normalised.norm.bias.tolist() == numbers[0:2].tolist()
    assert normalised.norm.weight.tolist() == numbers[2:4].tolist()
    assert normalised.norm.running_mean.tolist() == numbers[4:6].tolist()
    assert normalised.norm.running_var.tolist() == numbers[6:8].tolist()
    assert normalised.conv.weight.flatten().tolist() == numbers[8:62].tolist()
    assert plain.bias.tolist() == numbers[62:66].tolist()
    assert plain.weight.flatten().tolist() == numbers[66:].tolist()
    save_darknet_weights(tmp_path / "b.weights", [normalised, plain], file.header)
    assert (tmp_path / "b.weights").read_bytes() == path.read_bytes()


def test_a_connected_layer_has_its_batch_norm_after_its_weights():
    unit = nn.Sequential(nn.Linear(3, 2, bias=False), DarknetNorm(2))
    linear, norm = unit
    wanted = [norm.bias, linear.weight, norm.weight, norm.running_mean, norm.running_var]
    assert [t.data_ptr() for t in darknet_tensors(unit)] == [t.data_ptr() for t in wanted]


@pytest.mark.parametrize(
    ("version", "transposed"),
    [((0, 2, 0), False), ((1000, 0, 0), False), ((0, 1000, 0), False), ((1001, 0, 0), True), ((0, 1001, 0), True)],
)
def test_versions_beyond_a_thousand_hold_connected_layers_transposed(tmp_path, version, transposed):
    wide = version == (0, 2, 0)
    linear, unit = nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 4, bias=False), DarknetNorm(4))
    numbers = np.arange(8 + 24, dtype="<f4")
    path = tmp_path / "a.weights"
    path.write_bytes(struct.pack("<3i", *version) + struct.pack("<Q" if wide else "<I", 7) + numbers.tobytes())
    file = load_darknet_weights([linear, unit], path)
    assert linear.bias.tolist() == [0, 1]
    assert linear.weight.tolist() == ([[2, 4, 6], [3, 5, 7]] if transposed else [[2, 3, 4], [5, 6, 7]])
    rows = [[12, 16], [13, 17], [14, 18], [15, 19]] if transposed else [[12, 13], [14, 15], [16, 17], [18, 19]]
    assert unit[0].weight.tolist() == rows
    assert unit[1].weight.tolist() == [20, 21, 22, 23]
    save_darknet_weights(tmp_path / "b.weights", [linear, unit], file.header)
    assert (tmp_path / "b.weights").read_bytes() == path.read_bytes()


def test_convolutions_are_never_transposed(tmp_path):
    conv = nn.Conv2d(2, 3, 1)
    path = tmp_path / "a.weights"
    path.write_bytes(struct.pack("<4i", 1001, 0, 0, 7) + np.arange(9, dtype="<f4").tobytes())
    load_darknet_weights([conv], path)
    assert conv.weight.flatten().tolist() == [3, 4, 5, 6, 7, 8]


def test_a_file_may_hold_the_first_layers_only(tmp_path):
    layers = [ConvUnit(3, 4, 1), nn.Conv2d(4, 2, 3), nn.Linear(5, 6)]  # 28, 74 and 36 numbers
    for numbers, count in ((28, 1), (27, 3), (102, 2), (103, 3), (138, 3), (139, 3)):
        path = write(tmp_path / "a.weights", np.ones(numbers, "<f4"))
        assert first_layers(layers, path) == layers[:count]


def test_a_file_of_another_length_loads_nothing(tmp_path):
    layers = [nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 1)]  # 56 and 12 numbers
    before = [p.clone() for layer in layers for p in layer.parameters()]
    short = write(tmp_path / "short.weights", np.ones(57, "<f4"))
    with pytest.raises(
        DetkitError, match=r"short\.weights: is too short by 44 bytes: .*wants 68.*has 57.*layer 2 of the 2"
    ):
        load_darknet_weights(layers, short)
    with pytest.raises(DetkitError, match="ends within second;"):
        load_darknet_weights(layers, short, ["first", "second"])
    long = write(tmp_path / "long.weights", np.ones(70, "<f4"))
    with pytest.raises(DetkitError, match=r"long\.weights: is too long by 8 bytes: .*wants 68 .*has 70"):
        load_darknet_weights(layers, long)
    after = [p for layer in layers for p in layer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no Darknet .weights file: it has 0 bytes"),
        (b"[net]\nwidth=416\nheight=416\n", r"is no Darknet .weights file: .* begins with b'\[net\]"),
        (b"<!DOCTYPE html><html></html>", "is no Darknet .weights file"),
        (struct.pack("<3i", 0, 2, 0), "is cut off or no Darknet .weights file: 12 bytes"),
        (struct.pack("<3iQ", 0, 2, 0, 0), "20 bytes"),
        (struct.pack("<3iQ", 0, 2, 0, 0) + b"\0" * 7, "27 bytes"),
    ],
)
def test_a_file_that_holds_no_weights(tmp_path, content, message):
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    with pytest.raises(DetkitError, match=message):
        read_weights(path)


def test_a_missing_weights_file(tmp_path):
    with pytest.raises(DetkitError, match=r"none\.weights: cannot be read: No such file"):
        read_weights(tmp_path / "none.weights")


def test_statistics_follow_a_batch_by_a_tenth():
    norm = DarknetNorm(1).train()
    norm(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1))
    assert norm.running_mean.item() == pytest.approx(0.3)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.8)  # of 8, which counts 1 / (n - 1) as in Darknet


def test_batch_norm_divides_by_the_deviation_plus_a_millionth():
    norm = DarknetNorm(4).eval()
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([0.0, 1e-12, 1e-4, 2.0]))
        norm.running_mean.copy_(torch.tensor([0.0, 1e-6, 0.1, -1.0]))
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5, 3.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    x = torch.tensor([1e-6, 3e-6, 0.2, 1.5]).view(1, 4, 1, 1)
    v, m, w, b = (t.double() for t in (norm.running_var, norm.running_mean, norm.weight, norm.bias))
    wanted = (x.flatten().double() - m) / (v.sqrt() + 1e-6) * w + b
    torch.testing.assert_close(norm(x).flatten(), wanted.float(), rtol=2e-6, atol=0)
    torch.testing.assert_close(norm.plain()(x), norm(x), rtol=0, atol=0)
