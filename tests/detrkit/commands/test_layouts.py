"""Datasets as annotation tools and public archives lay them out, by the command that people type."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detrkit.commands import convert as tool
from detrkit.datasets import convert_dataset

ROOT = Path(__file__).resolve().parents[3]
SIZE = WIDTH, HEIGHT = (40, 30)


@dataclass(frozen=True)
class Shape:
    """An object: class, and left, top, right, bottom in pixels."""

    name: str
    left: int
    top: int
    right: int
    bottom: int

    @property
    def corners(self):
        return self.left, self.top, self.right, self.bottom


# By the stem of the image's file; "empty" is background.
OBJECTS = {
    "a": [Shape("cat", 4, 5, 20, 25), Shape("Käfer", 0, 0, 10, 10)],
    "b": [Shape("Käfer", 8, 6, 30, 28)],
    "empty": [],
}
EXPECTED = {
    (stem, shape.name, (shape.left, shape.top, shape.right - shape.left, shape.bottom - shape.top))
    for stem, shapes in OBJECTS.items()
    for shape in shapes
}


def image(path, size=SIZE, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def images(folder, suffix=".png", stems=tuple(OBJECTS)):
    for stem in stems:
        image(folder / f"{stem}{suffix}")


def rows(conversion):
    """{(stem of the image, class, x, y, width and height)} of all splits."""
    found = set()
    for content in conversion.contents.values():
        names = {c["id"]: c["name"] for c in content["categories"]}
        stems = {i["id"]: Path(i["file_name"]).stem for i in content["images"]}
        found |= {
            (stems[a["image_id"]], names[a["category_id"]], tuple(round(v) for v in a["bbox"]))
            for a in content["annotations"]
        }
    return found


@pytest.fixture
def convert(tmp_path):
    return lambda source, **options: convert_dataset(source, tmp_path / "out", force=True, **options)


# ---- Writers, a layout each. ----


def voc_xml(stem, shapes, suffix=".png", filename=None):
    boxes = "".join(
        f"<object><name>{s.name}</name><bndbox><xmin>{s.left + 1}</xmin><ymin>{s.top + 1}</ymin>"
        f"<xmax>{s.right}</xmax><ymax>{s.bottom}</ymax></bndbox></object>"
        for s in shapes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename or stem + suffix}</filename>{size}{boxes}</annotation>"


def voc_folders(annotation_folder, image_folder, suffix=".png"):
    def build(root):
        images(root / image_folder, suffix)
        for stem, shapes in OBJECTS.items():
            write(root / annotation_folder / f"{stem}.xml", voc_xml(stem, shapes, suffix))

    return build


def voc_with_environment(root):
    voc_folders("annots", "images")(root)
    write(root / "environment.yml", "name: detector\nchannels: [defaults]\ndependencies: [python]\n")
    write(root / ".idea/workspace.xml", "<project/>")
    write(root / "pom.xml", "<project/>")


def voc_of_pets(root):
    """Oxford-IIIT Pet: masks of the same names lie nearer to the XML files than the images."""
    images(root / "images", ".jpg")
    for stem, shapes in OBJECTS.items():
        write(root / "annotations/xmls" / f"{stem}.xml", voc_xml(stem, shapes, ".jpg"))
        image(root / "annotations/trimaps" / f"{stem}.png", mode="L")


def voc_with_csv(root):
    """XML files and the CSV file that a tutorial's script made of them."""
    voc_folders("annotations", "images")(root)
    tensorflow_csv(root / "data")


def voc_in_split_folders(root):
    for split, stems in {"train": ["a"], "Valid": ["b", "empty"]}.items():
        images(root / split / "images", stems=stems)
        for stem in stems:
            write(root / split / "annotations" / f"{stem}.xml", voc_xml(stem, OBJECTS[stem]))


def voc_in_lower_case(root):
    voc_folders("annotations", "jpegimages")(root)
    for split, stems in {"train": ["a"], "val": ["b", "empty"]}.items():
        write(root / "imagesets/main" / f"{split}.txt", "\n".join(stems))


def voc_in_gbk(root):
    """An encoding that Chinese tools declare; the umlaut is not in it, the XML names it by number."""
    images(root)
    for stem, shapes in OBJECTS.items():
        text = '<?xml version="1.0" encoding="gbk"?>' + voc_xml(stem, shapes).replace("ä", "&#228;") + "<!-- 猫 -->"
        write(root / f"{stem}.xml", text.encode("gbk"))


def voc_named_after_images(root):
    """a.png.xml, and file names from before the images were renamed."""
    images(root / "photos")
    for stem, shapes in OBJECTS.items():
        write(root / "xml" / f"{stem}.png.xml", voc_xml(stem, shapes, filename=f"IMG_{stem}.JPG"))


