"""The benchmarks of scale: what they compute, held against plain arithmetic; what they measure, on few links."""

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def results(tmp_path):
    """Results of other benchmarks, in round numbers."""
    rows = {"seconds_per_image": 0.36, "boxes_per_image_after_limits": 50.0}
    time = {"seconds": 1.0, "processor": 3.0}
    files = {
        "pipeline": {"images": 8, "repeats": 3, "images_per_second": {"boxless, in a worker": {"median": 250.0}}},
        "selective_search": {"images": 8, "results": {"boxless fast": rows, "boxless paper": rows}},
        "startup": {
            "images": 1_000_000,
            "folders": 1000,
            "key_bytes": 40.0,
            "starts": {"folders": {"first": time, "again": time}},
            "memory": {"folders": {"all": {"order": 0.02}}},
        },
    }
    machine = {"environment": {"processor": "Abacus", "bf16": False}}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content | machine))
    return tmp_path


def test_the_costs_are_what_a_pocket_calculator_says(results, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    scale = importlib.import_module("scale")
    given = scale.inputs(results, 0.25, None)
    # By hand, GFLOP: ResNet-50 8.2 at 224 px and 2.1 at 112, the pyramid 5.7 and 1.4, four boxes' heads 1.2 a view; the
    # pass back costs twice the pass forward of what is trained, less the stem's gradient of the pixels.
    forward = 2 * (8.2 + 5.7) + (2.1 + 1.4) + 3 * 1.2
    assert given["flops"].value / 1e9 == pytest.approx(4 * forward, rel=0.05)
    assert given["rate"].value == pytest.approx(0.25 * 790e12 / given["flops"].value)
    assert given["gradients"].value == pytest.approx(4 * 49.4e6, rel=0.01)  # bytes
    size = given["gradients"].value
    assert scale.all_reduce(size, 1, given) == 0
    assert scale.all_reduce(size, 8, given) == pytest.approx(2 * 7 / 8 * size / (0.8 * 450e9))
    both = 2 * 7 / 8 * size * (1 / (0.8 * 450e9) + 1 / (0.8 * 12.5e9))
    assert scale.all_reduce(size, 64, given) == pytest.approx(both)

    page = results / "scale.md"
    page.write_text(f"before\n{scale.BEGIN}\nstale\n{scale.END}\nafter\n")
    words = ["--results", str(results), "--images-per-second", "1000", "--out", str(page)]
    scale.main(words)
    written = page.read_text()
    scale.main(words)
    assert page.read_text() == written and written.startswith("before\n") and written.endswith("\nafter\n")
    assert "stale" not in written and capsys.readouterr().out.count("10,000 core hours: 10.0 h on 1,000 cores") == 4
    (hours,) = (line for line in written.splitlines() if "400 epochs, hours" in line)
    assert hours.split("|")[2].strip() == "142.3 to 142.3"  # 5004 * 256 * 400 images at 1,000 a second
    assert "| 1,000 images/s | measured | given to this script |" in written


def test_memory_and_starts_are_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    startup = importlib.import_module("startup")
    monkeypatch.setattr(startup, "FOLDER", 50)
    Image.new("RGB", (40, 30)).save(tmp_path / "one.jpg")
    startup.make_links(tmp_path / "all", 400, [tmp_path / "one.jpg"])
    cache = tmp_path / "cache"
    startup.make_table(tmp_path / "all", cache)
    assert sorted(path.suffix for path in cache.iterdir()) == [".arrow"]
    for kind, place in (
        ("index", "all"),
        ("index", "all.txt"),
        ("list", "all"),
        ("ImageFolder", "all"),
        ("boxes", "all"),
    ):
        found = startup.start(kind, str(tmp_path / place), str(cache))
        assert found["images"] == 400 and found["seconds"] > 0
    found = startup.memory("boxes", str(tmp_path / "all"), str(cache))
    for process in (found["training"], found["worker"]):
        assert process["rss"] >= process["pss"] >= process["private"] > 1e6
