"""The curves of a run: what is drawn, and what is written beside it."""

import pytest
import torch

from egg_sparse.zoo import plots, run_folder
from egg_sparse.zoo.plots import Curve, Panel
from egg_sparse.zoo.signal_game.train import main

HISTORY = [
    {"mode": "train", "epoch": 1, "acc": 0.25},
    {"mode": "validation", "epoch": 1, "acc": 0.5, "acc_expected": 0.375},
    {"mode": "train", "epoch": 2, "acc": 0.375},
    {"mode": "validation", "epoch": 2, "acc": 0.75, "acc_expected": 0.625},
]
SUCCESS = Panel(
    "success (share of games)",
    (
        Curve("train", "acc", "expected"),
        Curve("validation", "acc_expected", "expected", "acc_expected"),
        Curve("validation", "acc", "greedy", "acc"),
    ),
    0.0625,
)


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is saved."""
    saved, plain = [], run_folder.save_figure

    def save(figure, path):
        saved.append(figure)
        plain(figure, path)

    monkeypatch.setattr(run_folder, "save_figure", save)
    return saved


def lines_of(axes):
    """Every line in the axes, by the label beside it of the same color and place, less those that lead to labels."""
    return [
        ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()], line.get_color())
        for line in axes.get_lines()
        if line.get_transform() != axes.transAxes
    ]


def test_draws_each_quantity_under_its_own_name(figures, tmp_path):
    results = {"acc": 0.7, "acc_expected": 0.6}
    plots.curves(HISTORY, results, [SUCCESS, Panel("not reported", (Curve("train", "x"),))], tmp_path / "c.png", "t")
    (axes,) = figures[0].axes
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert set(colors) == {
        "training, expected", "validation, expected", "validation, greedy", "test, expected: 0.6", "test, greedy: 0.7",
        "chance: 0.0625",
    }  # fmt: skip
    for label, points in {
        "training, expected": ([1, 2], [0.25, 0.375]),
        "validation, expected": ([1, 2], [0.375, 0.625]),
        "validation, greedy": ([1, 2], [0.5, 0.75]),
        "test, expected: 0.6": ([2], [0.6]),
        "test, greedy: 0.7": ([2], [0.7]),
        "chance: 0.0625": ([0, 1], [0.0625, 0.0625]),
    }.items():
        assert (*points, colors[label]) in lines_of(axes), label
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "success (share of games)"
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


@pytest.mark.parametrize(("first", "last"), [(0.9, 0.0625), (0.1, 0.9)])
def test_labels_are_apart_and_beside_the_axes(first, last, figures, tmp_path):
    """Also where all curves end at the bottom, or at the top."""
    history = [
        {"mode": mode, "epoch": epoch, "acc": value, "acc_expected": value}
        for epoch, value in ((1, first), (2, last))
        for mode in ("train", "validation")
    ]
    plots.curves(history, {"acc": last, "acc_expected": last}, [SUCCESS], tmp_path / "c.png", "t")
    figures[0].canvas.draw()
    axes = figures[0].axes[0]
    boxes, frame = [text.get_window_extent() for text in axes.texts], axes.get_window_extent()
    assert len(boxes) == 6
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert frame.x1 < box.x0 < box.x1 <= figures[0].bbox.x1
        assert frame.y0 - 1 <= (box.y0 + box.y1) / 2 <= frame.y1 + 1


def test_nothing_reported_nothing_drawn(tmp_path):
    plots.curves([], {"acc": 0.5}, [SUCCESS], tmp_path / "c.png", "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mode", "trained", "validated"),
    [("marg", "expected", "expected"), ("sfe", "sampled", "sampled"), ("gs", "relaxed", "sampled")],
)
def test_the_signal_games_success(mode, trained, validated, figures, few_test_games):
    """With what its test found, so that it is drawn after the test."""
    options = ["--n_epochs=2", "--batches_per_epoch=4", "--vocab_size=20", "--game_size=4", "--batch_size=16"]
    final = main([f"--mode={mode}", *options, "--no_cuda", "--random_seed=3", "--out=run"])
    assert {text.get_text() for text in figures[0].axes[0].texts} == {
        f"training, {trained}",
        f"validation, {validated}",
        "validation, greedy",
        f"test, greedy: {final['acc']:.4g}",
        f"test, expected: {final['acc_expected']:.4g}",
        "chance: 0.25",
    }


@pytest.mark.parametrize(
    ("n_pixels", "height", "shape"), [(15, 3, (3, 5)), (15, 5, (5, 3)), (12, None, (3, 4)), (7, None, (1, 7))]
)
def test_grids_of_images_that_are_not_square(n_pixels, height, shape, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **_: drawn.append(image))
    images = torch.arange(3 * n_pixels).reshape(3, n_pixels) / (3 * n_pixels)
    plots.grid(images, 2, tmp_path / "grid.png", "title", height)
    rows, columns = shape
    assert drawn[0].shape == (2 * (rows + 1), 2 * (columns + 1))
    second = drawn[0][:rows, columns + 1 : 2 * columns + 1]
    assert (second == images[1].reshape(shape).numpy()).all()
