import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from boxless.data.annotations.select import chosen_rows, fingerprint, joined, listed_rows
from boxless.data.annotations.types import LabelledData, LabelledImage
from boxless.errors import UserError
from boxless.evaluation.average_precision import check_federated


def labelled(ids, empty=(), crowd=(), classes=("cat", "dog"), name="here"):
    images = []
    for number in ids:
        objects = 0 if number in empty else 1
        images.append(
            LabelledImage(
                Path(f"/data/{name}/image-{number}.jpg"),
                number,
                8,
                8,
                np.zeros((objects, 4), np.float32),
                np.zeros(objects, np.int64),
                np.full(objects, number in crowd),
            )
        )
    return LabelledData(name, classes, tuple(range(1, len(classes) + 1)), tuple(images))


def ids_of(data, rows):
    return [data.images[row].image_id for row in rows]


def test_random_shares_of_one_seed_hold_each_other():
    data = labelled(range(100, 300))
    shares = [set(chosen_rows(data, "random", share, None, 3)) for share in (0.01, 0.02, 0.05, 0.1, 0.5, 1.0)]
    assert [len(share) for share in shares] == [2, 4, 10, 20, 100, 200]
    assert all(small < large for small, large in pairwise(shares))
    assert shares[2] == set(chosen_rows(data, "random", 1.0, 10, 3)) != set(chosen_rows(data, "random", 0.05, None, 4))


def test_the_first_by_image_id_of_those_with_objects():
    data = labelled([30, 2, 100, 9, 11, 7], empty=[2], crowd=[9])
    assert sorted(ids_of(data, chosen_rows(data, "first", 0.5, None, 1))) == [7, 11]  # by number, not as text
    assert sorted(ids_of(data, chosen_rows(data, "first", 0.74, None, 2))) == [7, 11]  # 2.96 is cut off
    assert sorted(ids_of(data, chosen_rows(data, "first", 1, 3, 2))) == [7, 11, 30]
    with pytest.raises(UserError, match=r"label_count: 5; expected 1 to 4"):
        chosen_rows(data, "first", 1, 5, 0)
    named = labelled(["b", "a", "c"])
    assert ids_of(named, chosen_rows(named, "first", 1, 2, 0)) == ["b", "a"]  # rows stay in the data's order


def test_lists_of_images(tmp_path):
    data = labelled([30, 2, 100])
    forms = {
        "ids.txt": "100\n\n 30\n100\n",
        "names.txt": "train2017/image-100.jpg\nimage-30.jpg\n",
        "labels.json": json.dumps({"classes": ["cat"], "images": [30, 100]}),
        "coco.json": json.dumps({"images": [{"id": 100}, {"id": 30}], "annotations": []}),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert listed_rows(data, tmp_path / name) == [0, 2], name
    wrong = {
        "unknown.txt": ("30\n77\n", "1 of its 2 images are not in here, as 77"),
        "empty.txt": ("\n", "names no image"),
        "broken.json": ("{", "expected a run's labels.json"),
    }
    for name, (text, message) in wrong.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            listed_rows(data, tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        listed_rows(data, tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("file_name", "row"),
    [
        ("a.jpg", 0),
        ("cam1/a.jpg", 1),
        ("./cam2/a.jpg", 2),
        ("/data/set/cam2/a.jpg", 2),
        ("set/cam1/a.jpg", 1),
        ("/another/machine/b.jpg", 3),
        (None, 3),
        ("deep/a.jpg", "label_list .*: deep/a.jpg is the name of several images; give their ids"),
        ("z.jpg", "label_list .*: 1 of its 1 images are not in here, as z.jpg"),
    ],
)
def test_the_file_name_decides_where_ids_are_counted_anew(tmp_path, file_name, row):
    images = labelled([1, 2, 3, 4])
    places = ["a.jpg", "cam1/a.jpg", "cam2/a.jpg", "cam2/b.jpg"]
    paths = [replace(i, path=Path("/data/set", place)) for i, place in zip(images.images, places, strict=True)]
    file = tmp_path / "few.json"
    file.write_text(json.dumps({"images": [{"id": 4} if file_name is None else {"id": 4, "file_name": file_name}]}))
    if isinstance(row, int):
        assert listed_rows(replace(images, images=tuple(paths)), file) == [row]
    else:
        with pytest.raises(UserError, match=row):
            listed_rows(replace(images, images=tuple(paths)), file)


def test_the_fingerprint_says_which_images_whatever_their_order():
    data = labelled([30, 2, 100])
    expected = hashlib.sha256(b"100\n2\n30\n").hexdigest()
    assert fingerprint(data.images) == fingerprint(data.images[::-1]) == expected != fingerprint(data.images[:2])


def test_sets_that_do_not_agree_are_refused_and_ids_stay_unique():
    one, two = labelled([1, 2], name="one"), labelled([2, 3], name="two", classes=("dog", "cat"))
    both = joined([one, two], union=False)
    assert both.classes == ("cat", "dog") and both.category_ids == (1, 2) and both.origin == "one + two"
    assert [image.image_id for image in both.images] == ["1/1", "1/2", "2/2", "2/3"]
    assert [image.labels.tolist() for image in both.images] == [[0], [0], [1], [1]]
    assert [image.image_id for image in joined([one, labelled([3], name="x")], False).images] == [1, 2, 3]
    with pytest.raises(UserError, match="three: its classes are not those of one; only one of them has: bird, dog"):
        joined([one, labelled([4], name="three", classes=("cat", "bird"))], union=False)
    union = joined([one, labelled([4], name="three", classes=("bird", "cat"))], union=True)
    assert union.classes == ("bird", "cat", "dog")
    assert [image.labels.tolist() for image in union.images] == [[1], [1], [0]]
    with pytest.raises(UserError, match=r"image-2.jpg: is in both one and again"):
        joined([one, replace(one.subset([1]), origin="again")], union=False)


def test_joined_lvis_sets_are_lvis_in_the_classes_of_all():
    def lvis(number, name, classes, frequencies):
        data = labelled([number], name=name, classes=classes)  # an object of the first class
        (image,) = data.images
        return replace(data, images=(replace(image, negative=(1,), not_exhaustive=(0,)),), frequencies=frequencies)

    one, two = lvis(1, "one", ("cat", "dog"), ("r", "f")), lvis(2, "two", ("dog", "cat"), ("f", "r"))
    both = joined([one, two], union=False)
    check_federated(both)
    assert both.frequencies == ("r", "f")
    assert [(image.negative, image.not_exhaustive) for image in both.images] == [((1,), (0,)), ((0,), (1,))]
    coco = both.as_coco()
    assert [image["neg_category_ids"] for image in coco["images"]] == [[2], [1]]
    assert {category["name"]: category["frequency"] for category in coco["categories"]} == {"cat": "r", "dog": "f"}
    union = joined([one, lvis(2, "two", ("emu", "cat"), ("c", ""))], union=True)  # a group of its own, and one unknown
    assert union.classes == ("cat", "dog", "emu") and union.frequencies == ("r", "f", "c")
    assert [image.negative for image in union.images] == [(1,), (0,)]
    assert joined([one, replace(two, frequencies=())], union=False).frequencies == ()  # what is not in it is not LVIS's
    with pytest.raises(UserError, match="two: class dog has frequency c, but f in one"):
        joined([one, replace(two, frequencies=("c", "r"))], union=False)
