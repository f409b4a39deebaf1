"""Which runs are one setting, and what it is called."""

import pytest

from egg_sparse.report.groups import group, repeated
from egg_sparse.report.runs import Run
from egg_sparse.zoo import look


def run(number=0, **options):
    return Run(f"run-{number}", {"mode": "marg", "lr": 0.005, "random_seed": number, "keep": 2, **options})


def titles(groups):
    return [(each.title, each.seeds) for each in groups]


def test_what_varies_but_the_seed_makes_a_group():
    runs = [run(2), run(1, keep=5, tensorboard_dir="x", wandb=True), run(1, mode="gs", normalizer="softmax")]
    assert titles(group(runs)) == [("exact marginalization (marg)", [1, 2]), ("Gumbel-Softmax (gs)", [1])]


def test_a_title_says_what_tells_the_settings_of_a_method_apart():
    runs = [run(1), run(1, lr=0.5), run(1, mode="gs", lr=0.5, gs_tau=2.0), run(1, mode="unknown")]
    assert titles(group(runs)) == [
        ("exact marginalization (marg), lr 0.005", [1]),
        ("exact marginalization (marg), lr 0.5", [1]),
        ("Gumbel-Softmax (gs)", [1]),
        ("unknown", [1]),
    ]
    assert [each.name for each in group(runs)][2] == "Gumbel-Softmax"


def test_chosen_options():
    runs = [run(1), run(2, lr=0.5), run(1, mode="gs")]
    assert titles(group(runs, ["lr"])) == [("lr 0.005", [1]), ("lr 0.5", [2])]
    with pytest.raises(ValueError, match=r"--by.*temp.*keep, lr, mode"):
        group(runs, ["temp"])


def test_values_that_print_alike_are_other_settings():
    assert len(group([run(1, same=1), run(1, same=True), run(1, same="1")])) == 3


def test_one_setting():
    assert titles(group([run(1), run(2)])) == [("exact marginalization (marg)", [1, 2])]


def test_repeated_seeds_are_told():
    (sentence,) = repeated(group([run(1), run(1), run(2)]))
    assert "2 runs of seed 1" in sentence


def test_a_method_has_its_color_whatever_else_is_drawn():
    for modes in (["marg", "gs"], ["gs", "sfe"], ["gs"], ["x", "gs", "y"]):
        for each in group([run(i, mode=mode) for i, mode in enumerate(modes)]):
            if each.runs[0].mode in look.COLORS_OF_METHODS:
                assert each.color == look.COLORS_OF_METHODS[each.runs[0].mode]


def test_no_two_lines_look_alike():
    groups = group([run(i, lr=float(i), mode=mode) for i in range(6) for mode in ("marg", "x", "y")])
    assert len({(each.color, each.style) for each in groups}) == 18


def test_long_and_broken_values_are_one_short_line():
    (first, _) = group([run(1, root="a\nb" + "c" * 500), run(1)])
    assert "\n" not in first.title
    assert len(first.title) < 150
