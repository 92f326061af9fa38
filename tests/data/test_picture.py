import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.data.picture import picture_size, read_picture, sample_picture
from detkit.errors import DetkitError


@pytest.fixture
def rgb() -> np.ndarray:
    # Smooth, so that JPEG and lossy WebP stay close to it.
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, 255 - x * 2 - y], -1).astype(np.uint8)


def encode(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_orientation(picture: np.ndarray, orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("JPEG", 12), ("WEBP", 12)])
def test_formats(rgb, tmp_path, kind, tolerance):
    content = encode(rgb, kind)
    file = tmp_path / f"a.{kind.lower()}"
    file.write_bytes(content)
    for source in (file, content, io.BytesIO(content)):
        picture = read_picture(source)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous
        assert picture.flags.writeable
        np.testing.assert_allclose(picture.astype(int), rgb.astype(int), atol=tolerance)
    assert picture_size(file) == (40, 60)


def test_grey_palette_and_bilevel_become_rgb(rgb):
    grey = rgb[..., 0]
    np.testing.assert_array_equal(read_picture(encode(grey, "PNG")), np.repeat(grey[..., None], 3, 2))
    palette = Image.fromarray(rgb).quantize(16)
    np.testing.assert_array_equal(read_picture(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(np.uint8([[0, 255]])).convert("1")
    np.testing.assert_array_equal(read_picture(encode(bilevel, "PNG")), [[[0, 0, 0], [255, 255, 255]]])


def test_transparency_is_laid_on_white():
    rgba = np.uint8([[[200, 100, 0, 255], [200, 100, 0, 0], [0, 0, 0, 51]]])
    expected = [[[200, 100, 0], [255, 255, 255], [204, 204, 204]]]
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read_picture(encode(rgba, kind)), expected)
    np.testing.assert_array_equal(read_picture(encode(rgba, "WEBP", lossless=True, exact=True)), expected)
    la = Image.fromarray(np.uint8([[[10, 255], [10, 0]]]), "LA")
    np.testing.assert_array_equal(read_picture(encode(la, "PNG")), [[[10] * 3, [255] * 3]])
    palette = Image.fromarray(np.uint8([[0, 1]]), "P")
    palette.putpalette([9, 8, 7, 1, 2, 3])
    np.testing.assert_array_equal(read_picture(encode(palette, "PNG", transparency=1)), [[[9, 8, 7], [255] * 3]])
    keyed = Image.fromarray(np.uint8([[[9, 8, 7], [1, 2, 3]]]))
    np.testing.assert_array_equal(read_picture(encode(keyed, "PNG", transparency=(1, 2, 3))), [[[9, 8, 7], [255] * 3]])


def test_sixteen_bits_are_scaled():
    import cv2

    grey = np.uint16([[0, 255, 256, 0x1234, 0x8000, 0xFFFF]])
    expected = np.repeat((grey >> 8)[..., None], 3, 2)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read_picture(encode(grey, kind)), expected)
    bgr = np.uint16([[[0, 0x1234, 0xFFFF], [0xFFFF, 0x80FF, 1]]])
    for suffix in (".png", ".tiff"):
        content = cv2.imencode(suffix, bgr)[1].tobytes()
        np.testing.assert_array_equal(read_picture(content), (bgr >> 8)[..., ::-1])


def test_cmyk_jpeg(rgb):
    cmyk = Image.fromarray(rgb).convert("CMYK")
    picture = read_picture(encode(cmyk, "JPEG", quality=95)).astype(int)
    assert np.abs(picture - rgb).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(rgb, tmp_path, orientation):
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation]
    for kind in ("JPEG", "PNG", "WEBP"):
        file = tmp_path / f"a.{kind}"
        file.write_bytes(with_orientation(rgb, orientation, kind))
        picture = read_picture(file)
        np.testing.assert_allclose(picture.astype(int), turned(rgb).astype(int), atol=12)
        assert picture_size(file) == picture.shape[:2]
        stored = read_picture(file, apply_orientation=False)
        np.testing.assert_allclose(stored.astype(int), rgb.astype(int), atol=12)
        assert picture_size(file, apply_orientation=False) == (40, 60)


def test_tags_behind_the_pixels_of_a_png(rgb, tmp_path):
    content = with_orientation(rgb, 6, "PNG")
    begin = content.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", content[begin : begin + 4])
    chunk = content[begin : begin + length + 12]
    file = tmp_path / "late.png"
    file.write_bytes(content[:begin] + content[begin + len(chunk) : -12] + chunk + content[-12:])
    assert file.read_bytes().index(b"eXIf") > file.read_bytes().index(b"IDAT")
    np.testing.assert_array_equal(read_picture(file), np.rot90(rgb, -1))
    assert picture_size(file) == (60, 40)
    assert picture_size(file, apply_orientation=False) == (40, 60)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_tiff_is_always_turned(rgb, tmp_path, orientation):
    file = tmp_path / "a.tiff"
    file.write_bytes(with_orientation(rgb, orientation, "TIFF"))
    turned = np.rot90(rgb, {3: 2, 6: -1, 8: 1}[orientation])
    for apply_orientation in (True, False):
        np.testing.assert_array_equal(read_picture(file, apply_orientation=apply_orientation), turned)
        assert picture_size(file, apply_orientation=apply_orientation) == turned.shape[:2]


