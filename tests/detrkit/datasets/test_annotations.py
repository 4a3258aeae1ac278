"""Annotation files that are meant well: whatever they lack, evaluators read them as they are meant."""

import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_lvis_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detrkit.datasets import normalised, register_coco
from detrkit.datasets.annotations import annotation_problem, annotations_explained, normalise, original_ids
from detrkit.datasets.registration import number_classes

SIDE = 256  # pixels, of all images here
NAMES = ("cat", "dog", "eel", "fox")
EVALUATORS = pytest.mark.parametrize("fast", [False, True], ids=["pycocotools", "fast"])


@pytest.fixture(autouse=True)
def registrations():
    """Takes away what a test registers."""
    before = set(DatasetCatalog.list())
    yield
    forget(set(DatasetCatalog.list()) - before)


def forget(names):
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def coco(*objects, classes=NAMES[:3], images=3, **more):
    """`(image, class, box)` as the content of an annotation file; images and classes by their place, ids from 1."""
    return {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(images)],
        "annotations": [
            {
                "id": number,
                "image_id": image + 1,
                "category_id": classes.index(name) + 1,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, (image, name, box) in enumerate(objects, 1)
        ],
        "categories": [{"id": place + 1, "name": name} for place, name in enumerate(classes)],
        **more,
    }


