"""Error analysis: AP by face size and attribute, and a page of the worst false alarms and misses.

A false alarm is a detection of no annotated face, or the second one of a face. A miss is a face
that no detection finds. Both are counted at the score at which a detector is used.
"""

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from featherface.config import DISPLAY_SCORE
from featherface.data.annotations import Photo
from featherface.evaluation.consistency import box_sizes
from featherface.evaluation.curves import make_curves, match_detections
from featherface.evaluation.submission import as_rows
from featherface.files import write_text
from featherface.images import decode, open_photo
from featherface.structures import Detections

SIZES = ("under 16", "16–32", "32–64", "64–128", "128–256", "over 256")  # square root of the area
_EDGES = (0, 16, 32, 64, 128, 256, np.inf)
ATTRIBUTES = {  # the column of WIDER FACE's annotation after x y w h, and the names of its values
    "blur": (0, ("clear", "normal", "heavy")),
    "occlusion": (4, ("none", "partial", "heavy")),
    "pose": (5, ("typical", "atypical")),
}
WORST = 12  # crops for each kind of error and face size
SIDE = 144  # pixels of a crop; the box takes half of it
_GREEN, _ORANGE = "#00c853", "#ff6d00"
_STYLE = """body{font:15px/1.4 sans-serif;margin:2em;max-width:68em}
table{border-collapse:collapse} td,th{padding:2px 12px;text-align:left;border-bottom:1px solid #ddd}
figure{display:inline-block;width:144px;margin:4px;vertical-align:top;font-size:12px}
figcaption{overflow-wrap:anywhere}"""