def labelme_content(stem, path=None):
    shapes = []
    for number, s in enumerate(OBJECTS[stem]):
        corners = [[s.right, s.bottom], [s.left, s.top]]  # drawn from the lower right
        shape = {"label": s.name, "points": corners, "group_id": None, "shape_type": "rectangle", "flags": {}}
        if number == 1:
            left, top, right, bottom = s.corners
            points = [[left, top], [right, (top + bottom) / 2], [left, bottom]]
            shape.update(points=points, shape_type="polygon", description="")
        shapes.append(shape)
    named = {"imagePath": path or f"{stem}.png", "imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.2.1", "flags": {}, "shapes": shapes, **named}


def labelme(root):
    images(root)
    for stem in OBJECTS:
        write(root / f"{stem}.json", json.dumps(labelme_content(stem), ensure_ascii=False))


def labelme_of_windows(root):
    """JSON files in a folder of their own, with a mark at the beginning and paths of another system."""
    images(root / "images")
    for stem in OBJECTS:
        text = json.dumps(labelme_content(stem, f"..\\images\\{stem}.png"), ensure_ascii=False)
        write(root / "labels" / f"{stem}.json", b"\xef\xbb\xbf" + text.encode())


def coco_content(file_names):
    names = ["cat", "Käfer"]
    found = [(number, shape) for number, stem in enumerate(OBJECTS) for shape in OBJECTS[stem]]
    return {
        "info": {},
        "categories": [{"id": number, "name": name, "supercategory": None} for number, name in enumerate(names)],
        "images": [
            {"id": number, "file_name": file_names(stem), "width": WIDTH, "height": HEIGHT}
            for number, stem in enumerate(OBJECTS)
        ],
        "annotations": [
            {
                "id": number, "image_id": image_id, "category_id": names.index(s.name), "iscrowd": 0,
                "bbox": [s.left, s.top, s.right - s.left, s.bottom - s.top],
            }
            for number, (image_id, s) in enumerate(found)
        ],
    }  # fmt: skip


def fiftyone_coco(root):
    images(root / "data")
    write(root / "labels.json", json.dumps(coco_content(lambda stem: f"{stem}.png")))


def coco_of_label_studio(root):
    """Paths of the server that the images were on."""
    images(root / "photographs")
    write(root / "result.json", json.dumps(coco_content(lambda stem: f"\\data\\upload\\1\\{stem}.png")))


def tensorflow_csv(folder, head="filename,width,height,class,xmin,ymin,xmax,ymax", name="{}.png", images_in=None):
    if images_in:
        images(images_in)
    lines = [head]
    for stem, shapes in OBJECTS.items():
        file = name.format(stem)
        lines += [f"{file},{WIDTH},{HEIGHT},{s.name},{','.join(map(str, s.corners))}" for s in shapes]
        if not shapes:
            lines.append(f"{file},{WIDTH},{HEIGHT},,,,,")
    write(folder / "labels.csv", "\n".join(lines))


def tensorflow_csv_of_roboflow(root):
    for split in ("train", "valid"):
        tensorflow_csv(root / split, images_in=root / split)
        (root / split / "labels.csv").rename(root / split / "_annotations.csv")


def tensorflow_csv_of_excel(root):
    tensorflow_csv(root, "Filename,Width,Height,Class,XMin,YMin,XMax,YMax", "C:\\mine\\{}.png", root / "images")
    text = (root / "labels.csv").read_text().replace(",", ";").replace("\n", "\r\n")
    write(root / "labels.csv", b"\xef\xbb\xbf" + text.encode())


def cvat_xml(subset=""):
    lines = []
    for number, (stem, shapes) in enumerate(OBJECTS.items()):
        lines.append(f'<image id="{number}" name="{stem}.png" {subset}width="{WIDTH}" height="{HEIGHT}">')
        for s in shapes[:1]:
            box = f'xtl="{s.left}" ytl="{s.top}" xbr="{s.right}" ybr="{s.bottom}"'
            lines.append(f'<box label="{s.name}" source="manual" occluded="0" {box} z_order="0">')
            lines.append('<attribute name="colour">red</attribute></box>')
        for s in shapes[1:]:
            points = f"{s.left},{s.top};{s.right},{s.top};{s.right},{s.bottom};{s.left},{s.bottom}"
            lines.append(f'<polygon label="{s.name}" source="manual" occluded="0" points="{points}" z_order="0"/>')
        lines.append("</image>")
    meta = "<meta><task><labels><label><name>cat</name></label></labels></task></meta>"
    body = "\n".join(lines)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>{meta}\n{body}\n</annotations>'
    )


def cvat(root):
    images(root / "images")
    write(root / "annotations.xml", cvat_xml())


def cvat_project(root):
    images(root / "images/Train")
    write(root / "annotations.xml", cvat_xml('subset="Train" '))


def via_regions(shapes):
    regions = []
    for number, s in enumerate(shapes):
        rect = {"name": "rect", "x": s.left, "y": s.top, "width": s.right - s.left, "height": s.bottom - s.top}
        xs, ys = [s.left, s.right, s.right], [s.top, s.top, s.bottom]
        polygon = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        attributes = {"quality": {"good": True}, "Class": s.name}
        regions.append({"shape_attributes": polygon if number else rect, "region_attributes": attributes})
    return regions