OBJECTS = (
    (0, "cat", (10, 20, 30, 40)),
    (0, "dog", (60, 20, 100, 120)),
    (1, "dog", (5, 5, 12, 12)),
    (1, "eel", (100, 100, 99, 98)),
    (2, "cat", (1, 2, 3, 4)),
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def perfect(name, objects, outputs, fast, folder=None):
    """COCOEvaluator's results for the ground truth as detections of a model with these outputs, by file name."""
    images = DatasetCatalog.get(name)
    evaluator = COCOEvaluator(name, distributed=False, output_dir=folder, use_fast_impl=fast)
    evaluator.reset()
    for image in images:
        found = [o for o in objects if f"{o[0]}.png" == os.path.basename(image["file_name"])]
        corners = torch.tensor([[x, y, x + w, y + h] for _, _, (x, y, w, h) in found], dtype=torch.float32)
        instances = Instances((SIDE, SIDE), pred_boxes=Boxes(corners.reshape(-1, 4)))
        instances.scores = torch.full((len(found),), 0.9)
        instances.pred_classes = torch.tensor([outputs.index(o[1]) for o in found], dtype=torch.int64)
        evaluator.process([image], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def assert_perfect(results, objects=OBJECTS):
    assert math.isnan(results["AP"]) is (not objects)
    for metric, value in results.items():
        assert math.isnan(value) or value == pytest.approx(100, abs=1e-6), (metric, results)


# --- evaluation ------------------------------------------------------------------------------------------------------


def each(change):
    """A change of each annotation, by its place."""

    def apply(content):
        for place, annotation in enumerate(content["annotations"]):
            change(annotation, place)

    return apply


def drop(part, key):
    def apply(content):
        for entry in content[part]:
            del entry[key]

    return apply


def rename(part, to, reference):
    """Ids of images or categories, and the annotations' references to them."""

    def apply(content):
        for entry in content[part]:
            entry["id"] = to(entry["id"])
        for annotation in content["annotations"]:
            annotation[reference] = to(annotation[reference])

    return apply


UNUSUAL = {
    "annotation ids from 0": each(lambda a, place: a.update(id=place)),
    "annotation ids anew in each image": each(lambda a, place: a.update(id=a["category_id"])),
    "all annotation ids 0": each(lambda a, place: a.update(id=0)),
    "annotation ids below 0": each(lambda a, place: a.update(id=-1 - place)),
    "annotation ids as text": each(lambda a, place: a.update(id=f"a{place}")),
    "annotation ids as floats": each(lambda a, place: a.update(id=place + 0.5)),
    "no annotation ids": drop("annotations", "id"),
    "no area": drop("annotations", "area"),
    "area 0": each(lambda a, place: a.update(area=0)),
    "area null": each(lambda a, place: a.update(area=None)),
    "area below 0": each(lambda a, place: a.update(area=-5)),
    "no iscrowd": drop("annotations", "iscrowd"),
    "iscrowd true or false": each(lambda a, place: a.update(iscrowd=False)),
    "iscrowd as text": each(lambda a, place: a.update(iscrowd="0" if place % 2 else "false")),
    "neither area nor iscrowd": each(lambda a, place: [a.pop("area"), a.pop("iscrowd")]),
    "boxes as text": each(lambda a, place: a.update(bbox=[f"{value}.0" for value in a["bbox"]])),
    "image ids as text": rename("images", lambda id_: f"frame_{id_:05d}", "image_id"),
    "image ids as numbers in text": rename("images", str, "image_id"),
    "image ids as floats": rename("images", float, "image_id"),
    "image ids from 0": rename("images", lambda id_: id_ - 1, "image_id"),
    "images by number, annotations by text": each(lambda a, place: a.update(image_id=f"{a['image_id']:04d}")),
    "category ids as text": rename("categories", lambda id_: f"c{9 - id_}", "category_id"),
    "category ids as floats": rename("categories", float, "category_id"),
    "category ids from 0": rename("categories", lambda id_: id_ - 1, "category_id"),
    "category ids with gaps": rename("categories", lambda id_: 90 - 7 * id_, "category_id"),
    "sizes as text": lambda content: [i.update(width=str(SIDE), height=float(SIDE)) for i in content["images"]],
    "polygons that are none": each(lambda a, place: a.update(segmentation=[[1, 2, 3, 4]])),
    "ignore": each(lambda a, place: a.update(ignore=0)),
}


@EVALUATORS
@pytest.mark.parametrize("kind", UNUSUAL)
def test_perfect_detections_reach_100(tmp_path, kind, fast):
    """On files as tools write them. Without an error, a wrong number of this kind is never found."""
    content = coco(*OBJECTS)
    UNUSUAL[kind](content)
    register_coco("unusual", write(tmp_path / "a.json", content), tmp_path)
    outputs = NAMES[:3]
    number_classes("unusual", outputs)
    assert_perfect(perfect("unusual", OBJECTS, outputs, fast))


@EVALUATORS
def test_areas_that_are_filled_in_sort_objects_by_size(tmp_path, fast):
    """An area of 0 would make each object a small one."""
    content = coco(*OBJECTS)
    UNUSUAL["area 0"](content)
    register_coco("sized", write(tmp_path / "a.json", content), tmp_path)
    outputs = list(NAMES[:3])
    large = [o for o in OBJECTS if o[2][2] * o[2][3] > 96**2]
    results = perfect("sized", large, outputs, fast)
    assert results["APl"] == pytest.approx(100) and results["APs"] == 0


@EVALUATORS
def test_boxes_of_polygons(tmp_path, fast):
    """Objects with an outline and no box are objects, as polygons or as a mask; the outline given flat too."""
    content = coco(*OBJECTS)
    for place, annotation in enumerate(content["annotations"]):
        x, y, w, h = annotation["bbox"]
        outline = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotation["segmentation"] = outline if place == 1 else [outline]
        if place % 2:
            del annotation["bbox"]
        else:
            annotation["bbox"] = [] if place else [0, 0, 0, 0]
    x, y, w, h = OBJECTS[3][2]
    column = [h, SIDE - h]
    counts = [x * SIDE + y, *column * (w - 1), h, SIDE * SIDE - (x + w - 1) * SIDE - y - h]
    content["annotations"][3]["segmentation"] = {"counts": counts, "size": [SIDE, SIDE]}
    register_coco("outlined", write(tmp_path / "a.json", content), tmp_path)
    images = DatasetCatalog.get("outlined")
    assert [o["bbox"] for image in images for o in image["annotations"]] == [list(o[2]) for o in OBJECTS]
    assert_perfect(perfect("outlined", OBJECTS, list(NAMES[:3]), fast))


@EVALUATORS
def test_an_image_entry_for_each_object(tmp_path, fast):
    """The objects of one image count together, and those that each entry repeats count once."""
    content = coco(*OBJECTS, images=0)
    for place, annotation in enumerate(content["annotations"]):
        size = {"width": SIDE, "height": SIDE}
        content["images"].append({"id": 10 + place, "file_name": f"{annotation['image_id'] - 1}.png", **size})
        annotation["image_id"] = 10 + place
    content["annotations"].append({**content["annotations"][0], "image_id": 11})
    register_coco("entries", write(tmp_path / "a.json", content), tmp_path)
    images = DatasetCatalog.get("entries")
    assert [len(image["annotations"]) for image in images] == [2, 2, 1]
    assert_perfect(perfect("entries", OBJECTS, list(NAMES[:3]), fast))


@EVALUATORS
def test_crowds_stay_crowds(tmp_path, fast):
    """`ignore`, which detectron2 refuses, and `iscrowd` in any form are left out of training and of the figures."""
    content = coco(*OBJECTS)
    for place, crowd in enumerate(({"ignore": 1}, {"iscrowd": True}, {"iscrowd": "1"})):
        content["annotations"][place].update(crowd)
    register_coco("crowded", write(tmp_path / "a.json", content), tmp_path)
    crowds = [o["iscrowd"] for image in DatasetCatalog.get("crowded") for o in image["annotations"]]
    assert crowds == [1, 1, 1, 0, 0]
    assert_perfect(perfect("crowded", OBJECTS[3:], list(NAMES[:3]), fast))


@st.composite
def datasets(draw):
    """Objects, the content of an annotation file that means them, and the names of a model's outputs."""
    classes = draw(st.permutations(NAMES))[: draw(st.integers(1, 4))]
    count = draw(st.integers(1, 3))
    quarter = st.integers(1, 4 * 100).map(lambda value: value / 4)
    box = st.tuples(quarter, quarter, st.integers(2, 150), st.one_of(st.integers(1, 150), quarter))
    objects = draw(st.lists(st.tuples(st.integers(0, count - 1), st.sampled_from(classes), box), max_size=8))
    content = coco(*objects, classes=classes, images=count)

    def new_ids(number):
        numbers = draw(st.lists(st.integers(-3, 2**40), min_size=number, max_size=number, unique=True))
        form = draw(st.sampled_from([int, float, str, lambda n: f"id_{n}", lambda n: f"{n}.jpg"]))
        return [form(value) for value in numbers]

    for part, reference in (("images", "image_id"), ("categories", "category_id")):
        ids = new_ids(len(content[part]))
        rename(part, lambda id_, ids=ids: ids[id_ - 1], reference)(content)
        content[part] = draw(st.permutations(content[part]))
    crowds = draw(st.lists(st.booleans(), min_size=len(objects), max_size=len(objects)))
    number = draw(st.sampled_from([int, lambda n: n // 2, lambda n: 0, str, float, lambda n: -n, lambda n: None]))
    for place, (annotation, crowd) in enumerate(zip(content["annotations"], crowds, strict=True)):
        annotation["id"] = number(place)
        if not draw(st.integers(0, 3)):
            del annotation["id"]
        annotation["iscrowd"] = draw(st.sampled_from([1, True, "1"] if crowd else [0, False, "0", None]))
        if not crowd and draw(st.booleans()):
            del annotation["iscrowd"]
        area = draw(st.sampled_from(["right", "missing", 0, None, -1, "large", float(annotation["area"])]))
        if area == "missing":
            del annotation["area"]
        elif area != "right":
            annotation["area"] = area
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = draw(st.sampled_from([[], [[x, y, x + w, y, x + w, y + h, x, y + h]], [[x, y]]]))
        if annotation["segmentation"] and len(annotation["segmentation"][0]) == 8 and draw(st.booleans()):
            annotation["bbox"] = draw(st.sampled_from([None, [], [0, 0, 0, 0]]))
    if draw(st.booleans()):
        content["annotations"] = draw(st.permutations(content["annotations"]))
    more = [name for name in NAMES if name not in classes] if draw(st.booleans()) else []
    outputs = draw(st.permutations([*classes, *more]))
    return [o for o, crowd in zip(objects, crowds, strict=True) if not crowd], content, outputs


@pytest.mark.parametrize("examples", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_perfect_detections_reach_100_on_any_dataset(tmp_path, examples):
    """Any ids of images, annotations and classes, any order of classes, any areas and crowds, with both evaluators."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(datasets())
    def holds(drawn):
        objects, content, outputs = drawn
        file = write(tmp_path / "any.json", content)
        register_coco("any", file, tmp_path)
        number_classes("any", outputs)
        assert MetadataCatalog.get("any").thing_classes == outputs
        for fast in (False, True):
            assert_perfect(perfect("any", objects, outputs, fast), objects)
        forget(["any"])

    holds()


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_sound_file_stays_where_it_is(tmp_path):
    """No copy, and the content object itself: reading COCO must not cost more than it did."""
    content = coco(*OBJECTS)
    assert normalise(content)[0] is content
    file = write(tmp_path / "a.json", content)
    register_coco("sound", file, tmp_path)
    assert MetadataCatalog.get("sound").json_file == str(file)


def test_the_users_file_is_never_written(tmp_path):
    content = coco(*OBJECTS)
    UNUSUAL["all annotation ids 0"](content)
    file = write(tmp_path / "a.json", content)
    before = file.read_bytes()
    register_coco("untouched", file, tmp_path)
    copy = Path(MetadataCatalog.get("untouched").json_file)
    assert copy != file and file.read_bytes() == before
    assert [a["id"] for a in json.loads(copy.read_text())["annotations"]] == [1, 2, 3, 4, 5]


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    """A large file takes half a minute to read, and each command registers it. A changed file is read again."""
    reads = []
    read = normalised.read_annotations
    monkeypatch.setattr(normalised, "read_annotations", lambda path: reads.append(path) or read(path))
    content = coco(*OBJECTS)
    UNUSUAL["no area"](content)
    file = write(tmp_path / "a.json", content)
    os.utime(file, (time.time() - 100,) * 2)
    first = normalised.normalised_file(file, tmp_path)
    monkeypatch.setattr(normalised, "_recalled", {})  # as in another process
    assert normalised.normalised_file(file, tmp_path) == first and len(reads) == 1
    Path(first.path).unlink()
    assert normalised.normalised_file(file, tmp_path) == first and len(reads) == 2
    write(file, coco(*OBJECTS[:2]))
    assert normalised.normalised_file(file, tmp_path).objects == 2


def test_registration_follows_a_file_that_changes(tmp_path):
    """A notebook registers a name again after its labels were corrected."""
    file = write(tmp_path / "a.json", coco(*OBJECTS, classes=("cat", "dog", "eel")))
    register_coco("followed", file, tmp_path)
    assert len(DatasetCatalog.get("followed")) == 3
    write(file, coco((0, "fox", (1, 1, 5, 5)), classes=("fox",), images=1))
    register_coco("followed", file, tmp_path)
    assert len(DatasetCatalog.get("followed")) == 1 and MetadataCatalog.get("followed").thing_classes == ["fox"]
    register_coco("followed", file, tmp_path / "elsewhere")
    assert MetadataCatalog.get("followed").image_root == str(tmp_path / "elsewhere")


def test_several_processes_share_the_copies(tmp_path):
    """Each rank of a run registers the dataset at the same moment; a copy is whole or not there."""
    content = coco(*OBJECTS * 400)
    UNUSUAL["all annotation ids 0"](content)
    files = [write(tmp_path / f"{n}.json", content) for n in range(4)]

    def check(file):
        found = normalised.normalised_file(file, tmp_path)
        return len({a["id"] for a in json.loads(Path(found.path).read_text())["annotations"]})

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(check, files * 4)) == {2000}
    assert not list(Path(os.environ[normalised.CACHE]).rglob("*.tmp"))


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """On clusters the home folder may be read-only: a folder of the process takes its place."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(normalised.CACHE, str(tmp_path / "file"))
    content = coco(*OBJECTS)
    UNUSUAL["no area"](content)
    found = normalised.normalised_file(write(tmp_path / "a.json", content), tmp_path)
    assert Path(found.path).is_file() and not found.path.startswith(str(tmp_path / "file"))


def test_sizes_and_names_come_from_the_images(tmp_path):
    """Sizes upright, as training reads images; `\\` for `/`, as tools on Windows write it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "sub/0.jpg", exif=exif)
    content = coco((0, "cat", (1, 1, 5, 5)), images=1)
    content["images"] = [{"id": 1, "file_name": "sub\\0.jpg"}]
    register_coco("read", write(tmp_path / "a.json", content), tmp_path)
    (image,) = DatasetCatalog.get("read")
    assert (image["width"], image["height"]) == (20, 30) and Path(image["file_name"]).is_file()


def test_test_images_without_annotations(tmp_path):
    """As COCO's image_info_test-dev2017.json: loaded, and evaluated without figures, with a file of detections."""
    content = coco(images=2)
    del content["annotations"]
    register_coco("unlabelled", write(tmp_path / "a.json", content), tmp_path)
    images = DatasetCatalog.get("unlabelled")
    assert [image["annotations"] for image in images] == [[], []]
    evaluator = COCOEvaluator("unlabelled", distributed=False, output_dir=str(tmp_path))
    evaluator.reset()
    found = Instances((SIDE, SIDE), pred_boxes=Boxes(torch.tensor([[1.0, 2, 30, 40]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([2])
    for image in images:
        evaluator.process([image], [{"instances": found}])
    assert not evaluator.evaluate()
    entries = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [(e["image_id"], e["category_id"]) for e in entries] == [(1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["annotations"][1].update(bbox=[1, 2, "x", 4]), "annotations[1] has bbox [1, 2, 'x', 4], not x, y"),
        (lambda c: c["annotations"][1].pop("bbox"), "annotations[1] has no bbox"),
        (lambda c: c["annotations"][0].update(category_id=9), "annotations[0] has category_id 9, which its"),
        (lambda c: c["annotations"][0].update(iscrowd="yes"), "annotations[0] has iscrowd 'yes', not 0 or 1"),
        (lambda c: c["annotations"][0].update(image_id=[1]), "annotations[0] has image_id [1], not a number or a text"),
        (lambda c: c["annotations"].append(3), "annotations[5] is 3, not a mapping"),
        (lambda c: c["images"][2].update(id=1), "images[2] has id 1, as an entry before it"),
        (lambda c: c["images"][0].update(width=0, height=None), "images[0] has no size, and"),
        (lambda c: c["images"][0].update(width=-4), "images[0] has width -4, not a number of pixels"),
        (lambda c: c["images"][0].pop("file_name"), "images[0] has no file_name"),
        (lambda c: c["categories"][1].update(id=1), "categories[1] has id 1, as an entry before it"),
        (lambda c: c["categories"][0].update(name=["a"]), "categories[0] has name ['a'], not a text"),
        (lambda c: c["categories"][0].pop("name"), "categories[0] has no name"),
        (lambda c: c.update(annotations={}), "it has no list of annotations"),
        (lambda c: c.pop("categories"), "it has no list of categories"),
    ],
)
def test_what_cannot_be_mended_is_named(tmp_path, change, said):
    """What has more than one meaning is an error in one line: the file, the entry, its value, what it should be."""
    content = coco(*OBJECTS)
    change(content)
    file = write(tmp_path / "a.json", content)
    problem = annotation_problem(file, tmp_path)
    assert said in problem and str(file) in problem and "\n" not in problem
    register_coco("wrong", file, tmp_path)  # a config may name more datasets than a command uses
    assert MetadataCatalog.get("wrong").json_file == str(file)


def test_objects_that_nothing_can_be_learnt_from_are_left_out(tmp_path):
    """Boxes without area, which no detection matches, and annotations of images that are not listed."""
    content = coco(*OBJECTS, (0, "cat", (3, 3, 0, 9)), (0, "cat", (3, 3, 4, -1)))
    content["annotations"].append({**content["annotations"][0], "id": 99, "image_id": 77})
    sound, changes = normalise(content)
    assert len(sound["annotations"]) == len(OBJECTS)
    assert changes["boxes without area left out"] == 2
    assert changes["annotations of images that are not listed left out"] == 1


def test_the_original_ids_are_kept():
    """Results go back to the user's ids; classes that the user's file lacks have none."""
    content = coco(*OBJECTS[:1], classes=("dog", "cat"), images=2)
    rename("images", lambda id_: f"frame_{id_}", "image_id")(content)
    sound, _ = normalise(content, classes=["cat", "dog", "eel"])
    assert original_ids(sound, "images") == {1: "frame_1", 2: "frame_2"}
    assert original_ids(sound, "categories") == {1: 2, 2: 1}
    assert original_ids(coco(*OBJECTS), "images") is None


@pytest.mark.engine("detectron2's own evaluator needs what register_coco fills in")
@EVALUATORS
def test_the_engines_evaluator_needs_no_normalised_file(tmp_path, fast):
    """Registered by detectron2's function, a file with ids from 0 and without areas gives the right figures too."""
    content = coco(*OBJECTS)
    UNUSUAL["annotation ids from 0"](content)
    UNUSUAL["neither area nor iscrowd"](content)
    register_coco_instances("plain", {}, str(write(tmp_path / "a.json", content)), str(tmp_path))
    assert_perfect(perfect("plain", OBJECTS, list(NAMES[:3]), fast))


@pytest.mark.engine("detectron2 has a fast evaluator of its own, always there")
def test_an_optional_package_changes_nothing(tmp_path, monkeypatch):
    """Without faster-coco-eval the default evaluator gives the same results on a file without area and iscrowd."""
    content = coco(*OBJECTS)
    UNUSUAL["neither area nor iscrowd"](content)
    UNUSUAL["all annotation ids 0"](content)
    register_coco("either", write(tmp_path / "a.json", content), tmp_path)
    some = OBJECTS[:3]
    results = perfect("either", some, list(NAMES[:3]), True)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    without = perfect("either", some, list(NAMES[:3]), True)
    assert without.keys() == results.keys() and 0 < without["AP"] < 100
    assert all(math.isclose(without[key], results[key]) or math.isnan(results[key]) for key in results)


def test_files_of_lvis_are_not_judged_as_cocos(tmp_path):
    """They have coco_url in place of file_name: an error in the block stays what it is."""
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps({"images": [{"id": 1, "coco_url": "a/b/1.jpg"}], "annotations": [], "categories": []}))
    register_lvis_instances(f"lvis_{tmp_path.name}", {}, str(path), str(tmp_path))
    with pytest.raises(KeyError, match="the cause"), annotations_explained(f"lvis_{tmp_path.name}"):
        raise KeyError("the cause")
