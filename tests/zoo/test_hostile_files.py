"""Files that a user downloads, or that were damaged: refused in a sentence, unexecuted, and without filling memory.

Every reader is fuzzed: whole files and attacks are mutated at random, by default a few hundred times. With
EGG_SPARSE_LONG it is a hundred times as often, and ``pytest -s`` prints how many files and bytes it were.
"""

import itertools
import json
import os
import pickle
import random
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
import yaml

from egg_sparse import standin
from egg_sparse.zoo import checkpoints, images, run_folder
from egg_sparse.zoo.bit_vector_vae import data as bit_vector_data
from egg_sparse.zoo.semi_supervised_vae import data as semi_supervised_data
from egg_sparse.zoo.signal_game import data, files
from egg_sparse.zoo.signal_game import train as signal_game

LONG = bool(os.environ.get("EGG_SPARSE_LONG"))
MUTATIONS = 20_000 if LONG else 200


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def mutated(content, others, rng):
    """A file that is nearly this one: bits flipped, parts lost, repeated, overwritten, or taken from other files."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        start = rng.randrange(len(result) + 1)
        end = min(len(result), start + rng.choice((1, 2, 4, 8, 64, 1000)))
        other = rng.choice(others)
        piece = rng.randrange(len(other) + 1)
        match rng.randrange(7):
            case 0 if start < len(result):
                result[start] ^= 1 << rng.randrange(8)
            case 1:
                del result[start:end]
            case 2:
                result[start:start] = result[start:end]
            case 3:
                result[start:end] = rng.randbytes(end - start)
            case 4:
                result[start:end] = other[piece : piece + end - start]
            case 5:
                extreme = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                result[start : start + 8] = struct.pack("<Q", extreme)
            case 6:
                del result[start:]
    return bytes(result)


def fuzz(name, seeds, path, read):
    """Reads mutated files. ``read`` returns nothing, or says what is wrong with what it could read."""
    rng, n_bytes, refused = random.Random(name), 0, 0
    for _ in range(MUTATIONS):
        content = mutated(rng.choice(seeds), seeds, rng)
        path.write_bytes(content)
        n_bytes += len(content)
        try:
            wrong = read()
        except (ValueError, OSError) as error:
            wrong = None if str(error) else "an error without a reason"
            refused += 1
        assert not wrong, (wrong, content[:200])
    print(f"\nfuzzed {name}: {MUTATIONS} files, {n_bytes} bytes, {refused} refused")
    assert refused > MUTATIONS // 10, "hardly a mutation reached the reader's checks"


@pytest.fixture
def marker(tmp_path):
    """What an attack would make."""
    marker = tmp_path / "executed"
    yield marker
    assert not marker.exists(), "code in a file was executed"


class TestCheckpoints:
    def checkpoint(self, epoch=4):
        model = torch.nn.Linear(20, 30)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(1, 20)).sum().backward()
        optimizer.step()
        return standin.callbacks.Checkpoint(epoch, model.state_dict(), optimizer.state_dict(), None)

    def test_every_flipped_bit_is_found(self, tmp_path):
        """torch.load itself does not look at its checksums: it would return other weights."""
        path = tmp_path / "1.tar"
        torch.save(self.checkpoint(), path)
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
            # the data follows a header whose last two fields are the lengths of a name and of padding
            name, padding = struct.unpack_from("<HH", content, largest.header_offset + 26)
            start = largest.header_offset + 30 + name + padding
        for offset in range(0, largest.file_size, largest.file_size // 20):
            content[start + offset] ^= 1
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"the checksum of .* is wrong"):
                checkpoints.read(path)
            content[start + offset] ^= 1
        path.write_bytes(content)
        assert checkpoints.read(path).epoch == 4

    def test_a_compressed_one_is_refused_unread(self, tmp_path):
        """Of a few kilobytes, whose tensor would fill ten gigabytes."""
        path = tmp_path / "1.tar"
        torch.save(self.checkpoint(), path)
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "2.tar", "w", zipfile.ZIP_DEFLATED) as other:
            for entry in archive.infolist():
                other.writestr(entry.filename, archive.read(entry))
        with pytest.raises(ValueError, match="compressed"):
            checkpoints.read(tmp_path / "2.tar")

    def test_another_content(self, tmp_path):
        path = tmp_path / "1.tar"
        for epoch in ("four", None, 4.5, [4]):
            torch.save(self.checkpoint(epoch), path)
            with pytest.raises(ValueError, match=r"epoch.*weights"):
                checkpoints.read(path)
        assert checkpoints.newest(tmp_path) is None

    def test_fuzz(self, tmp_path, marker):
        path = tmp_path / "1.tar"
        seeds = []
        for value in (self.checkpoint(), Attack(marker), [torch.zeros(3)]):
            torch.save(value, path)
            seeds.append(path.read_bytes())
        path.write_bytes(seeds[0])
        whole = checkpoints.read(path)

        def read():
            checkpoint = checkpoints.read(path)
            same = all(
                torch.equal(checkpoint.model_state_dict[name], value) for name, value in whole.model_state_dict.items()
            )
            return None if same and checkpoint.epoch == whole.epoch else "other weights than were saved"

        fuzz("checkpoints", seeds, path, read)


class TestRunFolders:
    OPTIONS = json.dumps({"mode": "marg", "lr": 0.001, "n_epochs": 3, "out": None, "fp16": False}, indent=2).encode()

    @pytest.mark.parametrize("content", [b"[" * 100_000, b'{"mode": ' + b"9" * 10_000 + b"}", b'{"mode": "\xff"}'])
    def test_options_that_no_run_writes(self, content, tmp_path):
        (tmp_path / run_folder.OPTIONS_FILE).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as JSON"):
            run_folder.load_options_of(tmp_path)

    @pytest.mark.parametrize(("tensorboard", "kept"), [(False, False), (True, True)])
    def test_the_common_tensorboard_folder_of_old_runs_is_kept_if_they_wrote_to_it(self, tmp_path, tensorboard, kept):
        saved = {"tensorboard": tensorboard, "tensorboard_dir": "runs/"}
        (tmp_path / run_folder.OPTIONS_FILE).write_text(json.dumps(saved))
        assert ("tensorboard_dir" in run_folder.load_options_of(tmp_path)) == kept

    def test_fuzz_options(self, tmp_path):
        path = tmp_path / run_folder.OPTIONS_FILE

        def read():
            options = run_folder.load_options_of(tmp_path)
            plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in options.values())
            return None if plain else "values that are not plain"

        fuzz("opts.json", [self.OPTIONS], path, read)

    def test_fuzz_metrics(self, tmp_path):
        """They are never refused: what cannot be read as the metrics of an epoch is left out."""
        path = tmp_path / run_folder.METRICS_FILE
        lines = [json.dumps({"loss": 0.5, "mode": "train", "epoch": epoch}).encode() for epoch in range(1, 6)]
        rng = random.Random("metrics")
        for _ in range(MUTATIONS):
            path.write_bytes(mutated(b"\n".join(lines), lines, rng))
            kept = run_folder.keep_metrics_until(tmp_path, 3)
            assert all(record["epoch"] <= 3 for record in kept)
            assert kept == [json.loads(line) for line in path.read_bytes().splitlines()]


class TestOptionFiles:
    """Those of ``--config``."""

    def test_fuzz(self, tmp_path, marker, capsys):
        path = tmp_path / "config"
        options = {"mode": "gs", "lr": 0.001, "n_epochs": 3, "out": None, "straight_through": True}
        attack = f"lr: !!python/object/apply:os.mkdir ['{marker}']\n"
        bomb = "a: &a [x, x]\n" + "".join(
            f"{after}: &{after} [*{before}, *{before}]\n" for before, after in itertools.pairwise("abcdefghi")
        )
        seeds = [json.dumps(options).encode(), yaml.safe_dump(options).encode(), attack.encode(), bomb.encode()]

        def read():
            try:
                found = signal_game.parse_options([f"--config={path}", "--no_cuda"])
            except SystemExit as error:
                raise ValueError(capsys.readouterr().err) from error
            return None if found.n_epochs >= 0 and found.lr > 0 else "values that the options do not take"

        fuzz("files of options", seeds, path, read)


ARRAYS = {"features": np.random.default_rng(0).normal(size=(40, 6)), "labels": np.arange(40)}
LABELS = [f"concept{i}" for i in range(20)]


class TestArchives:
    def test_objects_are_refused_unexecuted(self, tmp_path, marker):
        path = tmp_path / "a.npz"
        for name in ARRAYS:
            np.savez(path, **{**ARRAYS, name: np.array([Attack(marker)] * 40, dtype=object)})
            with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
                data.load("npz", str(path), "data", False)

    def test_huge_declared_sizes(self, tmp_path):
        path = tmp_path / "a.npz"
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (40, 1000000000000), }".ljust(117) + b"\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("features.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
            archive.writestr("labels.npy", b"")
        with pytest.raises(ValueError, match="cannot be read as features and labels"):
            data.load("npz", str(path), "data", False)
        np.savez_compressed(path, **ARRAYS)
        content = bytearray(path.read_bytes())
        entry = content.rindex(b"PK\x01\x02")  # the size in the directory, which says how much is to be read
        content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"4294967294 bytes"):
            data.load("npz", str(path), "data", False)

    def test_constant_data_is_read(self, tmp_path):
        """The most that compression can do is no attack."""
        path = tmp_path / "a.npz"
        np.savez_compressed(path, features=np.zeros((40, 100_000)), labels=np.arange(40))
        assert data.load("npz", str(path), "data", False).n_features == 100_000

    def test_fuzz(self, tmp_path, marker):
        path, seeds = tmp_path / "a.npz", []
        for arrays in (ARRAYS, {"features": np.array([Attack(marker)], dtype=object), "labels": np.arange(1)}):
            for save in (np.savez, np.savez_compressed):
                save(path, **arrays)
                seeds.append(path.read_bytes())

        def read():
            features, labels = files.read_npz(path)
            same = np.array_equal(features, ARRAYS["features"].astype(np.float32))
            return None if same and np.array_equal(labels, ARRAYS["labels"]) else "other numbers than were saved"

        fuzz("npz", seeds, path, read)


OWN = {"images": np.random.default_rng(0).integers(0, 256, (20, 3, 5), dtype=np.uint8), "labels": np.arange(20) % 4}


class TestOwnImages:
    """Those of the VAEs, ``--data npz``."""

    @pytest.mark.parametrize("name", ["images", "test_images", "labels"])
    @pytest.mark.parametrize("shape", ["(40, 1000000000000)", "(1000000000, 1000000000, 1000000000)", "(-1, 4)"])
    def test_a_header_that_declares_more_than_there_is(self, name, shape, tmp_path):
        """NumPy itself would ask for the memory."""
        path = tmp_path / "a.npz"
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        np.savez(path, **{each: value for each, value in OWN.items() if each != name})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with pytest.raises(ValueError, match=f"{name} declares -?[0-9]+ bytes, but has 0"):
            semi_supervised_data.load("npz", "", None, str(path))

    def test_fuzz(self, tmp_path, marker):
        path, seeds = tmp_path / "a.npz", []
        attack = np.array([Attack(marker)] * 20, dtype=object)
        for arrays in (OWN, {**OWN, "labels": attack}, {**OWN, "images": attack}):
            for save in (np.savez, np.savez_compressed):
                save(path, **arrays)
                seeds.append(path.read_bytes())

        def read():
            own, _, n_classes = images.npz(str(path), labeled=True)
            same = np.array_equal(own.pixels, OWN["images"].reshape(20, 15)) and own.height == 3
            same = same and np.array_equal(own.classes, OWN["labels"]) and n_classes == 4
            return None if same else "other images than were saved"

        fuzz("npz of images", seeds, path, read)


class TestPickles:
    @pytest.mark.parametrize("protocol", [0, 2, 4, 5])
    def test_fewer_elements_than_declared(self, tmp_path, protocol):
        """NumPy itself would read beyond the list, and crash."""
        whole = pickle.dumps(np.array(LABELS, dtype=object), protocol)
        declared = {0: b"I20\n", 2: b"K\x14", 4: b"K\x14", 5: b"K\x14"}[protocol]
        assert whole.count(declared) == 1
        path = tmp_path / "labels.objects"
        path.write_bytes(whole.replace(declared, declared.replace(b"20", b"90").replace(b"\x14", b"\x5a")))
        with pytest.raises(ValueError, match=r"\(90,\).* 20 elements"):
            files.read_pickled(path)

    def test_ten_bytes_that_take_gigabytes(self, tmp_path):
        """The memo's entry of number 2^28: the C unpickler makes room for all before it."""
        path = tmp_path / "labels.objects"
        path.write_bytes(b"\x80\x04]r\xff\xff\xff\x0f.")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert files.read_pickled(path).tolist() == []
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000

    def test_one_long_string(self, tmp_path):
        """As an array every string takes as much memory as the longest: here 40 GB."""
        path = tmp_path / "labels.objects"
        path.write_bytes(pickle.dumps([*(LABELS * 5000), "a" * 100_000]))
        with pytest.raises(ValueError, match=r"string.*longer"):
            files.read_pickled(path)

    def test_what_reads_it_stays_as_it_is(self, tmp_path):
        path = tmp_path / "labels.objects"
        path.write_bytes(b"\x80\x02cnumpy\ndtype\n}U\x05buildNsb.")
        with pytest.raises(ValueError, match="it changes what it is read with"):
            files.read_pickled(path)

    def test_a_list_that_would_fill_any_memory(self, tmp_path):
        """Ten lists of ten lists and so on, each written once: 10^12 elements as an array."""
        bomb = ["a"]
        for _ in range(12):
            bomb = [bomb] * 10
        path = tmp_path / "labels.objects"
        path.write_bytes(pickle.dumps(bomb))
        with pytest.raises(ValueError, match=r"strings.*integers"):
            files.read_pickled(path)

    def test_fuzz(self, tmp_path, marker):
        path = tmp_path / "labels.objects"
        values = [LABELS, np.array(LABELS), np.array(LABELS, dtype=object), np.arange(20)]
        attacks = [Attack(marker), np.array([Attack(marker)], dtype=object)]
        seeds = [pickle.dumps(value, protocol) for value in (*values, *attacks) for protocol in (0, 2, 4, 5)]

        def read():
            return None if isinstance(files.read_pickled(path), np.ndarray) else "no array"

        fuzz("pickles", seeds, path, read)