def via_content(regions=via_regions):
    return {
        f"{stem}.png1234": {"filename": f"{stem}.png", "size": 1234, "regions": regions(shapes), "file_attributes": {}}
        for stem, shapes in OBJECTS.items()
    }


def via_project(root):
    images(root / "photos")
    content = {"_via_settings": {"ui": {}, "project": {"name": "x"}}, "_via_img_metadata": via_content()}
    write(root / "via_project.json", json.dumps(content))


def via_annotations(root):
    images(root)
    write(root / "via_export.json", json.dumps(via_content()))


def via_1(root):
    """Regions by number, as in Mask R-CNN's balloons."""
    images(root / "train")
    numbered = via_content(lambda shapes: {str(i): region for i, region in enumerate(via_regions(shapes))})
    write(root / "train/via_region_data.json", json.dumps(numbered))


def via_csv(root):
    images(root)
    lines = ["#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
    for stem, shapes in OBJECTS.items():
        for number, region in enumerate(via_regions(shapes) or [{"shape_attributes": {}, "region_attributes": {}}]):
            shape, attributes = (json.dumps(region[key]).replace('"', '""') for key in region)
            lines.append(f'{stem}.png,1234,"{{}}",{len(shapes)},{number},"{shape}","{attributes}"')
    write(root / "via_export_csv.csv", "\n".join(lines))


def open_images(root, head="ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"):
    images(root / "train/data", ".jpg", ["a", "b"])
    identifiers = {"cat": "/m/01yrx", "Käfer": "/m/020jm"}
    lines = [head, "ffff0000,xclick,/m/01yrx,1,0,1,0,1,0,0,0"]
    for stem, shapes in OBJECTS.items():
        for s in shapes:
            box = f"{s.left / WIDTH},{s.right / WIDTH},{s.top / HEIGHT},{s.bottom / HEIGHT}"
            lines.append(f"{stem},xclick,{identifiers[s.name]},1,{box},0,0,0")
    write(root / "train/labels/detections.csv", "\n".join(lines))
    names = "\n".join(f"{identifier},{name}" for name, identifier in identifiers.items())
    write(root / "train/metadata/classes.csv", names)


def kitti_row(s):
    return f"{s.name} 0.00 0 -1.57 {s.left}.00 {s.top}.00 {s.right}.00 {s.bottom}.00 1.5 1.6 3.9 1.8 1.4 8.4 -1.6"


def kitti(root):
    """With the other camera's images, calibrations and a test part without labels."""
    for stem, shapes in OBJECTS.items():
        image(root / "training/image_2" / f"{stem}.png")
        image(root / "training/image_3" / f"{stem}.png")
        write(root / "training/label_2" / f"{stem}.txt", "".join(f"{kitti_row(s)}\n" for s in shapes))
        write(root / "training/calib" / f"{stem}.txt", "P0: " + "7.2e+02 " * 12)


def yolo_in_capitals(root):
    images(root / "Images/train")
    names = ["cat", "Käfer"]
    for stem, shapes in OBJECTS.items():
        rows_of_file = [
            f"{names.index(s.name)} {(s.left + s.right) / 2 / WIDTH} {(s.top + s.bottom) / 2 / HEIGHT} "
            f"{(s.right - s.left) / WIDTH} {(s.bottom - s.top) / HEIGHT}"
            for s in shapes
        ]
        write(root / "Labels/train" / f"{stem}.txt", "\n".join(rows_of_file))
    write(root / "data.yaml", "train: Images\\train\nnames: [cat, Käfer]\n")
    write(root / "hyp.yaml", "lr0: 0.01\n")


LAYOUTS = {
    "voc in annotations": voc_folders("annotations", "images"),
    "voc in capitals": voc_folders("ANNOTATIONS", "IMAGES", ".JPG"),
    "voc in labels": voc_folders("labels", "img"),
    "voc beside the images": voc_folders("", ""),
    "voc with an environment": voc_with_environment,
    "voc of pets": voc_of_pets,
    "voc with csv": voc_with_csv,
    "voc in split folders": voc_in_split_folders,
    "voc in lower case": voc_in_lower_case,
    "voc in gbk": voc_in_gbk,
    "voc named after images": voc_named_after_images,
    "labelme": labelme,
    "labelme of windows": labelme_of_windows,
    "fiftyone": fiftyone_coco,
    "label studio": coco_of_label_studio,
    "tensorflow csv": lambda root: tensorflow_csv(root, images_in=root / "photos"),
    "tensorflow csv of roboflow": tensorflow_csv_of_roboflow,
    "tensorflow csv of excel": tensorflow_csv_of_excel,
    "cvat": cvat,
    "cvat project": cvat_project,
    "via project": via_project,
    "via annotations": via_annotations,
    "via 1": via_1,
    "via csv": via_csv,
    "open images": open_images,
    "kitti": kitti,
    "yolo in capitals": yolo_in_capitals,
}
SPLITS = {
    "voc in split folders": ["train", "val"], "voc in lower case": ["train", "val"], "cvat project": ["train"],
    "tensorflow csv of roboflow": ["train", "val"], "open images": ["train"], "kitti": ["train"], "via 1": ["train"],
    "yolo in capitals": ["train"],
}  # fmt: skip
PROBLEMS = {
    "open images": {"missing images": 1},
    "voc with csv": {"TensorFlow CSV beside another layout": 1},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path, capsys, convert):
    """Protects people whose dataset is laid out in another way: the command finds out which, and loses nothing."""
    root = tmp_path / "mine"
    LAYOUTS[layout](root)
    found = convert(root)
    assert rows(found) == EXPECTED
    assert sorted(found.files) == SPLITS.get(layout, ["all"])
    counts = [len(content["images"]) for content in found.contents.values()]
    copies = 2 if layout == "tensorflow csv of roboflow" else 1
    assert sum(counts) == copies * (2 if layout == "open images" else 3)
    assert found.problems.counts == PROBLEMS.get(layout, {})
    assert found.classes == (
        ["cat", "Käfer"] if layout.startswith(("fiftyone", "label s", "yolo")) else ["Käfer", "cat"]
    )
    tool.main([str(root), "--output", str(tmp_path / "coco")])
    (line,) = re.findall(r"^objects +(.+)$", capsys.readouterr().out, re.MULTILINE)
    assert sum(map(int, line.split())) == copies * 3
    for content in found.contents.values():
        for entry in content["images"]:
            assert (found.image_root / entry["file_name"]).is_file()


def test_a_folder_around_the_dataset(tmp_path, convert):
    """Protects an archive that was unpacked into a folder of its name."""
    labelme(tmp_path / "mine/mine-1.0/data")
    assert rows(convert(tmp_path / "mine")) == EXPECTED


@pytest.mark.parametrize("layout", ["cvat", "via project", "tensorflow csv", "fiftyone"])
def test_a_single_annotation_file(layout, tmp_path, monkeypatch, convert):
    """Protects a dataset with several files: one of them can be named, by a relative path too."""
    LAYOUTS[layout](tmp_path / "mine")
    (file,) = (path for path in (tmp_path / "mine").iterdir() if path.is_file())
    assert rows(convert(file)) == EXPECTED
    beside = tmp_path / "mine/annotations" / file.name
    beside.parent.mkdir()
    file.rename(beside)
    monkeypatch.chdir(beside.parent)
    assert rows(convert(Path(file.name))) == EXPECTED


def test_several_layouts_need_a_choice(tmp_path, convert):
    """Protects from the annotations that were not meant; what is made of others gives way to them."""
    labelme(tmp_path / "mine")
    kitti(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"like labelme \(.*a.json\) and KITTI \(.*\): say which by format=labelme"):
        convert(tmp_path / "mine")
    assert rows(convert(tmp_path / "mine", format="labelme")) == EXPECTED
    assert rows(convert(tmp_path / "mine", format="kitti")) == EXPECTED
    voc_with_csv(tmp_path / "both")
    assert rows(convert(tmp_path / "both", format="tensorflow-csv")) == EXPECTED


# ---- Pairing of annotations and images. ----


def test_the_right_one_of_several_images_of_one_name(tmp_path, convert):
    """Protects a box from landing on the image of another split, or on a thumbnail; a tie is reported."""
    root = tmp_path / "mine"
    for split, size in (("train", (40, 30)), ("test", (20, 15))):
        image(root / split / "images/1.png", size)
        image(root / split / "thumbnails/1.png", (4, 3))
        write(root / split / "annotations/1.xml", voc_xml("1", OBJECTS["a"] if split == "train" else []))
    found = convert(root)
    assert [e["file_name"] for e in found.contents["train"]["images"]] == ["train/images/1.png"]
    assert [e["file_name"] for e in found.contents["test"]["images"]] == ["test/images/1.png"]
    assert found.problems.counts == {"other image size": 1}
    (root / "train/images").rename(root / "train/one"), image(root / "train/two/1.png")
    assert convert(root).problems.counts["several images of one name"] == 1


def test_images_without_annotation_are_reported(tmp_path, convert):
    """Protects from images that are silently no background: labelme and others write a file for those."""
    labelme(tmp_path / "mine")
    image(tmp_path / "mine/new.png")
    found = convert(tmp_path / "mine")
    assert rows(found) == EXPECTED and found.problems.report() == ["image without annotation: new.png: left out"]


def test_links_to_folders_are_followed(tmp_path, convert):
    """Protects images that lie on another disk, and from a link that leads back."""
    labelme(tmp_path / "elsewhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "mine", target_is_directory=True)
    write(tmp_path / "mine/readme.txt", "images are elsewhere")
    assert rows(convert(tmp_path / "mine")) == EXPECTED


# ---- What tools write besides boxes, and what is wrong. ----


def shape(kind, points, label="cat", **more):
    return {"label": label, "points": points, "shape_type": kind, **more}


def test_shapes_of_labelme(tmp_path, convert):
    """Protects circles, parts of one object, old files without a type; lines and points are no objects."""
    image(tmp_path / "m/a.png")
    shapes = [
        shape("circle", [[20, 15], [23, 19]]),
        shape("polygon", [[0, 0], [4, 0], [4, 4]], "bus", group_id=7),
        shape("polygon", [[10, 2], [14, 2], [14, 6]], "bus", group_id=7),
        {"label": "old", "points": [[1, 2], [3, 8]]},
        shape("line", [[0, 0], [9, 9]]),
        shape("point", [[5, 5]]),
        shape("rectangle", [[0, 0], ["x", 9]]),
        shape("rectangle", [[3, 3], [3, 9]]),
        shape("rectangle", [[50, 3], [60, 9]]),
        shape("rectangle", [[0, 0], [9, 9]], " "),
        "nothing",
    ]
    write(tmp_path / "m/a.json", json.dumps({**labelme_content("empty", "a.png"), "shapes": shapes}))
    write(tmp_path / "m/b.json", '{"version": "5", "shapes": [')
    write(tmp_path / "m/c.json", json.dumps(labelme_content("a", "c.json")))
    found = convert(tmp_path / "m")
    assert rows(found) == {("a", "cat", (15, 10, 10, 10)), ("a", "bus", (0, 0, 14, 6)), ("a", "old", (1, 2, 2, 6))}
    assert found.problems.counts == {
        "object without a box": 3, "object without a class": 1, "entry that is no object": 1, "box without area": 1,
        "box outside the image": 1, "broken annotation file": 1, "missing image": 1,
    }  # fmt: skip
    report = "\n".join(found.problems.report())
    assert "a.json, shapes[4] (cat): a line that encloses nothing" in report
    assert "b.json: not JSON: Expecting value: line 1 column" in report


def test_shapes_of_cvat(tmp_path, convert):
    """Protects turned boxes, ellipses, masks, cuboids and skeletons; what encloses nothing is reported by its line."""
    root = tmp_path / "m"
    image(root / "a.png")
    shapes = [
        '<box label="turned" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"/>',
        '<ellipse label="ellipse" cx="20" cy="15" rx="8" ry="3"/>',
        '<mask label="mask" rle="0,1" left="3" top="4" width="5" height="6"/>',
        '<cuboid label="cuboid" xtl1="1" ytl1="2" xbl1="1" ybl1="9" xtr2="8" ytr2="3" xbr2="8" ybr2="12"/>',
        '<skeleton label="man"><points label="1" points="5,6"/><points label="2" points="9,16"/></skeleton>',
        '<points label="cat" points="1,2"/>',
        '<polyline label="cat" points="1,2;3,4"/>',
        '<tag label="sunny"/>',
        '<box label="cat" xtl="" ytl="10" xbr="20" ybr="14"/>',
        '<box xtl="1" ytl="10" xbr="20" ybr="14"/>',
    ]
    inside = "\n".join(shapes)
    sized = 'name="a.png" width="40" height="30"'
    write(
        root / "x.xml", f"<annotations>\n<image {sized}>\n{inside}\n</image>\n<image {sized}/>\n<image/></annotations>"
    )
    found = convert(root)
    assert rows(found) == {
        ("a", "turned", (13, 7, 4, 10)), ("a", "ellipse", (12, 12, 16, 6)), ("a", "mask", (3, 4, 5, 6)),
        ("a", "cuboid", (1, 2, 7, 10)), ("a", "man", (5, 6, 4, 10)),
    }  # fmt: skip
    assert found.problems.counts == {"object without a box": 3,
        "tag of an image": 1, "object without a class": 1, "image without a name": 1}
    assert "object without a box: x.xml, line 8 (cat): points: left out" in found.problems.report()
    write(root / "x.xml", '<annotations>\n<track id="0" label="cat"><box frame="0"/></track></annotations>')
    with pytest.raises(ValueError, match=r'x.xml, line 2: it holds tracks of a video: export the task as "CVAT for im'):
        convert(root)
    write(root / "x.xml", "<annotations>\n<image>\n</annotations>")
    with pytest.raises(ValueError, match=r"annotation file .*x.xml: not XML: mismatched tag: line 3"):
        convert(root)


def test_classes_of_via(tmp_path, convert):
    """Protects ticks (an object for each class), regions without attributes, and from a guess between attributes."""
    root = tmp_path / "m"
    image(root / "a.png")
    rect = {"name": "rect", "x": 4, "y": 5, "width": 16, "height": 20}

    def regions(*attributes):
        entries = [{"shape_attributes": rect, "region_attributes": values} for values in attributes]
        write(root / "via.json", json.dumps({"a.png9": {"filename": "a.png", "size": 9, "regions": entries}}))
        return convert(root)

    box = (4, 5, 16, 20)
    assert rows(regions({"type": {"cat": True, "dog": True, "cow": False}})) == {("a", "cat", box), ("a", "dog", box)}
    found = regions({}, {})
    assert rows(found) == {("a", "object", box)} and found.problems.counts["regions without attributes"] == 1
    assert rows(convert(root, classes=["balloon"])) == {("a", "balloon", box)}
    assert rows(regions({"any": "cat"}, {"any": ""})) == {("a", "cat", box)}
    assert rows(regions({"colour": "red", "Label": "cat"})) == {("a", "cat", box)}
    with pytest.raises(ValueError, match="the regions have the attributes colour, shade, and none of them is called"):
        regions({"colour": "red", "shade": "dark"})


def test_shapes_of_via(tmp_path, convert):
    """Protects circles and turned ellipses; points and broken regions are reported by their place."""
    root = tmp_path / "m"
    image(root / "a.png")
    shapes = {
        "circle": {"name": "circle", "cx": 20, "cy": 15, "r": 5},
        "ellipse": {"name": "ellipse", "cx": 20, "cy": 15, "rx": 8, "ry": 3, "theta": 90},
        "point": {"name": "point", "cx": 2, "cy": 3},
        "broken": {"name": "rect", "x": 1},
        "lines": {"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]},
    }
    regions = [{"shape_attributes": s, "region_attributes": {"class": name}} for name, s in shapes.items()]
    content = {"a.png9": {"filename": "a.png", "regions": regions}, "b": {"filename": "gone.png"}, "c": 5}
    write(root / "via.json", json.dumps({"_via_img_metadata": content}))
    found = convert(root)
    assert rows(found) == {("a", "circle", (15, 10, 10, 10)), ("a", "ellipse", (17, 7, 6, 16))}
    assert found.problems.counts == {
        "object without a box": 3, "missing image": 1, "image without a name": 1, "image without a list of regions": 1,
    }  # fmt: skip
    assert "object without a box: via.json, a.png9, regions[2] (point): point: left out" in found.problems.report()


def test_rows_of_a_tensorflow_csv(tmp_path, convert):
    """Protects the rest from rows that are none; each is named by its line. Coordinates up to 1 are parts."""
    root = tmp_path / "m"
    images(root, stems=["a", "b"])
    lines = [
        "filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,40,30,cat,4,5,20,25", "", "a.png,40,30,cat,4,5,x,25",
        "a.png,40,30,,4,5,20,25", ",40,30,cat,4,5,20,25", "gone.png,40,30,cat,4,5,20,25", "a.png,40,30,cat,4,5,4,25",
        "a.png,40,30,dog,50,5,60,25", "a.png,40,30,dog,30,5,60,25", "b.png,80,60,dog,8,10,40,50", "a.png",
    ]  # fmt: skip
    write(root / "labels.csv", "\n".join(lines))
    found = convert(root)
    assert rows(found) == {("a", "cat", (4, 5, 16, 20)), ("a", "dog", (30, 5, 10, 20)), ("b", "dog", (4, 5, 16, 20))}
    assert found.problems.counts == {
        "object without a box": 1, "object without a class": 1, "row without an image": 1, "missing image": 1,
        "box without area": 1, "box outside the image": 1, "box partly outside the image": 1, "other image size": 1,
    }  # fmt: skip
    assert "object without a box: labels.csv, line 4 (cat): 4, 5, x, 25 are not four numbers: left out" in (
        found.problems.report()
    )
    write(root / "labels.csv", "image,label,x1,y1,x2,y2\na.png,cat,0.1,0.2,0.5,1\n")
    found = convert(root)
    assert rows(found) == {("a", "cat", (4, 6, 16, 24))} and found.problems.counts["coordinates up to 1"] == 1
    write(root / "labels.csv", "image,label,x1,y1,x2,y2\na.png,K\xe4fer,1,2,5,9\n".encode("latin-1"))
    found = convert(root)
    assert found.classes == ["Käfer"] and found.problems.counts["text that is not UTF-8"] == 1


def test_groups_of_open_images(tmp_path, convert):
    """Protects the evaluation from boxes around groups, and names from a dataset without descriptions."""
    root = tmp_path / "m"
    image(root / "images/a.jpg")
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    rows_of_file = [
        "a,x,/m/01,1,0.1,0.5,0.2,0.6,0,0,1,0,0",
        "a,x,/m/02,1,0,0.5,0,0.5,-1,-1,-1,-1,-1",
        "a,x,/m/02,1,,,,",
    ]
    write(root / "validation-annotations-bbox.csv", "\n".join([head, *rows_of_file]))
    write(root / "class-descriptions-boxable.csv", 'LabelName,DisplayName\n/m/01,"Human face"\n')
    found = convert(root)
    (annotations,) = (content["annotations"] for content in found.contents.values())
    assert list(found.files) == ["val"] and [a["iscrowd"] for a in annotations] == [1, 0]
    assert found.classes == ["/m/02", "Human face"]
    assert found.problems.counts == {"class without a name": 1, "object without a box": 1}


def test_regions_of_kitti(tmp_path, convert):
    """Protects detections in regions without labels from counting as false, for every class; names of several words,
    and scores."""
    root = tmp_path / "m"
    image(root / "image_2/a.png")
    dont_care = "DontCare -1 -1 -10 1 2 9 8 -1 -1 -1 -1000 -1000 -1000 -10"
    rows_of_file = [
        kitti_row(Shape("traffic light", 4, 5, 20, 25)) + " 0.9",
        kitti_row(Shape("Car", 0, 0, 9, 9)),
        dont_care,
    ]
    write(root / "label_2/a.txt", "\n".join([*rows_of_file, "Car 1 2 3"]))
    found = convert(root)
    (annotations,) = (content["annotations"] for content in found.contents.values())
    assert found.classes == ["Car", "traffic light"]
    assert sorted((a["category_id"], a["iscrowd"]) for a in annotations) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert found.problems.report() == [
        "row that is no object: label_2/a.txt, line 4: Car 1 2 3: not a class and 14 numbers: left out"
    ]


# ---- COCO files as scripts and tools write them. ----


def coco_dataset(root, change):
    images(root / "images")
    content = coco_content(lambda stem: f"{stem}.png")
    change(content)
    write(root / "labels.json", json.dumps(content))
    return root


def change_ids(convert_id, *, categories=False):
    def change(content):
        for entry in content["images"]:
            entry["id"] = convert_id(entry["id"])
        for entry in content["annotations"]:
            entry["image_id"] = convert_id(entry["image_id"])
        if categories:
            for entry in content["categories"]:
                entry["id"] = convert_id(entry["id"])
            for entry in content["annotations"]:
                entry["category_id"] = convert_id(entry["category_id"])

    return change


def entry_per_object(content):
    """An image entry for each object, as exports row by row have it."""
    by_id = {entry["id"]: entry for entry in content["images"]}
    content["images"] = [{**by_id[a["image_id"]], "id": a["id"]} for a in content["annotations"]]
    content["images"].append({**by_id[2], "id": 99})
    for annotation in content["annotations"]:
        annotation["image_id"] = annotation["id"]


def polygons(content):
    for annotation in content["annotations"]:
        x, y, w, h = annotation.pop("bbox")
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y, x + 1, y + 1, x, y + h]]


def masks(content):
    """Run-length encoded, as counts of background and object down the columns; one is compressed."""
    from pycocotools import mask

    for number, annotation in enumerate(content["annotations"]):
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [[], None, [0, 0, 0, 0]][number]
        runs = [x * HEIGHT + y, *[h, HEIGHT - h] * (w - 1), h]
        runs.append(WIDTH * HEIGHT - sum(runs))
        annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs}
        if number == 1:
            encoded = mask.frPyObjects(annotation["segmentation"], HEIGHT, WIDTH)
            annotation["segmentation"] = {**encoded, "counts": encoded["counts"].decode()}


