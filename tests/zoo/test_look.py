"""The look of pictures: names beside lines, and settings that do not leak."""

import itertools

import matplotlib
import pytest

from egg_sparse.zoo import look


def test_settings_stay_within():
    before = dict(matplotlib.rcParams)
    with look.applied():
        assert matplotlib.rcParams["savefig.dpi"] == look.RESOLUTION
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_begin_at_the_ends_of_lines(scale):
    ends = [(2, 1.0), (3, 8.0), (1, 64.0)]
    with look.applied():
        figure = look.new_figure(5, 4)
        axes = figure.add_subplot()
        axes.set_yscale(scale)
        for x, y in ends:
            axes.plot([0, x], [y, y])
        look.write_beside(axes, [look.Label(x, y, f"line {y}", look.BLUE) for x, y in ends])
        figure.canvas.draw()
    leaders = axes.get_lines()[3:]
    for (x, y), leader in zip(ends, leaders, strict=True):
        start = axes.transAxes.transform((leader.get_xdata()[0], leader.get_ydata()[0]))
        assert tuple(start) == pytest.approx(tuple(axes.transData.transform((x, y))))
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["line 1.0", "line 8.0", "line 64.0"]
    assert all(low.y1 < high.y0 for low, high in itertools.pairwise(boxes))


def test_more_lines_than_looks():
    looks = look.looks_of(["marg"] * 40)
    assert len(set(looks)) == len(look.PALETTE) * len(look.STYLES)


def test_the_same_picture_is_the_same_file(tmp_path):
    for name in ("a", "b"):
        with look.applied():
            figure = look.new_figure(2, 2)
            figure.add_subplot().plot([1, 2])
            for suffix in ("png", "pdf", "svg"):
                look.save(figure, tmp_path / f"{name}.{suffix}")
    for suffix in ("png", "pdf", "svg"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("values", [(1.7, 2.2), (1.0, 1.0), (1.2, 9.0), (4.0, 256.0)])
def test_every_axis_of_counts_has_at_least_two_ticks_with_numbers(values):
    with look.applied():
        figure = look.new_figure(5, 4)
        axes = figure.add_subplot()
        axes.plot([0, 1], values)
        look.counts_on_log_axis(axes)
        figure.canvas.draw()
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    assert len([tick for tick, label in ticks if low <= tick <= high and label.get_text()]) >= 2