class TestHDF5:
    N = 20

    @pytest.fixture
    def folder(self, tmp_path):
        import h5py

        folder = tmp_path / "train"
        folder.mkdir()
        (folder / "ours_images_single_sm0.objects").write_bytes(pickle.dumps([f"c{i}" for i in range(self.N)]))
        (folder / "ours_images_paths_sm0.objects").write_bytes(pickle.dumps([f"{i}.jpg" for i in range(self.N)]))
        with h5py.File(self.path(folder), "w") as file:
            file.create_dataset("data", data=np.ones((self.N, 7)), compression="gzip")
        return folder

    def path(self, folder):
        return folder / "ours_images_single_sm0.h5"

    def test_a_huge_declared_size(self, folder):
        """Eight terabytes of which nothing is there."""
        import h5py

        with h5py.File(self.path(folder), "w") as file:
            file.create_dataset("data", shape=(self.N, 5 * 10**10), dtype="f8", chunks=(1, 1000))
        with pytest.raises(ValueError, match=r"8000000000000 bytes.* 0"):
            files.read_imagenet_part(folder)

    @pytest.mark.parametrize("kind", ["external", "virtual", "link"])
    def test_numbers_of_another_file(self, folder, tmp_path, kind):
        """A data set must not make this process read any other file."""
        import h5py

        secret = tmp_path / "secret.h5"
        with h5py.File(secret, "w") as file:
            file["data"] = np.ones((self.N, 7))
        with h5py.File(self.path(folder), "w") as file:
            if kind == "external":
                file.create_dataset("data", (self.N, 7), "f8", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
            elif kind == "link":
                file["data"] = h5py.ExternalLink(str(secret), "data")
            else:
                layout = h5py.VirtualLayout((self.N, 7), "f8")
                layout[:] = h5py.VirtualSource(str(secret), "data", (self.N, 7))
                file.create_virtual_dataset("data", layout)
        with pytest.raises(ValueError, match=r"another file"):
            files.read_imagenet_part(folder)

    @pytest.mark.parametrize("values", [np.array([["a"] * 7] * N, dtype="S1"), np.zeros((N, 7), dtype=complex)])
    def test_other_types(self, folder, values):
        import h5py

        with h5py.File(self.path(folder), "w") as file:
            file["data"] = values
        with pytest.raises(ValueError, match="must hold numbers"):
            files.read_imagenet_part(folder)

    def test_fuzz(self, folder):
        path = self.path(folder)

        def read():
            features, _ = files.read_imagenet_part(folder)
            return None if np.isfinite(features).all() else "features that are not finite"

        fuzz("h5", [path.read_bytes()], path, read)


class TestTorchvisionsFiles:
    @pytest.fixture
    def contents(self, tmp_path):
        raw = tmp_path / "MNIST/raw"
        raw.mkdir(parents=True)
        contents = {}
        for part, n in (("train", 30), ("t10k", 20)):
            pixels, classes = np.zeros((n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
            contents[raw / f"{part}-images-idx3-ubyte"] = struct.pack(">HBBIII", 0, 8, 3, n, 28, 28) + pixels.tobytes()
            contents[raw / f"{part}-labels-idx1-ubyte"] = struct.pack(">HBBI", 0, 8, 1, n) + classes.tobytes()
        for path, content in contents.items():
            path.write_bytes(content)
        return contents

    def test_fewer_images_than_a_split_needs(self, contents, tmp_path):
        for load in (
            lambda: bit_vector_data.load("mnist", str(tmp_path)),
            lambda: semi_supervised_data.load("mnist", str(tmp_path), None),
        ):
            with pytest.raises(OSError, match=r"--data_root: MNIST.* 60000.* 30"):
                load()

    @pytest.mark.slow
    def test_fuzz(self, contents, tmp_path):
        def read():
            train, test = images.torchvision("mnist", str(tmp_path))
            for part in (train, test):
                if part.pixels.shape != (len(part.classes), 784) or part.classes.max() > 9:
                    return "images without their classes"
            return None

        for path, content in contents.items():
            fuzz(path.name, list(contents.values()), path, read)
            path.write_bytes(content)
