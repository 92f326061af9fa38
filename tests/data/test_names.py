import time

import pytest

from detkit.data.names import ALIASES, CLASS_LISTS, class_names, match_classes
from detkit.errors import DetkitError


def test_lists():
    assert len(CLASS_LISTS["coco"]) == len(set(CLASS_LISTS["coco"])) == 80
    assert len(CLASS_LISTS["voc"]) == len(set(CLASS_LISTS["voc"])) == 20
    assert all(coco in CLASS_LISTS["coco"] and voc in CLASS_LISTS["voc"] for coco, voc in ALIASES)


def test_lists_are_those_of_the_real_files(shared):
    import json

    tree = json.loads((shared / "coco_subset/annotations/instances_val2017.json").read_bytes())
    assert CLASS_LISTS["coco"] == tuple(category["name"] for category in tree["categories"])
    assert CLASS_LISTS["voc"] == tuple((shared / "voc2012_sample100/voc.names").read_text().split())


def test_every_voc_class_is_a_coco_class():
    match = match_classes(CLASS_LISTS["coco"], CLASS_LISTS["voc"])
    assert None not in match.to_model
    assert [CLASS_LISTS["coco"][label] for label in match.to_model[:3]] == ["airplane", "bicycle", "bird"]
    assert len(set(match.to_model)) == 20
    aliases, unused = match.lines
    assert aliases.startswith("classes matched by another spelling (data = model): aeroplane = airplane, ")
    assert aliases.count(", ") == 5
    assert "tvmonitor = tv" in aliases
    assert unused.startswith("60 of 80 classes of the model are not in the data: truck, traffic light")


def test_darknets_spelling_of_coco(shared):
    darknet = (shared / "weights/yolo-fastest-1.1").glob("*.names")
    names = next(iter(darknet)).read_text().strip().splitlines()
    assert match_classes(names, CLASS_LISTS["coco"]).to_model == tuple(range(80))


def test_unmatched_classes_are_named_on_both_sides():
    match = match_classes(["cat", "dog"], ["dog", "raccoon"])
    assert match.to_model == (1, None)
    assert match.lines == [
        "1 of 2 classes of the data are unknown to the model: raccoon",
        "1 of 2 classes of the model are not in the data: cat",
    ]
    assert match_classes(["a"], ["a"]).lines == []


def test_an_exact_name_goes_before_an_alias():
    assert match_classes(["tv"], ["tvmonitor", "tv"]).to_model == (None, 0)
    assert match_classes(["tv", "tvmonitor"], ["tvmonitor", "tv"]).to_model == (1, 0)


def test_class_names():
    assert class_names("voc")[0] == "aeroplane"
    assert class_names(["b", "a"]) == ("b", "a")
    with pytest.raises(DetkitError, match="did you mean 'coco'"):
        class_names("cocoo")
    with pytest.raises(DetkitError, match="'a' stands twice"):
        class_names(["a", "b", "a"])


def test_a_name_that_stands_twice_is_found_among_many():
    names = [str(number) for number in range(30_000)]
    begin = time.process_time()
    with pytest.raises(DetkitError, match="'29999' stands twice"):
        class_names([*names, "29999"])
    assert time.process_time() - begin < 1  # by comparing all pairs it took many seconds
    with pytest.raises(DetkitError, match="is empty"):
        class_names([])
