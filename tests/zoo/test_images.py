"""Images of one's own, ``--data npz``: what an archive may hold, what becomes of it, and what is refused."""

import json

import numpy as np
import pytest

from egg_sparse.zoo import images, language
from egg_sparse.zoo.bit_vector_vae import data as bit_vector_data
from egg_sparse.zoo.bit_vector_vae import train as bit_vector_vae
from egg_sparse.zoo.cli import run
from egg_sparse.zoo.semi_supervised_vae import data as semi_supervised_data
from egg_sparse.zoo.semi_supervised_vae import train as semi_supervised_vae

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (30, 3, 5), dtype=np.uint8)
LABELS = np.arange(30) % 4


def archive(tmp_path, **arrays):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_grey_levels_of_every_type(flat, dtype, tmp_path):
    own = PIXELS.reshape(30, 15) if flat else PIXELS
    own = own if dtype == np.uint8 else (own / 255).astype(dtype)
    found, test, n_classes = images.npz(archive(tmp_path, images=own, labels=LABELS), labeled=True)
    tolerance = 1 if dtype == np.float16 else 0
    assert np.abs(found.pixels.astype(int) - PIXELS.reshape(30, 15).astype(int)).max() <= tolerance
    assert (found.levels, found.height, test, n_classes) == (256, None if flat else 3, None, 4)
    assert found.classes.tolist() == LABELS.tolist()


@pytest.mark.parametrize("names", [np.array(["d", "b", "a", "c"]), np.array([-7, 300, 2, 5])])
def test_classes_follow_the_order_of_the_labels(names, tmp_path):
    labels, of_test = names[LABELS], names[[2, 2, 0]]
    path = archive(tmp_path, images=PIXELS, labels=labels, test_images=PIXELS[:3], test_labels=of_test)
    split = semi_supervised_data.load("npz", "", None, path)
    ranks = {name: rank for rank, name in enumerate(sorted(names.tolist()))}
    assert split.test.classes.tolist() == [ranks[name] for name in of_test.tolist()]
    assert split.n_classes == 4
    parts = (split.labeled, split.unlabeled, split.validation)
    assert [len(part) for part in parts] == [2, 25, 3]
    by_pixels = {
        row.tobytes(): ranks[label] for row, label in zip(PIXELS.reshape(30, 15), labels.tolist(), strict=True)
    }
    for part in parts:
        assert part.classes.tolist() == [by_pixels[row.tobytes()] for row in part.pixels]
    assert len({row.tobytes() for part in parts for row in part.pixels}) == 30, "no image is in two parts"


def test_without_test_images_a_fifth_is_for_the_test(tmp_path):
    path = archive(tmp_path, images=PIXELS)
    first, second = (bit_vector_data.load("npz", "", path) for _ in range(2))
    assert [len(part) for part in (first.train, first.validation, first.test)] == [21, 3, 6]
    assert (first.train.pixels == second.train.pixels).all(), "the split does not depend on the seed"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"images": None}, ["images"]),
        ({"labels": None}, ["labels"]),
        ({"images": PIXELS.astype(int)}, ["images", "uint8", "int64"]),
        ({"images": PIXELS[:, 0, 0]}, ["images", "(30,)"]),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, ["images", "(0, 3, 5)"]),
        ({"images": PIXELS / 1.0}, ["images", "0 to 1", "to 25"]),
        ({"images": PIXELS / 255 - 0.1}, ["images", "-0.1"]),
        ({"images": np.full((30, 4), np.nan)}, ["images", "nan"]),
        ({"images": PIXELS.astype("S3")}, ["images", "|S3"]),
        ({"labels": LABELS[1:]}, ["labels", "(30,)", "(29,)"]),
        ({"labels": LABELS / 2}, ["labels", "float64"]),
        ({"labels": np.zeros(30, int)}, ["labels", "two classes", "1"]),
        ({"test_images": PIXELS}, ["test_images", "test_labels"]),
        ({"test_images": PIXELS[:, :2], "test_labels": LABELS}, ["test_images", "(3, 5)", "(2, 5)"]),
        ({"test_images": PIXELS, "test_labels": LABELS + 1}, ["test_labels", "4"]),
        ({"images": PIXELS[:8], "labels": LABELS[:8]}, ["10 images", "8"]),
    ],
)
def test_refused_in_one_sentence(changed, named, tmp_path, capsys):
    arrays = {**{"images": PIXELS, "labels": LABELS}, **changed}
    path = archive(tmp_path, **{name: value for name, value in arrays.items() if value is not None})
    assert run(semi_supervised_vae.PROG, semi_supervised_vae.main, ["--data=npz", f"--root={path}", "--no_cuda"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert len(error) == 1
    assert all(each in error[0] for each in ["--root", *named])


def test_a_file_or_an_option_that_there_is_not(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("no archive")
    for entry in (bit_vector_vae, semi_supervised_vae):
        for params, named in (
            ([], "needs --root"),
            (["--root=none.npz"], "no file none.npz"),
            ([f"--root={tmp_path / 'text.npz'}"], "not an .npz archive"),
        ):
            assert run(entry.PROG, entry.main, ["--data=npz", *params, "--no_cuda"]) == 1
            assert named in capsys.readouterr().err
        entry.parse_options(["--root=own.npz", "--no_cuda"])
        assert "--root has no effect with --data digits" in capsys.readouterr().err


def test_images_that_are_nearly_black_draw_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="brightest pixel of images is 1 of 255"):
        bit_vector_data.load("npz", "", archive(tmp_path, images=PIXELS % 2))


@pytest.mark.slow
@pytest.mark.parametrize("entry", [semi_supervised_vae, bit_vector_vae])
def test_learns_from_images_that_are_not_square(entry, tmp_path):
    """Three patterns with noise; the sizes of agents and pictures follow."""
    labels = np.arange(300) % 3
    patterns = np.zeros((3, 4, 7))
    for k in range(3):
        patterns[k, k : k + 2, 2 * k : 2 * k + 3] = 1
    own = np.clip(0.8 * patterns[labels] + RNG.uniform(0, 0.2, (300, 4, 7)), 0, 1)
    path = archive(tmp_path, images=own, labels=np.array(["x", "y", "z"])[labels])
    params = ["--data=npz", f"--root={path}", "--no_cuda", "--random_seed=1", "--out=run"]
    if entry is semi_supervised_vae:
        final = entry.main([*params, "--n_epochs=1", "--n_labeled=30", "--warm_start_epochs=20"])
        assert final["acc"] > 0.9
    else:
        quick = ["--latent_size=6", "--nll_samples=16", "--validation_nll_samples=0"]
        final = entry.main([*params, "--n_epochs=8", "--lr=0.01", *quick])
        records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
        assert final["negative_elbo"] < 0.9 * records[0]["negative_elbo"]
    tested = entry.main(["--evaluate", "--load_from_checkpoint=run/checkpoints/final.tar", "--no_cuda"])
    assert {**tested, "seconds": 0} == {**final, "seconds": 0}
    spoken = language.language_of_run("run")
    assert len(spoken.language) == len(spoken.inputs) == 60
    assert (spoken.attributes is None) == (entry is bit_vector_vae), "what has labels speaks of them"