def texts(content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [str(value) for value in annotation["bbox"]]


def set_file_names(change_name):
    def change(content):
        for entry in content["images"]:
            entry["file_name"] = change_name(entry["file_name"])

    return change


COCO_CHANGES = {
    "text": change_ids(str, categories=True),
    "names": change_ids("frame_{:05d}".format),
    "floats": change_ids(float, categories=True),
    "texts of floats": change_ids(lambda number: f"{number}.0"),
    "text on one side": lambda content: [entry.update(id=str(entry["id"])) for entry in content["images"]],
    "an entry per object": entry_per_object,
    "polygons": polygons,
    "masks": masks,
    "numbers as text": texts,
    "windows": set_file_names("images\\{}".format),
    "windows from elsewhere": set_file_names("..\\images\\{}".format),
    "another computer": set_file_names("/home/somebody/{}".format),
    "capitals": set_file_names(str.upper),
}


@pytest.mark.parametrize("change", COCO_CHANGES)
def test_coco_as_scripts_write_it(change, tmp_path, convert):
    """Protects from losing objects, or refusing a file, for the way in which it writes ids, names and boxes."""
    found = convert(coco_dataset(tmp_path / "m", COCO_CHANGES[change]))
    (content,) = found.contents.values()
    assert rows(found) == EXPECTED and len(content["annotations"]) == 3 and len(content["images"]) == 3
    assert found.problems.counts == ({"image given twice": 1} if change == "an entry per object" else {})


def test_ids_that_are_none(tmp_path, convert):
    """Protects from taking true, null or a fraction for an id; they are reported as such."""

    def change(content):
        content["images"] += [{**content["images"][0], "id": value} for value in (True, None, 1.5)]

    found = convert(coco_dataset(tmp_path / "m", change))
    assert rows(found) == EXPECTED and found.problems.counts == {"entry without an id": 3}


def test_shapes_without_a_box(tmp_path, convert):
    """Protects from a crash on what is neither polygon nor mask; the objects are reported."""
    broken = [[], [[1, 2]], [["x", 1, 2, 3]], {"counts": "?", "size": [3]}, {"counts": [-1], "size": [9, 9]}, 7]

    def change(content):
        content["annotations"] += [{"image_id": 0, "category_id": 0, "segmentation": shape} for shape in broken]

    found = convert(coco_dataset(tmp_path / "m", change))
    assert rows(found) == EXPECTED and found.problems.counts == {"object without a box": len(broken)}


def test_one_list_of_suffixes(tmp_path, convert):
    """Protects images in any format that Pillow reads, in YOLO folders too."""
    root = tmp_path / "m"
    suffixes = [".jfif", ".jp2", ".TGA", ".webp"]
    for number, suffix in enumerate(suffixes):
        image(root / "images" / f"{number}{suffix}")
        write(root / "labels" / f"{number}.txt", "0 0.5 0.5 0.4 0.4")
    write(root / "data.yaml", "train: images\nnames: [cat]\n")
    found = convert(root)
    assert {entry["file_name"] for entry in found.contents["train"]["images"]} == {
        f"images/{number}{suffix}" for number, suffix in enumerate(suffixes)
    }
    assert not found.problems.counts


def test_images_of_unknown_range_are_reported(tmp_path, convert):
    """Protects from training on black images: 12-bit and float values without a known white are named, with the way
    out; those with one are taken."""
    import numpy as np

    root = tmp_path / "m"
    grey = np.linspace(0, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)
    values = {"a": grey, "b": (grey * 4095).astype(np.uint16), "empty": (grey * 65535).astype(np.uint16)}
    labelme(root)
    for stem, pixels in values.items():
        (root / f"{stem}.png").unlink()
        Image.fromarray(pixels).save(root / f"{stem}.tif")
    found = convert(root)
    assert {entry["file_name"] for entry in found.contents["all"]["images"]} == {"a.tif", "empty.tif"}
    (line,) = found.problems.report()
    assert line.startswith("image values of unknown range: b.tif: its integers have more than 8 bits and end at 4095")
    assert not math.isnan(found.contents["all"]["annotations"][0]["area"])


ONE_FILE = ["labelme", "tensorflow csv", "cvat", "via annotations", "via csv", "open images", "kitti"]
TOKENS = [b"", b"-1", b"nan", b"1e999", b"9" * 400, b"null", b"[]", b"{}", b"\0", b"\xff", b"../../x", b"<", b",", b'"']


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """By layout: its folder, and the bytes of an annotation file in it."""
    found = {}
    for layout in ONE_FILE:
        root = tmp_path_factory.mktemp("layouts") / "mine"
        LAYOUTS[layout](root)
        annotated = [p for p in sorted(root.rglob("*")) if p.suffix in (".json", ".csv", ".xml", ".txt")]
        file = next(path for path in annotated if b"cat" in path.read_bytes())
        found[layout] = root, file, file.read_bytes()
    return found


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(ONE_FILE), st.floats(0, 1, exclude_max=True), st.integers(0, 40), st.sampled_from(TOKENS))
def test_damaged_files(originals, layout, place, length, token):
    """Protects from a traceback on any file: one line that names it, or a dataset with objects inside its images."""
    root, file, data = originals[layout]
    at = int(place * len(data))
    file.write_bytes(data[:at] + token + data[at + length :])
    try:
        found = convert_dataset(root, root.parent / "out", force=True, decode=False)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error) and str(root) in str(error)
        return
    finally:
        file.write_bytes(data)
    assert all(line.isprintable() for line in found.problems.report())
    for content in found.contents.values():
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= WIDTH + 1e-3 and 0 <= y < y + h <= HEIGHT + 1e-3


# ---- From a folder to a trained model. ----

SHORT = [
    "train.device=cpu", "train.report.enabled=False", "train.max_iter=2", "train.eval_period=2",
    "model.num_queries=20", "model.dn_number=4", "model.select_box_nums_for_evaluation=20",
    "dataloader.train.num_workers=0", "dataloader.test.num_workers=0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["labelme", "voc of pets"])
def test_training_on_a_layout(layout, tmp_path):
    """Protects `train --data` on what is neither COCO nor plain VOC or YOLO: it trains and evaluates."""
    LAYOUTS[layout](tmp_path / "mine")
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", "align_detr_tiny", "--data", "mine"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *SHORT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = [json.loads((tmp_path / f"output/mine/data/{split}.json").read_text()) for split in ("train", "val")]
    assert sum(len(part["annotations"]) for part in content) == 3
    assert (tmp_path / "output/mine/model_final.pth").is_file()
