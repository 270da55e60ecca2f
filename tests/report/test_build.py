"""What the page says, and that it says it whatever is missing; how it behaves is tested in a browser."""

import base64
import csv
import io
import json
import random
import re
import shutil
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fake_runs import detected, finetuned, pictured, pretrained
from PIL import Image

from boxless.cli import main
from boxless.commands.report import report
from boxless.errors import UserError
from boxless.evaluation.matching import match
from boxless.report import embed
from boxless.report.advice import advise, still_falling, verdict
from boxless.report.build import make_page, read_reports
from boxless.report.curves import thinned
from boxless.report.run_report import read_run
from boxless.report.serve import make_server

FALLING = [5 * 0.97**n for n in range(100)]
FLAT = [5 * 0.5**n + 1 + (n % 3) / 50 for n in range(100)]
CLASSES = {"cat": 0.3, "dog": 0.1, "cow": 0.0, "emu": None}


class Seen(HTMLParser):
    """Text, and every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.code = False
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.code = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.code = False

    def handle_data(self, data: str) -> None:
        if not self.code:
            self.words.append(data)


def page(*folders: Path) -> Seen:
    return Seen(make_page(read_reports([str(folder) for folder in folders])))


def titles(folder: Path) -> list[str]:
    return [advice.title for advice in advise(read_run(folder, "run"))]


def test_names_with_html_in_them_stay_text(tmp_path: Path) -> None:
    bad = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>'
    run = finetuned(tmp_path / "a<b>&c", {bad: 0.2, "dog": 0.1}, recipe={"note": bad})
    files = pictured(tmp_path / "images", 2)
    detected(run, [files[0].rename(files[0].with_name("<svg onload=alert(3)>.jpg")), files[1]], (bad, "dog"))
    (run / "figures").mkdir()
    files[1].rename(run / "figures" / "x.png")
    (run / "figures" / "captions.json").write_text(json.dumps({"x.png": bad}))
    seen = page(run)
    assert [tag for tag, _ in seen.tags].count("script") == 3 + 2  # ours, and the data of curves and gallery
    assert not any(key.startswith("on") for _, attributes in seen.tags for key in attributes)
    assert [attributes["src"][:5] for tag, attributes in seen.tags if tag == "img" and "src" in attributes] == ["data:"]
    assert "a<b>&c" in seen.text and bad in seen.text
    assert bad in [attributes["alt"] for tag, attributes in seen.tags if tag == "img"]


@pytest.mark.parametrize(
    ("losses", "health", "says"),
    [
        (FALLING, "healthy", "More epochs may still help"),
        (FLAT, "healthy", "See what it buys"),
        (FLAT, "collapsed at step 40", "Collapsed at step 40"),
    ],
)
def test_a_pretraining_is_told_what_to_do_next(losses: list[float], health: str, says: str, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", losses, health)
    assert titles(run)[0] == says
    assert verdict(read_run(run, "run")).title == health
    assert says in page(run).text


@pytest.mark.parametrize(
    ("classes", "changes", "says"),
    [
        (CLASSES, {}, "1 of 3 classes are not found at all"),
        (CLASSES, {}, "1 of 4 classes were not measured"),
        (CLASSES, {"summary": {"labelled_images": 8}}, "Few labels"),
        (CLASSES, {"summary": {"weights": "from scratch"}}, "This started from scratch"),
        (CLASSES, {"summary": {"skipped": {"a.jpg": "no image"}}}, "1 images could not be read"),
        (CLASSES, {"val/AP": [0.02, 0.3]}, "A shorter run may be better"),
        (CLASSES, {"val/AP": [0.02, 0.05]}, "A longer run may still help"),
    ],
)
def test_a_fine_tuning_is_told_what_to_do_next(
    classes: dict[str, float | None], changes: dict, says: str, tmp_path: Path
) -> None:
    assert says in titles(finetuned(tmp_path / "run", classes, **changes))


@pytest.mark.parametrize(
    ("classes", "word"),
    [({"cat": 0.0}, "found nothing"), ({"cat": None}, "not measured"), ({"cat": 0.4}, "learned")],
)
def test_a_detector_of_one_class_is_judged_in_words(classes: dict, word: str, tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run", classes)
    assert verdict(read_run(run, "run")).title == word and word in page(run).text


def test_the_slope_of_noise_is_no_advice() -> None:
    found = []
    for seed in range(200):
        noise = random.Random(seed)
        found.append(still_falling([3 * 0.8**n + 1 + noise.gauss(0, 0.1) for n in range(200)]))
    assert sum(share is not None for share in found) < 20
    assert still_falling([3 - n / 100 for n in range(200)]) == pytest.approx(0.2 / 1.8, rel=0.01)


def test_thinned_curves_keep_their_mean_and_their_ends() -> None:
    values = [float(n % 7) for n in range(1000)] + [float("nan")]
    steps, kept = thinned(range(1001), values, 100)
    assert len(steps) == len(kept) == 100 and np.mean(kept) == pytest.approx(np.mean(values[:-1]), abs=1e-3)
    assert steps[0] == 4.5 and steps[-1] == 994.5
    assert thinned([3, 5], [1.0, 2.0], 100) == ([3, 5], [1.0, 2.0])


def test_an_unfinished_run_with_a_line_that_is_being_written(tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", FLAT[:3])
    (run / "summary.json").unlink()
    with (run / "metrics.csv").open("a") as file:
        file.write("39,lo")
    (run / "progress.json").write_text(json.dumps({"step": 40, "total": 400, "status": "healthy", "data_wait": 0.5}))
    text = page(run).text
    assert "not finished" in text and "step 40 of 400" in text and "so far: healthy" in text
    assert "boxless go" in text and "Training waits for data" in text and "cannot be read" not in text


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run", CLASSES)
    (run / "metrics.csv").unlink()
    (run / "environment.json").unlink()
    (run / "summary.json").write_text("{")
    (run / "gallery.json").write_text('{"data": "a"}')
    (run / "figures").mkdir()
    (run / "figures" / "broken.png").write_bytes(b"no picture")
    text = page(run).text
    for file in ("metrics.csv is missing", "environment.json is missing", "summary.json cannot be read"):
        assert file in text
    assert "figures/broken.png cannot be read" in text and "gallery.json" in text


@pytest.mark.parametrize("name", ["", "nothing"])
def test_what_is_no_run_is_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.yaml" in line or "no such folder" in line


def test_lvis_has_a_row_for_each_of_its_classes(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run", {f"class {n}": n / 1203 for n in range(1203)})
    seen = page(run)
    assert "AP of 1203 classes" in seen.text and "class 1202" in seen.text
    assert [tag for tag, _ in seen.tags].count("tr") > 1203


def compared(out: Path) -> Path:
    """Two seeds of three starts, of which one helps, one does nothing, one hurts a class."""
    rows = []
    for start, gains in {"none": (0, 0), "soco": (0.1, 0.11), "byol": (0.001, -0.002)}.items():
        for seed, gain in enumerate(gains):
            classes = {"cat": 0.3 + 2 * gain + 0.02 * seed, "dog": 0.1 - (0.05 if start == "byol" else 0)}
            finetuned(out / "finetune" / "faster_rcnn" / start / "labels-0.1" / f"seed-{seed}", classes, seed)
            ap = 0.2 + gain + 0.01 * seed
            rows.append(["faster_rcnn", start, 0.1, 40, seed, ap, ap, ap, 120.0])
        if start != "none":
            pretrained(out / "pretrain" / start, FLAT, recipe={"method": {"name": start}})
    text = io.StringIO()
    csv.writer(text).writerows(
        [["detector", "method", "fraction", "images", "seed", "AP", "AP50", "AP75", "seconds"], *rows]
    )
    (out / "comparison.csv").write_text(text.getvalue())
    return out


def test_a_comparison_gives_its_table_and_says_what_it_means(tmp_path: Path) -> None:
    seen = page(compared(tmp_path / "c"))
    assert "from scratch 40 20.5 ± 0.7" in seen.text and "soco 40 31.0 ± 1.4" in seen.text
    # gains 10 and 11, 0.1 and -0.2: pooled variance 0.2725; 6.205 is Student's t of 2 degrees of freedom for two gains
    assert "+10.5 ± 2.3" in seen.text
    assert "soco, 40 labels: pretraining helps" in seen.text and "byol, 40 labels: within noise" in seen.text
    assert "2 of 2 classes lost AP: dog -5.0, cat -0.1." in seen.text
    assert (
        "method.name soco byol" in seen.text or "method.name byol soco" in seen.text
    )  # the recipes differ in it alone


def test_a_comparison_in_which_nothing_was_found_has_its_table(tmp_path: Path) -> None:
    rows = ["detector,method,fraction,images,seed,AP,AP50,AP75,seconds"]
    for start in ("none", "soco"):
        for seed in (0, 1):
            finetuned(tmp_path / "finetune" / "faster_rcnn" / start / "labels-0.1" / f"seed-{seed}", {"cat": 0.0}, seed)
            rows.append(f"faster_rcnn,{start},0.1,40,{seed},0.0,0.0,0.0,9.0")
    (tmp_path / "comparison.csv").write_text("\n".join(rows) + "\n")
    text = page(tmp_path).text
    assert "soco 40 0.0 ± 0.0" in text and "+0.0 ± 0.0" in text and "within noise" in text and "0 seeds" not in text


def test_a_demo_and_a_comparison_that_lasts(tmp_path: Path) -> None:
    folder = compared(tmp_path / "demo" / "comparison")
    assert "soco, 40 labels: pretraining helps" in page(tmp_path / "demo").text
    (folder / "comparison.csv").unlink()
    assert "no comparison.csv yet" in page(tmp_path / "demo").text


def test_runs_side_by_side_are_grouped_by_what_differs_beside_seeds(tmp_path: Path) -> None:
    runs = [finetuned(tmp_path / f"a{n}", {"cat": 0.2 + n / 100}, n) for n in range(3)]
    runs += [finetuned(tmp_path / f"b{n}", {"cat": 0.3 + n / 100}, n, recipe={"epochs": 9}) for n in range(3)]
    seen = page(*runs)
    assert "a0 … a2 40 21.0 ± 1.0" in seen.text and "+10.0 ± 0.0" in seen.text and "better" in seen.text
    assert "epochs" in seen.text and "detector.kind" not in seen.text.split("What differs")[1].split("data, machine")[0]
    chosen = [finetuned(tmp_path / f"c{n}", {"cat": 0.2 + n / 10}, 0, recipe={"label_seed": n}) for n in range(3)]
    longer = {"epochs": 9}
    chosen += [
        finetuned(tmp_path / f"d{n}", {"cat": 0.21 + n / 10}, 0, recipe={**longer, "label_seed": n}) for n in range(3)
    ]
    assert "+1.0 ± 0.0" in page(*chosen).text
    other = finetuned(tmp_path / "c", {"cat": 0.9})
    environment = json.loads((other / "environment.json").read_text())
    (other / "environment.json").write_text(json.dumps(environment | {"inputs": {"val": "other.json"}}))
    text = page(runs[0], other).text
    assert "scores of different labels cannot be compared" in text and "+70" not in text


@pytest.mark.parametrize("again", ["path", "copy"])
def test_a_run_that_is_given_twice_is_no_second_seed(again: str, tmp_path: Path) -> None:
    reference, new = finetuned(tmp_path / "ref", {"cat": 0.2}), finetuned(tmp_path / "new", {"cat": 0.214}, epochs=[9])
    recipe = json.loads((new / "recipe.yaml").read_text())
    (new / "recipe.yaml").write_text(json.dumps(recipe | {"epochs": 9}))
    other = tmp_path / "ref" / ".." / "new" if again == "path" else shutil.copytree(new, tmp_path / "new2")
    text = page(reference, new, other).text
    assert "new 40 21.4 21.4 21.4 +1.4 1 one seed: cannot tell" in text and "better" not in text
    assert ("left out: new2" in text) == (again == "copy")


@pytest.mark.parametrize("places", ["finetune/exp1", "pretrain finetune", "pretrain/exp1 finetune/a/labels-10k/seed-0"])
def test_runs_in_folders_of_a_comparisons_names_are_none(
    places: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in places.split():
        pretrained(tmp_path / place, FLAT) if place.startswith("pretrain") else finetuned(tmp_path / place, CLASSES)
    for command in (["report", str(tmp_path)], ["figures", "--run", str(tmp_path)]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"run {tmp_path}: is not a run (no recipe.yaml in it)" in line


@pytest.mark.parametrize("place", ["pretrain/soco", "finetune/soco/labels-0.1/seed-0"])
def test_a_comparison_that_has_just_begun_or_is_old_is_told(place: str, tmp_path: Path) -> None:
    pretrained(tmp_path / place, FLAT) if place.startswith("pretrain") else finetuned(tmp_path / place, CLASSES)
    assert "no comparison.csv yet" in page(tmp_path).text


def test_a_run_has_one_number_and_so_one_colour_on_its_page(tmp_path: Path) -> None:
    runs = [pretrained(tmp_path / "pre", FLAT), *(finetuned(tmp_path / name, CLASSES) for name in ("ref", "new"))]
    text = make_page(read_reports([*map(str, runs), str(compared(tmp_path / "c"))]))
    heads = re.findall(r'<h3><span class="key s(\d)" aria-hidden="true"></span>(.*?)</h3>', text)
    (data,) = re.findall(r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL)
    charts = [chart for group in json.loads(data) for chart in group["charts"]]
    series = {(str(each["run"]), each["name"]) for chart in charts for each in chart["series"]}
    assert set(heads) == {("0", "pre"), ("1", "ref"), ("2", "new"), ("3", "byol"), ("4", "soco")} <= series
    assert {number for number, _ in series - set(heads)} == {"5", "6", "7"}  # means over seeds are none of the runs


def test_the_gallery_has_what_the_matching_says(tmp_path: Path) -> None:
    files = pictured(tmp_path / "images", 70)
    data, found = detected(tmp_path, files, ("cat", "dog", "cow"))
    gallery = json.loads((tmp_path / "gallery.json").read_text())
    matches = [match(image, each, gallery["score"]) for image, each in zip(data.images, found, strict=True)]
    outcomes = [outcome for each in matches for outcome in each.outcomes]
    assert {kind: outcomes.count(kind) for kind in ("correct", "extra", "wrong class")}.items() <= gallery[
        "counts"
    ].items()
    assert gallery["counts"]["missing"] == sum(len(each.missing) for each in matches)
    assert gallery["images"] == 70 and len(gallery["shown"]) == 60 and gallery["shown"][-1]["file"] == "69.jpg"
    assert sum(count for *_, count in gallery["confusions"]) == outcomes.count("wrong class")
    with Image.open(io.BytesIO(base64.b64decode(gallery["shown"][0]["jpeg"]))) as picture:
        assert picture.size == (96, 64) == (gallery["shown"][0]["width"], gallery["shown"][0]["height"])


def test_six_runs_with_sixty_real_images_stay_below_8_mib(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "coco256" / "images" / "train").glob("*.jpg"))[:60]
    runs = [finetuned(tmp_path / f"run{n}", {"cat": 0.2, "dog": 0.3}, n) for n in range(6)]
    for seed, run in enumerate(runs):
        detected(run, files, ("cat", "dog"), seed)
        (run / "figures").mkdir()
        with Image.open(files[seed]) as picture:
            picture.resize((1600, 1200)).save(run / "figures" / "views.png")
    out = tmp_path / "report.html"
    report([str(run) for run in runs], out=str(out), quiet=True)
    assert out.stat().st_size < 8 * 2**20
    assert out.read_text().count("data:image/webp") == 6


def test_pictures_become_smaller_until_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "figures" / "noise.png")
    whole, _ = embed.embed_pictures([("run", tmp_path)])
    monkeypatch.setattr(embed, "BUDGET", len(whole[0].data) // 2)
    (small,), _ = embed.embed_pictures([("run", tmp_path)])
    assert whole[0].width == 400 > small.width and len(small.data) <= len(whole[0].data) // 2


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"curves.png": {"x": 1}}'])
def test_damaged_captions_cost_the_captions_alone(content: str, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", FLAT)
    pictured(run / "figures", 1)[0].rename(run / "figures" / "curves.png")
    (run / "figures" / "captions.json").write_text(content)
    assert "data:image/webp" in make_page(read_reports([str(run)]))


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"run": 3}'])
def test_an_evaluation_that_does_not_name_its_run_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match="does not say which run it is of"):
        read_reports([str(tmp_path)])


def test_an_evaluation_elsewhere_is_told_with_its_run(tmp_path: Path) -> None:
    run = finetuned(tmp_path / "run", CLASSES)
    results = tmp_path / "results"
    results.mkdir()
    scores = {"bbox": {"AP": 0.55}}
    (results / "evaluation.json").write_text(json.dumps({"run": str(run), "data": "x", "scores": scores}))
    detected(results, pictured(tmp_path / "images", 2), ("cat", "dog"))
    seen = page(results)
    assert (
        "55.0" in seen.text
        and "AP on results" in seen.text
        and ("dialog", "viewer") in [(tag, attributes.get("id")) for tag, attributes in seen.tags]
    )


def test_watching_serves_this_machine_alone_and_tells_news(tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", FLAT)
    with make_server([str(run)], 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert server.server_address[0] == "127.0.0.1"

        def get(path: str, **headers: str) -> str:
            with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=60) as answer:
                return answer.read().decode()

        before = get("/state")
        assert f'data-live="{before}"' in get("/") and get("/state") == before
        with (run / "metrics.csv").open("a") as file:
            file.write("2000,loss,0.5\n")
        assert get("/state") != before
        for path, headers, code in (("/", {"Host": "example.org"}, 403), ("/recipe.yaml", {}, 404)):
            with pytest.raises(urllib.error.HTTPError, match=str(code)) as refused:
                get(path, **headers)
            refused.value.close()
        with pytest.raises(UserError, match="name another, or 0 for any"):
            make_server([str(run)], server.server_port)
        server.shutdown()
        thread.join()