def find_errors(
    photos: Sequence[Photo], found: Mapping[str, Detections], *, score_above: float = DISPLAY_SCORE
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure AP for groups of faces, and list every error.

    found: {photo name: faces} for each photo. score_above: only detections that score more find a
    face or are false alarms. Faces that are flagged invalid, and detections of them, do not count.

    Returns two tables. Groups: group (size, and for WIDER FACE's annotation blur, occlusion, pose),
    value, faces, ap_exact, found (share of the faces), both in 0..1. Errors: kind ("false alarm" or
    "miss"), photo, x1, y1, x2, y2, size (square root of the area), pixels of the photo as stored,
    and score (of a miss: that of the best detection of the face, or 0).
    """
    truth = [photo.with_ignored() for photo in photos]
    faces = _boxes_table(photos, [part.boxes for part in truth])
    seen = _boxes_table(photos, [found[photo.name].boxes for photo in photos])
    corners = [part.boxes.astype(float) for part in truth]
    matches = match_detections(
        [as_rows(found[photo.name], photo.name) for photo in photos],
        [np.column_stack([box[:, :2], box[:, 2:] - box[:, :2]]) for box in corners],
    )
    seen = seen.iloc[matches.order].assign(score=matches.scores)
    faces["score"] = 0.0
    faces.loc[matches.face[matches.first], "score"] = matches.scores[matches.first]
    kept = ~np.concatenate([part.ignore for part in truth])
    counts = np.append(kept, True)[matches.face]  # face −1, none, reads the appended True
    wrong = counts & ~matches.first & (matches.scores > score_above)
    missed = kept & (faces["score"].to_numpy() <= score_above)
    errors = pd.concat([seen[wrong].assign(kind="false alarm"), faces[missed].assign(kind="miss")])
    masks = {name: kept & mask for name, mask in _groups(photos, faces["size"]).items()}
    curves = make_curves(matches, masks, len(photos)).curves
    rows = [
        (*name.split(": "), curve.faces, curve.ap_exact, 1 - missed[masks[name]].mean())
        for name, curve in curves.items()
        if curve.faces
    ]
    groups = pd.DataFrame(rows, columns=["group", "value", "faces", "ap_exact", "found"])
    return groups, errors.reset_index(drop=True)


def _boxes_table(photos: Sequence[Photo], boxes: list[np.ndarray]) -> pd.DataFrame:
    """One row per box: photo, x1, y1, x2, y2, size."""
    table = pd.DataFrame(np.concatenate(boxes), columns=["x1", "y1", "x2", "y2"])
    names = np.repeat([photo.name for photo in photos], [len(part) for part in boxes])
    table.insert(0, "photo", names)
    return table.assign(size=box_sizes(np.concatenate(boxes)))


def _groups(photos: Sequence[Photo], size: pd.Series) -> dict[str, np.ndarray]:
    """{"group: value": (G,) bool} over the faces of the photos, the ignored ones included."""
    groups = pd.cut(size, _EDGES, labels=SIZES, right=False)
    masks = {f"size: {name}": (groups == name).to_numpy() for name in SIZES}
    known = [photo.attributes for photo in photos if photo.attributes is not None]
    if len(known) < len(photos):
        return masks
    ignored = [np.zeros((len(photo.ignored_boxes), 6)) for photo in photos]
    values = np.concatenate([part for pair in zip(known, ignored, strict=True) for part in pair])
    for group, (column, names) in ATTRIBUTES.items():
        masks |= {f"{group}: {name}": values[:, column] == n for n, name in enumerate(names)}
    return masks


def write_errors(
    folder: str | os.PathLike,
    photos: Sequence[Photo],
    detectors: Mapping[str, Mapping[str, Detections]],
    *,
    title: str,
) -> list[Path]:
    """Write errors.html (self-contained), errors.csv and errors_by_group.csv; return their paths.

    detectors: {name: {photo name: faces}}, see `find_errors`. The page shows for each kind of error
    and face size the 12 worst: false alarms of highest score, missed faces of lowest score.
    """
    over = f"detections that score over {DISPLAY_SCORE:g}"
    page = [
        f"<h1>Errors</h1><p>{html.escape(title)}. Sizes: square root of the box area, in pixels of "
        f"the photo as stored. Found: share of the faces that {over} find. The crops, with score "
        f"and size, show annotated faces in green and {over} in orange, the error in thick "
        "lines.</p>"
    ]
    tables: dict[str, dict[str, pd.DataFrame]] = {"errors_by_group.csv": {}, "errors.csv": {}}
    for name, found in detectors.items():
        groups, errors = find_errors(photos, found)
        tables["errors_by_group.csv"][name], tables["errors.csv"][name] = groups, errors
        page += [f"<h2>{html.escape(name)}</h2>", groups.to_html(index=False, float_format="%.3f")]
        page += _worst(photos, found, errors)
    head = f"<meta charset='utf-8'><title>Errors</title><style>{_STYLE}</style>"
    text = "\n".join(["<!doctype html><html lang='en'>", head, "<body>", *page, "</body></html>\n"])
    write_text(Path(folder, "errors.html"), text)
    for file, parts in tables.items():
        table = pd.concat(parts, names=["detector", None]).reset_index("detector")
        write_text(Path(folder, file), table.to_csv(index=False, lineterminator="\n"))
    return [Path(folder, file) for file in ("errors.html", *tables)]


def _worst(
    photos: Sequence[Photo], found: Mapping[str, Detections], errors: pd.DataFrame
) -> list[str]:
    """Headings and crops of the worst errors, by kind and size, in HTML."""
    page = [] if len(errors) else ["<p>No error.</p>"]
    for heading, crops in error_crops(photos, found, errors).items():
        page.append(f"<h3>{heading}</h3>")
        for text, crop in crops:
            buffer = io.BytesIO()
            Image.fromarray(crop).save(buffer, "JPEG", quality=85)
            data = base64.b64encode(buffer.getvalue()).decode()
            caption = html.escape(text).replace("\n", "<br>")
            page.append(
                f"<figure><img src='data:image/jpeg;base64,{data}'>"
                f"<figcaption>{caption}</figcaption></figure>"
            )
    return page


def error_crops(
    photos: Sequence[Photo],
    found: Mapping[str, Detections],
    errors: pd.DataFrame,
    *,
    count: int = WORST,
) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Cut the worst errors out of their photos: {"miss, 16–32 px: 12 of 40": [(text, picture)]}.

    errors: of `find_errors`; count: for each kind and face size, false alarms of highest score,
    missed faces of lowest score. text: score, size and photo, in two lines. picture: (144, 144, 3)
    uint8 RGB with annotated faces in green and detections in orange, the error in thick lines.
    """
    if errors.empty:
        return {}
    by_name = {photo.name: photo for photo in photos}
    sizes = pd.cut(errors["size"], _EDGES, labels=SIZES, right=False)
    crops, chosen = {}, {}
    for (kind, size), part in errors.groupby(["kind", sizes], observed=True):
        worst = part.sort_values(["score", "size"], ascending=[kind == "miss", False]).head(count)
        chosen[f"{kind}, {size} px: {len(worst)} of {len(part)}"] = worst
    for name, rows in pd.concat(chosen.values()).groupby("photo"):
        picture = Image.fromarray(decode(open_photo(by_name[name].path))[..., ::-1])
        sure = found[name].boxes[found[name].scores > DISPLAY_SCORE]
        for row in rows.itertuples():
            box = (row.x1, row.y1, row.x2, row.y2)
            crop = _crop(picture, box, {_GREEN: by_name[name].boxes, _ORANGE: sure})
            text = f"{row.score:.3f}, {row.size:.0f} px\n{Path(name).name}"
            crops[row.Index] = (text, crop)
    return {key: [crops[index] for index in worst.index] for key, worst in chosen.items()}


def _crop(picture: Image.Image, box: tuple, outlines: Mapping[str, np.ndarray]) -> np.ndarray:
    """Cut out a box and as much around it, with boxes outlined by colour."""
    x1, y1, x2, y2 = box
    half = max(x2 - x1, y2 - y1, 8.0)
    left, top, scale = (x1 + x2) / 2 - half, (y1 + y2) / 2 - half, SIDE / (2 * half)
    window = (round(left), round(top), round(left + 2 * half), round(top + 2 * half))
    crop = picture.crop(window).resize((SIDE, SIDE))
    draw = ImageDraw.Draw(crop)
    for colour, boxes in outlines.items():
        for corners in boxes:
            ends = (np.asarray(corners) - np.tile((left, top), 2)) * scale
            draw.rectangle(ends.tolist(), outline=colour, width=3 if tuple(corners) == box else 1)
    return np.asarray(crop)