def test_one_pixel():
    assert read_picture(encode(np.uint8([[[1, 2, 3]]]), "PNG")).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("WEBP", {}), ("TIFF", {}),
     ("TIFF", {"compression": "tiff_lzw"})],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated File)")
def test_truncated_is_an_error(kind, options):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    content = encode(noise, kind, **options)
    whole = read_picture(content)
    for kept in range(1, len(content) - 20, 5):
        with pytest.raises(DetkitError, match=r"^half: .*(truncated|not a picture)"):
            read_picture(content[:kept], name="half")
    for kept in range(len(content) - 20, len(content)):  # PNG: only its end mark is cut
        with contextlib.suppress(DetkitError):
            np.testing.assert_array_equal(read_picture(content[:kept]), whole)


def test_damaged_tags_and_strips_make_no_noise(rgb, tmp_path):
    jpeg = bytearray(with_orientation(rgb, 6))
    tags = jpeg.index(b"Exif\0\0") + 6
    count = tags + 9 if jpeg[tags : tags + 2] == b"MM" else tags + 8
    jpeg[count] = 90  # tags, of which there is one
    (tmp_path / "tags.jpg").write_bytes(jpeg)
    tiff = encode(rgb, "TIFF", compression="tiff_lzw")
    (tmp_path / "strips.tif").write_bytes(tiff[:8] + bytes(len(tiff[8:]) // 2) + tiff[8 + len(tiff[8:]) // 2 :])
    (tmp_path / "half.tif").write_bytes(tiff[:-30])
    code = (
        "import sys; from pathlib import Path; from detkit.data.picture import read_picture\n"
        "from detkit.errors import DetkitError\n"
        "for file in sys.argv[1:]:\n"
        "    try: print(read_picture(Path(file)).shape)\n"
        "    except DetkitError as error: print(error)\n"
    )
    files = [tmp_path / name for name in ("tags.jpg", "strips.tif", "half.tif")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 3, done.stdout


def test_multi_picture_jpeg_of_phones(rgb):
    second = Image.fromarray(rgb[::-1])
    picture = read_picture(encode(rgb, "MPO", save_all=True, append_images=[second], quality=95))
    np.testing.assert_allclose(picture.astype(int), rgb.astype(int), atol=12)


def test_not_a_picture(tmp_path):
    missing, empty, text = tmp_path / "missing.jpg", tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.write_bytes(b"")
    text.write_text("<html>not found</html>")
    for file, message in (
        (missing, r"missing\.jpg: no such file"),
        (empty, r"empty\.jpg: the file is empty"),
        (text, r"text\.jpg: is not a picture"),
        (tmp_path, r": cannot be read"),
    ):
        with pytest.raises(DetkitError, match=message):
            read_picture(file)
    with pytest.raises(DetkitError, match=r"^frame 7: is not a picture"):
        read_picture(b"\x00\x01", name="frame 7")


def test_floats_have_no_known_range():
    with pytest.raises(DetkitError, match="32-bit numbers without a known range"):
        read_picture(encode(np.float32([[0.5]]), "TIFF"), name="x.tiff")


def test_too_many_pixels_is_found_before_decoding(tmp_path):
    content = bytearray(encode(np.zeros((1, 1, 3), np.uint8), "PNG"))
    content[16:24] = struct.pack(">II", 20_000, 20_000)  # the header may claim what it likes
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    file = tmp_path / "huge.png"
    file.write_bytes(content)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(
        DetkitError, match=r"huge\.png: the picture is 20000 wide and 20000 high.*100000000 .*--max-pixels"
    ):
        read_picture(file)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert picture_size(file) == (20_000, 20_000)
    small = encode(np.zeros((10, 10, 3), np.uint8), "PNG")
    assert read_picture(small, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(DetkitError, match="more than the limit of 99"):
        read_picture(small, max_pixels=99)


def test_a_raised_limit_is_the_only_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_picture(encode(np.zeros((10, 10, 3), np.uint8), "PNG")).shape == (10, 10, 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_while_a_header_is_read_can_read(monkeypatch):
    content = encode(np.zeros((2, 3, 3), np.uint8), "PNG")
    opening = threading.Event()
    open_picture = Image.open

    def slow(*args, **options):
        opening.set()
        time.sleep(0.3)
        return open_picture(*args, **options)

    monkeypatch.setattr(Image, "open", slow)
    limit = Image.MAX_IMAGE_PIXELS
    reader = threading.Thread(target=read_picture, args=(content,))
    reader.start()
    opening.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        untouched = limit == Image.MAX_IMAGE_PIXELS
        os._exit(0 if untouched and read_picture(content).shape == (2, 3, 3) else 1)
    reader.join()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0  # −14: it waited until the alarm


def test_sample_pictures():
    assert sample_picture("astronaut").shape == (512, 512, 3)
    assert sample_picture("chelsea").shape == (300, 451, 3)
    with pytest.raises(DetkitError, match="did you mean 'astronaut'"):
        sample_picture("astronut")


def test_sample_pictures_are_files_of_the_installed_package():
    code = (
        "import sys; from detkit.data.picture import sample_picture; sample_picture('astronaut'); "
        "assert 'pooch' not in sys.modules and 'skimage' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    from importlib.metadata import files

    installed = {str(Path(file)) for file in files("scikit-image") or []}
    assert {"skimage/data/astronaut.png", "skimage/data/chelsea.png"} <= installed
