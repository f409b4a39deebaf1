"""What is drawn of groups of runs, and where."""

import re
import statistics

import pytest

from egg_sparse.report import plots
from egg_sparse.report.experiments import Curve
from egg_sparse.report.groups import group
from egg_sparse.report.runs import Run
from egg_sparse.zoo import look

SUCCESS = Curve("acc", "success (share of games)", chance=lambda opts: 1 / opts["game_size"])
SUPPORT = Curve("support", "support (messages)", log=True, test="support")


def run(mode, seed, values, calls=None, examples=100, seconds=2.0, **options):
    """A run that reports these values of ``acc`` in its epochs, and receiver calls in training."""
    metrics = []
    for epoch, value in enumerate(values, 1):
        train = {} if calls is None else {"receiver_calls": calls[epoch - 1]}
        metrics += [
            {"epoch": epoch, "mode": "train", "acc": 0.9, **train},
            {"epoch": epoch, "mode": "validation", "acc": value},
        ]
    costs = [
        {"epoch": epoch, "seconds": seconds * epoch, "examples": examples * epoch}
        for epoch in range(1, len(values) + 1)
    ]
    results = {"support": 256.0, "receiver_calls": 1.0}
    return Run(
        f"{mode}-{seed}", {"mode": mode, "random_seed": seed, "game_size": 16, **options}, results, metrics, costs
    )


def test_mean_and_band_over_seeds():
    values = [(0.25, 0.5), (0.5, 0.625), (0.125, 0.75)]
    groups = group([run("marg", seed, each) for seed, each in enumerate(values)])
    for band, edges in (
        ("std", lambda at: (statistics.mean(at) - statistics.stdev(at), statistics.mean(at) + statistics.stdev(at))),
        ("range", lambda at: (min(at), max(at))),
    ):
        plot = plots.plan("x", groups, SUCCESS, "epochs", band)
        (line,) = plot.lines
        assert line.x.tolist() == [1, 2]
        for i, at in enumerate(zip(*values, strict=True)):
            assert line.y[i] == pytest.approx(statistics.mean(at))
            assert (line.low[i], line.high[i]) == pytest.approx(edges(at))
        assert plots.BANDS[band] in plot.caption
    assert plot.chance == 1 / 16


def test_receiver_calls_add_up():
    """Those that training reports, or the fixed number of a method that samples."""
    groups = group([run("marg", 1, (0.5, 0.5, 0.5), calls=(16, 4, 2)), run("gs", 1, (0.5, 0.5, 0.5))])
    places = [line.x.tolist() for line in plots.plan("x", groups, SUCCESS, "calls").lines]
    assert places == [[1600, 2000, 2200], [100, 200, 300]]


def test_seconds_are_the_means_of_the_seeds():
    groups = group([run("marg", 1, (0.5, 0.5), seconds=2.0), run("marg", 2, (0.5, 0.5), seconds=4.0)])
    assert plots.plan("x", groups, SUCCESS, "seconds").lines[0].x.tolist() == [3.0, 6.0]


def test_a_line_ends_where_not_all_seeds_go_on():
    groups = group([run("marg", 1, (0.5, 0.5)), run("marg", 2, (0.5, 0.5, 0.9))], ["mode"])
    plot = plots.plan("x", groups, SUCCESS)
    assert plot.lines[0].y.tolist() == [0.5, 0.5]
    assert "ends where" in plot.caption


def test_what_nobody_reports_is_not_drawn():
    old = run("marg", 1, (0.5,))
    old.costs = []
    assert plots.plan("x", group([old]), SUCCESS, "seconds") is None
    assert plots.plan("x", group([old]), Curve("y", "y")) is None


def test_chance_that_differs_is_not_drawn():
    groups = group([run("marg", 1, (0.5,)), run("marg", 1, (0.5,), game_size=2)])
    assert plots.plan("x", groups, SUCCESS).chance is None


def drawn(plot):
    with look.applied():
        figure = plots.draw(plot)
        figure.canvas.draw()
    return figure, figure.axes[0]


def test_the_picture():
    runs = [run("marg", seed, (0.25, 0.5), calls=(16, 16)) for seed in (1, 2)] + [run("gs", 1, (0.5, 0.5))]
    runs[0].metrics += [{"epoch": epoch, "mode": "validation", "support": 4.0} for epoch in (1, 2)]
    runs[1].metrics += [{"epoch": epoch, "mode": "validation", "support": 8.0} for epoch in (1, 2)]
    _, axes = drawn(plots.plan("x", group(runs), SUCCESS, "calls"))
    colors = {text.get_text(): text.get_color() for text in axes.texts}
    assert colors == {"exact marginalization": look.BLUE, "Gumbel-Softmax": look.GREEN, "chance: 0.0625": look.GREY}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("receiver calls in training", "success (share of games)")
    lines = {line.get_color(): line for line in axes.get_lines() if line.get_transform() == axes.transData}
    assert list(lines[look.BLUE].get_xdata()) == [1600, 3200]
    assert axes.get_xscale() == "log"
    _, axes = drawn(plots.plan("x", group(runs), SUPPORT))
    assert {text.get_text() for text in axes.texts} == {"exact marginalization", "Gumbel-Softmax (test)"}
    assert axes.get_yscale() == "log"


def test_many_names_do_not_overlap():
    runs = [run("marg", 1, (0.5, 0.5), lr=lr / 7) for lr in range(14)]
    figure, axes = drawn(plots.plan("x", group(runs), SUCCESS))
    boxes, frame = [text.get_window_extent() for text in axes.texts], axes.get_window_extent()
    assert len(boxes) == 15
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert frame.x1 < box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_names_are_no_markup():
    """Neither mathematics, which may be wrong, nor parts of the page."""
    runs = [
        run("marg", 1, (0.5,), root=root) for root in ("$\\frac{", "<script>alert(1)</script>", "--!><script>", "\x1b")
    ]
    figure, axes = drawn(plots.plan("x", group(runs), SUCCESS))
    assert any("$\\frac{" in text.get_text() for text in axes.texts)
    with look.applied():
        svg = plots.to_svg(figure, "p")
    assert "script" not in svg
    assert "<!--" not in svg
    assert svg.startswith("<svg ")
    assert "var(--color-0)" in svg
    assert look.BLUE not in svg
    assert re.findall(r'id="(?!p-)', svg) == []
    references = set(re.findall(r"(?:href=\"|url\()#([\w-]+)", svg))
    assert references <= set(re.findall(r'id="([\w.-]+)"', svg))
